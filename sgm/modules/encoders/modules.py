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

OPEN_CLIP_TOWERS = {"ViT-bigG-14": OpenClipTowerConfig()}


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {list(known)}, got {value!r}")


def _check_max_length(max_length: int) -> None:
    if not 2 < max_length <= CONTEXT_LENGTH:
        raise ValueError(f"max_length must be in 3..{CONTEXT_LENGTH}, got {max_length}")


def embedded(states: States, texts: Prompts, pad_token: int, length: int) -> tuple[Tensor, ...]:
    """What a text tower makes of prompts: chunks are read one by one, weighted, and joined.

    A token's state moves away from what it is in an empty prompt, or towards it, by the token's
    weight. So a weight of 0 leaves a word out and 1 changes nothing.

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


class FrozenCLIPEmbedder(nn.Module):
    """Prompts to hidden states of CLIP's text tower.

    Args:
        layer: "hidden", the state after `layer_idx` blocks without final norm (SDXL), or "last",
            the state after all blocks with it.
        layer_idx: blocks to run with layer "hidden", 0 to all.
        max_length: tokens per prompt, at most 77.
        freeze: parameters need no gradient. The name of the class is a published one: unfrozen,
            it trains like any other module.
        tower: sizes of the tower; default CLIP ViT-L/14.

    Raises:
        ValueError: unknown `layer`, or a number out of range.
    """

    def __init__(
        self,
        layer: str = "hidden",
        layer_idx: int = 11,
        max_length: int = CONTEXT_LENGTH,
        freeze: bool = True,
        tower: ClipTowerConfig | Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        config = tower_config(ClipTowerConfig, tower)
        depth = config.num_hidden_layers
        _check_choice("layer", layer, ("hidden", "last"))
        _check_max_length(max_length)
        if layer == "hidden" and not 0 <= layer_idx <= depth:
            raise ValueError(f"layer_idx must be in 0..{depth} for this tower, got {layer_idx}")
        self.layer = layer
        self.layers = layer_idx if layer == "hidden" else depth
        self.max_length = max_length
        self.transformer = nn.ModuleDict({"text_model": ClipTextTower(config)})
        self.requires_grad_(not freeze)

    def forward(self, texts: Prompts) -> Tensor:
        """B prompts -> [B, n * max_length, hidden_size] for n chunks (a string is one), device and
        dtype of the weights."""
        tower = self.transformer["text_model"]
        device = tower.final_layer_norm.weight.device

        def states(tokens: Tensor) -> tuple[Tensor]:
            hidden = tower(tokens.to(device), self.layers)
            return (tower.final_layer_norm(hidden) if self.layer == "last" else hidden,)

        return embedded(states, texts, END_TOKEN, self.max_length)[0]


class FrozenOpenCLIPEmbedder2(nn.Module):
    """Prompts to hidden states and pooled text of OpenCLIP's text tower.

    Args:
        arch: name of the architecture; gives the sizes when `tower` is absent.
        version: which published weights these are. Informs only: weights come with the checkpoint.
        max_length: tokens per prompt, at most 77.
        freeze: parameters need no gradient.
        layer: "penultimate" (SDXL), the state before the last block, or "last", after it; both
            without final norm.
        always_return_pooled: also return the pooled text, as SDXL needs it.
        legacy: must be False; True is the arrangement of Stable Diffusion 2.
        tower: sizes of the tower in place of those of `arch`.

    Raises:
        ValueError: unknown `arch` or `layer`, `legacy` True, or a number out of range.
    """

    def __init__(
        self,
        arch: str = "ViT-bigG-14",
        version: str = "laion2b_s39b_b160k",
        max_length: int = CONTEXT_LENGTH,
        freeze: bool = True,
        layer: str = "penultimate",
        always_return_pooled: bool = True,
        legacy: bool = False,
        tower: OpenClipTowerConfig | Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        if tower is None:
            _check_choice("arch", arch, tuple(OPEN_CLIP_TOWERS))
            tower = OPEN_CLIP_TOWERS[arch]
        _check_choice("layer", layer, ("penultimate", "last"))
        _check_max_length(max_length)
        if legacy:
            raise ValueError("legacy=True (text of Stable Diffusion 2) is not supported")
        self.version = version
        self.layer = layer
        self.max_length = max_length
        self.return_pooled = always_return_pooled
        self.model = OpenClipTextTower(tower_config(OpenClipTowerConfig, tower))
        self.requires_grad_(not freeze)

    def forward(self, texts: Prompts) -> Tensor | tuple[Tensor, Tensor]:
        """B prompts -> hidden [B, n * max_length, width] for n chunks (a string is one) and, if
        asked for, pooled [B, embed_dim], of the first chunk.

        Device and dtype are those of the weights.
        """
        device = self.model.positional_embedding.device

        def states(tokens: Tensor) -> tuple[Tensor, Tensor]:
            penultimate, last, pooled = self.model(tokens.to(device))
            return (penultimate if self.layer == "penultimate" else last), pooled

        hidden, pooled = embedded(states, texts, 0, self.max_length)
        return (hidden, pooled) if self.return_pooled else hidden


class ConcatTimestepEmbedderND(nn.Module):
    """Numbers (picture sizes, a score) as sinusoidal embeddings, each on its own, side by side.

    Args:
        outdim: width of the embedding of one number.

    Raises:
        ValueError: `outdim` is not positive.
    """

    def __init__(self, outdim: int) -> None:
        super().__init__()
        if outdim < 1:
            raise ValueError(f"outdim must be positive, got {outdim}")
        self.outdim = outdim

    def forward(self, x: Tensor) -> Tensor:
        """[B] or [B, n] of any real dtype -> float32 [B, n * outdim] on the same device.

        Raises:
            ValueError: `x` has another number of axes.
        """
        if x.ndim == 1:
            x = x[:, None]
        if x.ndim != 2:
            raise ValueError(f"expected shape [B] or [B, n], got {list(x.shape)}")
        embedding = timestep_embedding(x.flatten(), self.outdim)  # [B * n, outdim]
        return embedding.reshape(len(x), -1)
