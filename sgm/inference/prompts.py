"""What of a prompt the networks will not read as it may have been meant."""

import logging
import re

from sgm.modules.encoders.prompts import CHUNK
from sgm.modules.encoders.tokenizer import CONTEXT_LENGTH, load_tokenizer
from sgm.specs import SamplingParams

logger = logging.getLogger(__name__)

# What other tools read in a prompt, and text is here, or without `--prompt_syntax weighted`.
_LORA = re.compile(r"<(?:lora|lyco|hypernet):[^>]*>")
_WEIGHT = re.compile(r"\([^()]*:\s*[\d.]+\s*\)|\(\([^()]*\)\)|\bBREAK\b")
LEAST_SHOWN = 60  # characters of the words that are not read, in a notice


def say_unread(params: SamplingParams, prefix: str = "") -> None:
    """Log what of the prompts is not read, each under its name after a prefix."""
    for name in ("prompt", "negative_prompt"):
        for notice in unread(getattr(params, name), params.weighted):
            logger.warning("%s%s: %s", prefix, name, notice)


def unread(text: str, weighted: bool) -> list[str]:
    """Notices about what of a prompt is not read as it may have been meant, one sentence each. A
    `weighted` one is read with weights and at any length."""
    found = [f"{one!r} is read as text; name files with --lora." for one in _LORA.findall(text)]
    if weighted:
        return found
    emphasis = _WEIGHT.search(text)
    if emphasis:
        found.append(f"{emphasis[0]!r} is read as text; --prompt_syntax weighted weighs words.")
    lost = words_beyond(text)
    if lost:
        shown = lost if len(lost) <= LEAST_SHOWN else f"{lost[:LEAST_SHOWN]}..."
        found.append(
            f"The words from {shown!r} on are beyond the {CONTEXT_LENGTH} tokens that are read; "
            "shorten the prompt, or use --prompt_syntax weighted."
        )
    return found


def words_beyond(text: str) -> str:
    """The words of a prompt that do not fit into one chunk, the one that is cut through included;
    empty if all do."""
    encode, words = load_tokenizer().encode, text.split()
    if len(encode(text)) <= CHUNK:
        return ""
    fitting = 0
    while len(encode(" ".join(words[: fitting + 1]))) <= CHUNK:
        fitting += 1
    return " ".join(words[fitting:])
