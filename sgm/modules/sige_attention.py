"""The transformer blocks with a sparse pass: queries only where the edit is.

Published behaviour: self-attention keys and values come from the whole map (recorded tokens, the
active ones overwritten) at every block; cross-attention keys and values are recorded.
"""

import torch
from einops import rearrange
from torch import Tensor

from sgm.modules.attention import BasicTransformerBlock, SpatialTransformer, attend
from sgm.sparse.active import CONV1X1
from sgm.sparse.backends.base import Prologue
from sgm.sparse.matmul import linear
from sgm.sparse.modules import as_map, as_rows, conv_rows, scatter_map
from sgm.sparse.network import SparseModule
from sgm.sparse.norm import group_norm_affine


def attend_unfused(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """`attend` as two batched matrix products, which is how the published engine attends to
    recorded keys and values, and how its MACs are counted."""
    q, k, v = (rearrange(t, "b n (h d) -> (b h) n d", h=heads) for t in (q, k, v))
    weights = torch.bmm(q * q.shape[2] ** -0.5, k.transpose(1, 2)).softmax(dim=-1)
    return rearrange(torch.bmm(weights, v), "(b h) n d -> b n (h d)", h=heads)


class SIGEBasicTransformerBlock(SparseModule, BasicTransformerBlock):
    """A transformer block that can run on the active tokens only."""

    def _record(self, x: Tensor, context: Tensor) -> Tensor:
        """Dense, and keeps the keys and values of the context."""
        self.site.put(key=self.attn2.to_k(context), value=self.attn2.to_v(context))
        return self._dense(x, context)

    def forward_active(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Sparse pass.

        Args:
            x: active tokens [B, n, dim].
            tokens: all tokens [B, H * W, dim], the active ones up to date.

        Returns:
            [B, n, dim].
        """
        attn1, attn2, heads = self.attn1, self.attn2, self.attn1.heads
        everything = self.norm1(tokens)
        k, v = attn1.to_k(everything), attn1.to_v(everything)
        x = x + attn1.to_out(attend(attn1.to_q(self.norm1(x)), k, v, heads))
        k, v = self.site.tensor("key", x), self.site.tensor("value", x)
        q = attn2.to_q(self.norm2(x))
        x = x + attn2.to_out(attend_unfused(q, k, v, attn2.heads))
        return x + self.ff(self.norm3(x))


class SIGESpatialTransformer(SparseModule, SpatialTransformer):
    """A spatial transformer that can run on the active pixels only."""

    def _record(self, x: Tensor, context: Tensor) -> Tensor:
        if self.use_linear:
            raise ValueError("use_linear_in_transformer must be False in a sparse network.")
        norm = group_norm_affine(x, self.norm)
        size = (x.shape[2], x.shape[3])
        tokens = as_rows(self.proj_in(norm(x).to(x.dtype)))  # [B, H*W, D]
        for depth, block in enumerate(self.transformer_blocks):
            self.site.put(**{f"tokens{depth}": tokens})
            tokens = block(tokens, context)
        out = x + self.proj_out(as_map(tokens, size))
        self.site.put(norm=norm, out=out)
        return out

    def _sparse(self, x: Tensor) -> Tensor:
        site = self.site
        active = site.active(CONV1X1, x)
        rows = conv_rows(site, x, active, self.proj_in, Prologue(site.affine("norm", x)))
        for depth, block in enumerate(self.transformer_blocks):
            known = site.tensor(f"tokens{depth}", x)
            tokens = site.ops.scatter(known, active, rows, in_place=site.mask_specific)
            rows = block.forward_active(rows, tokens)  # [B, n, D]
        weight = self.proj_out.weight[:, :, 0, 0]
        rows = linear(rows, weight, self.proj_out.bias)  # [B, n, C]
        return scatter_map(site, site.tensor("out", x), active, rows, x)
