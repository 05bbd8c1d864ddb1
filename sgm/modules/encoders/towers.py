"""The two text towers of SDXL as small networks, with the parameter names of the checkpoints.

Both are pre-norm transformers in which a token sees itself and the tokens before it (Radford et
al., 2021). They differ in names, in the activation, and in how queries, keys and values are
stored. Padding is not masked. No buffers: a tower built on the meta device is complete as soon as
its parameters are assigned. Everything runs in the dtype of the weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.modules.attention import attend
from sgm.modules.encoders.tokenizer import CONTEXT_LENGTH, VOCABULARY_SIZE


@dataclass(frozen=True)
class ClipTowerConfig:
    """Sizes of a CLIP text tower, named as in its published config; default: ViT-L/14."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12

    def __post_init__(self) -> None:
        _check_sizes(self, self.hidden_size, self.num_attention_heads)


@dataclass(frozen=True)
class OpenClipTowerConfig:
    """Sizes of an OpenCLIP text tower, named as in its published config; default: ViT-bigG/14."""

    width: int = 1280
    heads: int = 20
    layers: int = 32
    embed_dim: int = 1280

    def __post_init__(self) -> None:
        _check_sizes(self, self.width, self.heads)


_Config = TypeVar("_Config", ClipTowerConfig, OpenClipTowerConfig)


def tower_config(kind: type[_Config], sizes: Mapping[str, int] | None) -> _Config:
    """The configuration that a mapping from YAML describes; without one, the default. ValueError
    for an unknown name, a size that is no positive integer, or heads that do not divide."""
    known = [field.name for field in fields(kind)]
    unknown = [name for name in sizes or {} if name not in known]
    if unknown:
        raise ValueError(f"unknown tower sizes {unknown}; known are {known}")
    return kind(**(sizes or {}))


def _check_sizes(config: ClipTowerConfig | OpenClipTowerConfig, width: int, heads: int) -> None:
    """ValueError unless all sizes are positive and the heads divide the width."""
    for field in fields(config):
        value = getattr(config, field.name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{field.name} must be a positive integer, got {value!r}")
    if width % heads:
        raise ValueError(f"{heads} attention heads do not divide the tower's width {width}")


def _init_tower(blocks: nn.ModuleList, width: int, projections: tuple[str, ...]) -> None:
    """Normal weights scaled by width, residual projections also by depth; zero biases (CLIP)."""
    for block in blocks:
        for name, parameter in block.named_parameters():
            if parameter.ndim == 2:
                std = parameter.shape[1] ** -0.5
                if name.endswith(projections):
                    std = (2 * width * len(blocks)) ** -0.5
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


class ClipBlock(nn.Module):
    """Causal self-attention and a feed-forward with the sigmoid approximation of GELU."""

    def __init__(self, config: ClipTowerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.layer_norm1 = nn.LayerNorm(width)
        self.self_attn = nn.ModuleDict(
            {name: nn.Linear(width, width) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        )
        self.layer_norm2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {
                "fc1": nn.Linear(width, config.intermediate_size),
                "fc2": nn.Linear(config.intermediate_size, width),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] -> [B, N, width]."""
        h = self.layer_norm1(x)
        q, k, v = (self.self_attn[name](h) for name in ("q_proj", "k_proj", "v_proj"))
        x = x + self.self_attn["out_proj"](attend(q, k, v, self.heads, causal=True))
        h = self.mlp["fc1"](self.layer_norm2(x))  # [B, N, intermediate]
        return x + self.mlp["fc2"](h * torch.sigmoid(1.702 * h))


class ClipTextTower(nn.Module):
    """The text tower of CLIP; names as under `transformer.text_model` of the published files."""

    def __init__(self, config: ClipTowerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.embeddings = nn.ModuleDict(
            {
                "token_embedding": nn.Embedding(VOCABULARY_SIZE, width),
                "position_embedding": nn.Embedding(CONTEXT_LENGTH, width),
            }
        )
        blocks = nn.ModuleList(ClipBlock(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layers": blocks})
        self.final_layer_norm = nn.LayerNorm(width)
        nn.init.normal_(self.embeddings["token_embedding"].weight, std=0.02)
        nn.init.normal_(self.embeddings["position_embedding"].weight, std=0.01)
        _init_tower(blocks, width, ("out_proj.weight", "fc2.weight"))
        self.register_load_state_dict_pre_hook(_drop_position_ids)

    def forward(self, tokens: Tensor, layers: int) -> Tensor:
        """The hidden state [B, N, hidden_size] of tokens, int64 [B, N], N at most 77, after the
        first `layers` blocks, without the final norm."""
        x = self.embeddings["token_embedding"](tokens)  # [B, N, width]
        x = x + self.embeddings["position_embedding"].weight[: tokens.shape[1]]
        for block in self.encoder["layers"][:layers]:
            x = block(x)
        return x


def _drop_position_ids(
    module: nn.Module, state: dict[str, Any], prefix: str, *unused: object
) -> None:
    """Published files hold the row 0..76 as a tensor; it is no parameter and not needed."""
    state.pop(f"{prefix}embeddings.position_ids", None)


class _FusedAttention(nn.Module):
    """Causal self-attention with one projection to queries, keys and values in a row."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] -> [B, N, width]."""
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        return self.out_proj(attend(q, k, v, self.heads, causal=True))


class OpenClipBlock(nn.Module):
    """Causal self-attention and a feed-forward of four times the width with exact GELU."""

    def __init__(self, config: OpenClipTowerConfig) -> None:
        super().__init__()
        width = config.width
        self.ln_1 = nn.LayerNorm(width)
        self.attn = _FusedAttention(width, config.heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] -> [B, N, width]."""
        x = x + self.attn(self.ln_1(x))
        h = F.gelu(self.mlp["c_fc"](self.ln_2(x)))  # [B, N, 4 width]
        return x + self.mlp["c_proj"](h)


class OpenClipTextTower(nn.Module):
    """The text tower of OpenCLIP; names as under `model` of the published files."""

    def __init__(self, config: OpenClipTowerConfig) -> None:
        super().__init__()
        width = config.width
        self.token_embedding = nn.Embedding(VOCABULARY_SIZE, width)
        self.positional_embedding = nn.Parameter(torch.empty(CONTEXT_LENGTH, width))
        blocks = nn.ModuleList(OpenClipBlock(config) for _ in range(config.layers))
        self.transformer = nn.ModuleDict({"resblocks": blocks})
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, config.embed_dim))
        # The temperature of contrastive training: part of the files, of no use here.
        self.logit_scale = nn.Parameter(torch.zeros(()))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        _init_tower(blocks, width, ("out_proj.weight", "c_proj.weight"))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The states before the last block and the pooled text.

        Args:
            tokens: int64 [B, N], N at most 77; the end mark is the largest id of each row.

        Returns:
            [B, N, width], without the final norm, and [B, embed_dim], in the dtype of the weights.
        """
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        *blocks, final_block = self.transformer["resblocks"]
        for block in blocks:
            x = block(x)  # [B, N, width]
        last = final_block(x)
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        ends = self.ln_final(last[rows, tokens.argmax(dim=-1)])  # [B, width]
        return x, ends @ self.text_projection
