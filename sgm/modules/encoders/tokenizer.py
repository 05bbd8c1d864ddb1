"""The byte-pair tokenizer shared by CLIP and OpenCLIP; its vocabulary lies beside this file."""

import gzip
import html
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path

import ftfy
import regex
import torch
from torch import Tensor

VOCABULARY = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
CONTEXT_LENGTH = 77
VOCABULARY_SIZE = 49408
START_TOKEN = VOCABULARY_SIZE - 2
END_TOKEN = VOCABULARY_SIZE - 1

# The file lists more merges than the published vocabulary has room for: 256 bytes, the same 256
# ending a word, the merges, then the two markers.
_MERGES = VOCABULARY_SIZE - 2 * 256 - 2
_END_OF_WORD = "</w>"
# English contractions, runs of letters, single digits, runs of anything else but white space.
_WORD = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", flags=regex.IGNORECASE
)


def _byte_symbols() -> dict[int, str]:
    """One printable character for each byte, in the order in which the vocabulary numbers them.

    Visible Latin-1 characters stand for themselves and come first; the other bytes (controls,
    spaces, the soft hyphen) follow, shifted to U+0100 and up (GPT-2, Radford et al., 2019).
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    symbols = {byte: chr(byte) for byte in visible}
    symbols.update({byte: chr(256 + n) for n, byte in enumerate(hidden)})
    return symbols


class BytePairTokenizer:
    """Text to token ids with a lower-cased byte-pair vocabulary (Sennrich et al., 2016). Its file
    is gzipped text: after a header line one merge ("left right") per line, best first; ValueError
    if there are too few."""

    def __init__(self, path: Path) -> None:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
        merges = [tuple(line.split()) for line in lines[1 : 1 + _MERGES]]
        if len(merges) < _MERGES or any(len(pair) != 2 for pair in merges):
            raise ValueError(f"{path} is damaged: expected {_MERGES} merges of two symbols each")
        self._symbols = _byte_symbols()
        letters = list(self._symbols.values())
        names = letters + [c + _END_OF_WORD for c in letters] + ["".join(pair) for pair in merges]
        self._ids = {name: number for number, name in enumerate(names)}
        self._rank = {pair: rank for rank, pair in enumerate(merges)}
        # Per instance, so that the memory goes away with the tokenizer; captions repeat words.
        self._word_ids = lru_cache(maxsize=65536)(self._encode_word)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without start and end marks and of any length.

        Broken Unicode and HTML entities are repaired, white space is collapsed, case dropped.
        Marker spellings such as "<end_of_text>" are ordinary text here.
        """
        clean = html.unescape(html.unescape(ftfy.fix_text(text)))
        clean = " ".join(clean.split()).lower()
        return [number for word in _WORD.findall(clean) for number in self._word_ids(word)]

    def _encode_word(self, word: str) -> tuple[int, ...]:
        """Merges the neighbouring pair of best rank until no known pair is left."""
        parts = [self._symbols[byte] for byte in word.encode("utf-8")]
        parts[-1] += _END_OF_WORD
        unknown = len(self._rank)
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(pairs, key=lambda pair: self._rank.get(pair, unknown))
            if best not in self._rank:
                break
            merged: list[str] = []
            for part in parts:
                # A part just merged is longer than best[0], so it is never merged twice.
                if merged and (merged[-1], part) == best:
                    merged[-1] += part
                else:
                    merged.append(part)
            parts = merged
        return tuple(self._ids[part] for part in parts)


@cache
def load_tokenizer() -> BytePairTokenizer:
    """The tokenizer of both towers: read at the first call, kept for the process."""
    return BytePairTokenizer(VOCABULARY)


def tokenize(texts: Sequence[str], pad_token: int) -> Tensor:
    """B prompts as rows of token ids, int64 [B, 77] on the CPU: start mark, text as far as it fits,
    end mark, and padding (0 for OpenCLIP, `END_TOKEN` for CLIP). TypeError for one string alone, or
    for a prompt that is no string."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"expected a list of prompts (strings), got {texts!r:.80}")
    tokenizer = load_tokenizer()
    rows = torch.full((len(texts), CONTEXT_LENGTH), pad_token, dtype=torch.int64, device="cpu")
    for row, text in zip(rows, texts, strict=True):
        ids = [START_TOKEN, *tokenizer.encode(text)[: CONTEXT_LENGTH - 2], END_TOKEN]
        row[: len(ids)] = torch.tensor(ids, device="cpu")
    return rows
