"""Text towers on prompts of several chunks: read one by one, weighted, joined.

A token's state moves away from what it is in an empty prompt, or towards it, by the token's weight.
So a weight of 0 leaves a word out and 1 changes nothing. The pooled text is that of the first
chunk.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sgm.modules.encoders.prompts import WeightedPrompt
from sgm.modules.encoders.tokenizer import END_TOKEN, START_TOKEN, tokenize

# Or token ids, int64 [B, L], below 0 after the end mark: there each tower pads in its own way.
Prompts = Sequence[str] | Sequence[WeightedPrompt] | Tensor
# From token ids [B, L] to states [B, L, C], and whatever else a tower returns for each row.
States = Callable[[Tensor], tuple[Tensor, ...]]


def embedded(states: States, texts: Prompts, pad_token: int, length: int) -> tuple[Tensor, ...]:
    """What a text tower makes of prompts.

    Args:
        states: the tower.
        texts: B strings, cut where they are too long; B weighted prompts of equally many chunks; or
            token ids [B, length] with marks, below 0 where padding is to be.
        pad_token: id after the end mark.
        length: tokens of a row, marks included.

    Returns:
        States [B, n * L, C] for n chunks, and of what else the tower returns the first chunk's.
    """
    if isinstance(texts, Tensor):
        return states(texts.masked_fill(texts < 0, pad_token))
    prompts = [text for text in texts if isinstance(text, WeightedPrompt)]
    if not prompts:
        return states(tokenize(texts, pad_token, length))
    count = len(prompts[0].chunks)
    rows = torch.full((len(prompts) * count, length), pad_token, dtype=torch.int64)
    weights = torch.ones(rows.shape)
    chunks = [chunk[: length - 2] for prompt in prompts for chunk in prompt.chunks]
    for row, weight, chunk in zip(rows, weights, chunks, strict=True):
        ids = [START_TOKEN, *(token for token, _ in chunk), END_TOKEN]
        row[: len(ids)] = torch.tensor(ids)
        weight[1 : len(chunk) + 1] = torch.tensor([value for _, value in chunk])
    hidden, *rest = states(rows)
    if not all(prompt.plain for prompt in prompts):
        empty = states(tokenize([""], pad_token, length))[0]
        hidden = empty + (hidden - empty) * weights[..., None].to(hidden)
    joined = hidden.reshape(len(prompts), count * length, -1)
    return joined, *(one[::count] for one in rest)
