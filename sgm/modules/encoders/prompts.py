"""Prompts as people write them for other tools: weighted words, and as many words as they like.

`(word:1.3)` weighs a word, `(word)` is 1.1 and `[word]` 1 / 1.1; brackets nest, `\\(` is a bracket.
Tokens fill chunks of 75, each of which a text tower reads on its own; `BREAK` begins the next.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sgm.modules.encoders.tokenizer import CONTEXT_LENGTH, load_tokenizer

CHUNK = CONTEXT_LENGTH - 2  # between the marks of start and end
STRONGER = 1.1  # weight of a bracket without a number
_PART = re.compile(
    r"\\(?P<escaped>[()\[\]\\])|(?P<open>[(\[])|:\s*(?P<number>[+-]?\d*\.?\d+)\s*\)|(?P<close>[)\]])"
    r"|(?P<break>\bBREAK\b)|(?P<text>[^\\()\[\]:B]+|.)",
    re.DOTALL,
)


@dataclass(frozen=True)
class WeightedPrompt:
    """A prompt as the text towers read it: at least one chunk, each of at most 75 pairs of a token
    id and its weight."""

    chunks: tuple[tuple[tuple[int, float], ...], ...]

    @property
    def plain(self) -> bool:
        """Whether every token has weight 1."""
        return all(weight == 1 for chunk in self.chunks for _, weight in chunk)

    def padded(self, count: int) -> "WeightedPrompt":
        """With empty chunks at the end, `count` in all."""
        return WeightedPrompt(self.chunks + ((),) * (count - len(self.chunks)))


def weighted_parts(text: str) -> Iterator[tuple[str, float] | None]:
    """The pieces of a prompt with their weights, in order; None for a BREAK. A bracket that is
    never closed weighs to the end; one that was never opened is text."""
    pieces: list[tuple[str, float] | None] = []
    opened: list[tuple[str, int]] = []

    def weigh(start: int, factor: float) -> None:
        for at in range(start, len(pieces)):
            piece = pieces[at]
            if piece is not None:
                pieces[at] = (piece[0], piece[1] * factor)

    for found in _PART.finditer(text):
        kind = found.lastgroup
        if kind == "open":
            opened.append((found["open"], len(pieces)))
        elif kind == "break":
            pieces.append(None)
        elif kind == "number" and opened and opened[-1][0] == "(":
            weigh(opened.pop()[1], float(found["number"]))
        elif kind == "close" and opened and opened[-1][0] == {")": "(", "]": "["}[found["close"]]:
            bracket, start = opened.pop()
            weigh(start, STRONGER if bracket == "(" else 1 / STRONGER)
        else:
            pieces.append((found["escaped"] or found[0], 1.0))
    for bracket, start in reversed(opened):
        weigh(start, STRONGER if bracket == "(" else 1 / STRONGER)
    return iter(_joined(pieces))


def _joined(pieces: list[tuple[str, float] | None]) -> list[tuple[str, float] | None]:
    """Neighbours of equal weight in one piece, so that words are read whole."""
    joined: list[tuple[str, float] | None] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if piece is not None and last is not None and piece[1] == last[1]:
            joined[-1] = (last[0] + piece[0], piece[1])
        else:
            joined.append(piece)
    return joined


def weighted_prompt(text: str) -> WeightedPrompt:
    """Read a prompt; one of up to 75 tokens and without brackets is a single chunk of weight 1."""
    tokenizer = load_tokenizer()
    chunks: list[list[tuple[int, float]]] = [[]]
    for part in weighted_parts(text):
        if part is None:
            chunks.append([])
            continue
        words, weight = part
        for token in tokenizer.encode(words):
            if len(chunks[-1]) == CHUNK:
                chunks.append([])
            chunks[-1].append((token, weight))
    return WeightedPrompt(tuple(tuple(chunk) for chunk in chunks))


def prompt_pair(prompt: str, negative: str) -> tuple[WeightedPrompt, WeightedPrompt]:
    """A prompt and a negative one with equally many chunks, as guidance needs them."""
    pair = weighted_prompt(prompt), weighted_prompt(negative)
    count = max(len(one.chunks) for one in pair)
    return pair[0].padded(count), pair[1].padded(count)
