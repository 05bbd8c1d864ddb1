"""The UNet of SDXL (Podell et al., 2023), with the published checkpoint keys."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sgm.modules.attention import SpatialTransformer
from sgm.modules.diffusionmodules.model import Upsample
from sgm.modules.diffusionmodules.util import timestep_embedding


class ResBlock(nn.Module):
    """Residual block: two 3x3 convolutions, the time embedding added between them."""

    def __init__(self, channels: int, emb_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, out_channels, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        # The identity keeps the published key numbering: dropout stood at index 2.
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, out_channels),
            nn.SiLU(),
            nn.Identity(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)  # [B, C_out, H, W]
        h = h + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    """3x3 convolution of stride 2, padded by one on every side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)  # [B, C, ceil(H/2), ceil(W/2)]


class TimestepEmbedSequential(nn.Sequential):
    """A sequence that hands each block what it takes: the embedding, the context or neither."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


def _one_width(context_dim: int | Sequence[int]) -> int:
    """The width of the text tokens; published files of the refiner list it once a block."""
    widths = {context_dim} if isinstance(context_dim, int) else set(context_dim)
    if len(widths) != 1:
        raise ValueError(f"context_dim is {context_dim}; this UNet takes one width for all blocks")
    return widths.pop()


class UNetModel(nn.Module):
    """UNet with transformers at the levels named by `attention_resolutions`.

    Args:
        in_channels, out_channels: latent channels.
        model_channels: width of the first level; level i has `model_channels * channel_mult[i]`.
        num_res_blocks: residual blocks per level.
        attention_resolutions: downsampling factors at which transformers stand.
        channel_mult: width factors, one a level.
        num_head_channels: width of an attention head; must divide every attending width.
        transformer_depth: transformer blocks per level, one number for all or one a level.
        context_dim: width of the text tokens; as a list, the same number for every block.
        adm_in_channels: width of the pooled conditioning vector.
        num_classes: "sequential" (the pooled vector passes a small MLP), as published.
        use_linear_in_transformer: linear instead of 1x1 convolutions around the transformers.
        spatial_transformer_attn_type: accepted for published files; there is one attention here.
        norm_groups: groups of every group norm (32 as published).

    Raises:
        ValueError: an argument that no network can be built from.
    """

    TRAINING_ONLY = frozenset({"use_checkpoint", "legacy", "dropout"})

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        channel_mult: Sequence[int],
        num_head_channels: int,
        transformer_depth: int | Sequence[int],
        context_dim: int | Sequence[int],
        adm_in_channels: int,
        num_classes: str = "sequential",
        use_linear_in_transformer: bool = False,
        spatial_transformer_attn_type: str = "softmax",
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        if num_classes != "sequential":
            raise ValueError(f"num_classes is {num_classes!r}; this UNet knows 'sequential'")
        if spatial_transformer_attn_type not in ("softmax", "softmax-xformers"):
            raise ValueError(
                f"spatial_transformer_attn_type is {spatial_transformer_attn_type!r}; "
                "expected 'softmax' or 'softmax-xformers'"
            )
        levels = len(channel_mult)
        whole = isinstance(transformer_depth, int)
        depth = [transformer_depth] * levels if whole else list(transformer_depth)
        if len(depth) != levels:
            raise ValueError(f"transformer_depth has {len(depth)} entries for {levels} levels")
        self.model_channels = model_channels
        self.emb_channels = model_channels * 4
        self.head_channels = num_head_channels
        self.context_dim = _one_width(context_dim)
        self.use_linear = use_linear_in_transformer
        self.groups = norm_groups

        self.time_embed = self._embedding_mlp(model_channels)
        self.label_emb = nn.Sequential(self._embedding_mlp(adm_in_channels))
        widths = [model_channels * mult for mult in channel_mult]
        # None where a level does not attend; the middle always does.
        depths = [d if 2**n in attention_resolutions else None for n, d in enumerate(depth)]
        skips = self._build_input_blocks(in_channels, widths, depths, num_res_blocks)
        self.middle_block = TimestepEmbedSequential(
            self._resblock(widths[-1], widths[-1]),
            self._transformer(widths[-1], depth[-1]),
            self._resblock(widths[-1], widths[-1]),
        )
        self._build_output_blocks(widths, depths, num_res_blocks, skips)
        self.out = nn.Sequential(
            nn.GroupNorm(norm_groups, model_channels),
            nn.SiLU(),
            nn.Conv2d(model_channels, out_channels, 3, padding=1),
        )

    def _embedding_mlp(self, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(width, self.emb_channels),
            nn.SiLU(),
            nn.Linear(self.emb_channels, self.emb_channels),
        )

    def _resblock(self, channels: int, out_channels: int) -> ResBlock:
        return ResBlock(channels, self.emb_channels, out_channels, self.groups)

    def _transformer(self, channels: int, depth: int) -> SpatialTransformer:
        heads, rest = divmod(channels, self.head_channels)
        if rest:
            raise ValueError(
                f"num_head_channels {self.head_channels} does not divide a width of {channels}"
            )
        sizes = (channels, heads, self.head_channels, depth, self.context_dim)
        return SpatialTransformer(*sizes, self.use_linear, self.groups)

    def _layers(self, channels: int, width: int, depth: int | None) -> list[nn.Module]:
        """A residual block, and a transformer unless its depth is None."""
        block = self._resblock(channels, width)
        return [block] if depth is None else [block, self._transformer(width, depth)]

    def _build_input_blocks(
        self, in_channels: int, widths: list[int], depths: list[int | None], num_res_blocks: int
    ) -> list[int]:
        """The way down; the widths of its outputs, which the way up reads again."""
        channels = self.model_channels
        first = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(first)])
        skips = [channels]
        for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if level > 0:
                self.input_blocks.append(TimestepEmbedSequential(Downsample(channels)))
                skips.append(channels)
            for _ in range(num_res_blocks):
                layers = self._layers(channels, width, depth)
                self.input_blocks.append(TimestepEmbedSequential(*layers))
                skips.append(width)
                channels = width
        return skips

    def _build_output_blocks(
        self, widths: list[int], depths: list[int | None], num_res_blocks: int, skips: list[int]
    ) -> None:
        self.output_blocks = nn.ModuleList()
        channels = widths[-1]
        for level in reversed(range(len(widths))):
            width = widths[level]
            for index in range(num_res_blocks + 1):
                layers = self._layers(channels + skips.pop(), width, depths[level])
                if level > 0 and index == num_res_blocks:
                    layers.append(Upsample(width))
                self.output_blocks.append(TimestepEmbedSequential(*layers))
                channels = width

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor) -> Tensor:
        """Predict the noise [B, out_channels, H, W]; inputs are cast to the dtype of the weights.

        Args:
            x: scaled latents [B, in_channels, H, W].
            timesteps: [B], indices of the 1000-step schedule.
            context: text tokens [B, T, context_dim].
            y: pooled conditioning [B, adm_in_channels].
        """
        dtype = self.time_embed[0].weight.dtype
        x, context = x.to(dtype), context.to(dtype)
        emb = self.embedding(timesteps, y)
        skips = []
        h = x
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, context)
        return self.out(h)

    def embedding(self, timesteps: Tensor, y: Tensor) -> Tensor:
        """What every residual block is told of noise level and pooled conditioning, [B, 4 * C]."""
        dtype = self.time_embed[0].weight.dtype
        emb = timestep_embedding(timesteps, self.model_channels).to(dtype)  # [B, C]
        return self.time_embed(emb) + self.label_emb(y.to(dtype))
