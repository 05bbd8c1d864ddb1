"""Embedders of the conditioner: the text towers with their tokenizers, and size embeddings.

Class names, parameter names and weight names are those of the published configurations and files.
No embedder downloads or reads weights; they come from the one checkpoint of the model.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sgm.modules.diffusionmodules.util import timestep_embedding
from sgm.modules.encoders.prompts import WeightedPrompt
from sgm.modules.encoders.tokenizer import CONTEXT_LENGTH, END_TOKEN, START_TOKEN, tokenize
from sgm.modules.encoders.towers import (
    ClipTextTower,
    ClipTowerConfig,
    OpenClipTextTower,
    OpenClipTowerConfig,
    tower_config,
)

# Or token ids, int64 [B, L], below 0 after the end mark: there each tower pads in its own way.
Prompts = Sequence[str] | Sequence[WeightedPrompt] | Tensor
# From token ids [B, L] to states [B, L, C], and whatever else a tower returns for each row.
States = Callable[[Tensor], tuple[Tensor, ...]]


def _check_choice(name: str, value: object, known: Sequence[object]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {list(known)}, got {value!r}")


def embedded(states: States, texts: Prompts, pad_token: int) -> tuple[Tensor, ...]:
    """What a text tower makes of prompts: chunks are read one by one, weighted, and joined.

    A token's state moves away from what it is in an empty prompt, or towards it, by the token's
    weight. So a weight of 0 leaves a word out and 1 changes nothing.

    Args:
        states: the tower.
        texts: B strings, cut where they are too long; B weighted prompts of equally many chunks; or
            token ids [B, 77] with marks, below 0 where padding is to be.
        pad_token: id after the end mark.

    Returns:
        States [B, n * 77, C] for n chunks, and of what else the tower returns the first chunk's.
    """
    if isinstance(texts, Tensor):
        return states(texts.masked_fill(texts < 0, pad_token))
    prompts = [text for text in texts if isinstance(text, WeightedPrompt)]
    if not prompts:
        return states(tokenize(texts, pad_token))
    count = len(prompts[0].chunks)
    rows = torch.full((len(prompts) * count, CONTEXT_LENGTH), pad_token, dtype=torch.int64)
    weights = torch.ones(rows.shape)
    chunks = [chunk for prompt in prompts for chunk in prompt.chunks]
    for row, weight, chunk in zip(rows, weights, chunks, strict=True):
        ids = [START_TOKEN, *(token for token, _ in chunk), END_TOKEN]
        row[: len(ids)] = torch.tensor(ids)
        weight[1 : len(chunk) + 1] = torch.tensor([value for _, value in chunk])
    hidden, *rest = states(rows)
    if not all(prompt.plain for prompt in prompts):
        empty = states(tokenize([""], pad_token))[0]
        hidden = empty + (hidden - empty) * weights[..., None].to(hidden)
    joined = hidden.reshape(len(prompts), count * CONTEXT_LENGTH, -1)
    return joined, *(one[::count] for one in rest)


class FrozenCLIPEmbedder(nn.Module):
    """Prompts to hidden states of CLIP's text tower.

    Args:
        layer: "hidden", the state after some blocks, without final norm.
        layer_idx: of how many blocks.
        tower: sizes of the tower; default CLIP ViT-L/14.

    Raises:
        ValueError: another `layer`, or a number out of range.
    """

    TRAINING_ONLY = frozenset({"freeze"})

    def __init__(
        self, layer: str = "hidden", layer_idx: int = 11, tower: Mapping[str, int] | None = None
    ) -> None:
        super().__init__()
        config = tower_config(ClipTowerConfig, tower)
        _check_choice("layer", layer, ("hidden",))
        depth = config.num_hidden_layers
        if not 0 <= layer_idx <= depth:
            raise ValueError(f"layer_idx must be in 0..{depth} for this tower, got {layer_idx}")
        self.layers = layer_idx
        self.transformer = nn.ModuleDict({"text_model": ClipTextTower(config)})

    def forward(self, texts: Prompts) -> Tensor:
        """B prompts -> [B, n * 77, hidden_size] for n chunks (a string is one), device and dtype of
        the weights."""
        tower = self.transformer["text_model"]
        device = tower.final_layer_norm.weight.device
        return embedded(lambda ids: (tower(ids.to(device), self.layers),), texts, END_TOKEN)[0]


class FrozenOpenCLIPEmbedder2(nn.Module):
    """Prompts to hidden states (before the last block, without final norm) and pooled text of
    OpenCLIP's text tower. `version`, which weights these are, informs only: they come with the
    checkpoint.

    Args:
        arch: name of the architecture, for its sizes.
        layer, always_return_pooled, legacy: as published for SDXL; other values are of other
            models.
        tower: sizes of the tower in place of those of `arch`.

    Raises:
        ValueError: one of these values is another.
    """

    TRAINING_ONLY = frozenset({"freeze", "version"})

    def __init__(
        self,
        arch: str = "ViT-bigG-14",
        layer: str = "penultimate",
        always_return_pooled: bool = True,
        legacy: bool = False,
        tower: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        if tower is None:
            _check_choice("arch", arch, ("ViT-bigG-14",))
        _check_choice("layer", layer, ("penultimate",))
        _check_choice("always_return_pooled", always_return_pooled, (True,))
        if legacy:
            raise ValueError("legacy=True (text of Stable Diffusion 2) is not supported")
        self.model = OpenClipTextTower(tower_config(OpenClipTowerConfig, tower))

    def forward(self, texts: Prompts) -> tuple[Tensor, Tensor]:
        """B prompts -> hidden [B, n * 77, width] for n chunks (a string is one) and pooled
        [B, embed_dim], of the first chunk. Device and dtype are those of the weights."""
        device = self.model.positional_embedding.device
        hidden, pooled = embedded(lambda ids: self.model(ids.to(device)), texts, 0)
        return hidden, pooled


class ConcatTimestepEmbedderND(nn.Module):
    """Numbers (picture sizes, a score) as sinusoidal embeddings, each on its own, side by side;
    `outdim` is the width of one."""

    def __init__(self, outdim: int) -> None:
        super().__init__()
        if outdim < 1:
            raise ValueError(f"outdim must be positive, got {outdim}")
        self.outdim = outdim

    def forward(self, x: Tensor) -> Tensor:
        """[B] or [B, n] of any real dtype -> float32 [B, n * outdim] on the same device."""
        if x.ndim not in (1, 2):
            raise ValueError(f"expected shape [B] or [B, n], got {list(x.shape)}")
        embedding = timestep_embedding(x.flatten(), self.outdim)  # [B * n, outdim]
        return embedding.reshape(len(x), -1)
