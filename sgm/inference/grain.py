"""Grain like that of a photo, made for an edit of it.

Networks paint smoothly, and a smooth patch in a grainy picture shows. The grain is measured where
the surroundings are flattest, since texture is no grain; in two bands, since cameras and lossy
formats leave it coarser than single pixels; and with the covariance of the channels. The grain that
the edit has already is subtracted. The random draws are always the same, so that equal edits get
equal grain.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sgm.inference.border import blur

BLOCK = 16  # side in pixels of the blocks among which the flattest are looked for
REACH = 0.1  # how far around an edit they may lie, as a share of the longer side
FLATTEST = 0.25  # of the blocks, in order of their energy, the one that counts
ALIKE = 1.3  # times its energy, up to which blocks are averaged with it
FINE, COARSE = 0.8, 2.0  # sigmas of the blurs between the two bands and below them, in pixels
LEAST = 0.75 / 255  # standard deviation in the fine band under which there is no grain
SEEN = 0.25  # of the energy: less that is lacking is not seen, and may be the measure's error
DARK, BRIGHT = 0.02, 0.98  # mean of a channel beyond which its grain may be cut off
SEED = 20


def grain_for(edited: Tensor, source: Tensor, weight: Tensor) -> Tensor:
    """What an edit lacks of the grain around it: [3, H, W], mean 0; all zeros if the surroundings
    have no grain, or no more than the edit.

    Args:
        edited, source: the picture of the edit and the one it is put into, [3, H, W] in [0, 1].
        weight: opacity of the edit [H, W]; its surroundings are where it is 0.
    """
    sigma = max(float(BLOCK), REACH * max(weight.shape) / 3)
    around = (blur((weight > 0)[None].float(), sigma)[0] > 1e-3) & (weight <= 0)
    wanted, had = _covariances(source, around), _covariances(edited, weight >= 1)
    if wanted is None or _energy(wanted)[0] < 3 * LEAST**2:
        return torch.zeros_like(edited)
    if had is not None:
        lacking = 1 - _energy(had) / _energy(wanted)
        wanted = wanted * torch.where(lacking > SEEN, lacking, 0.0)[:, None, None]
    return _with_covariances(wanted, edited)


def _with_covariances(wanted: Tensor, like: Tensor) -> Tensor:
    """Noise like a picture [3, H, W], with these covariances of its channels in the two bands
    [2, 3, 3]."""
    draws = torch.randn(2, *like.shape, generator=torch.Generator().manual_seed(SEED)).to(like)
    # One part is fine; the other all the rest, also what is coarser than both bands.
    parts = (_bands(draws[0])[0], draws[1] - _bands(draws[1])[0])
    # Each part has a little of the other's band, so how much of both is wanted is to be solved.
    energies = torch.stack([torch.stack([band.var() for band in _bands(part)]) for part in parts])
    energies, wanted = energies.cpu(), wanted.cpu()  # as small as these are, a card would be slow
    amounts = torch.linalg.solve(energies.t(), wanted.flatten(1)).view_as(wanted)
    roots = torch.stack([_root(amount) for amount in amounts]).to(like)
    mixed = [torch.einsum("cd,dhw->chw", m, p) for m, p in zip(roots, parts, strict=True)]
    return mixed[0] + mixed[1]


def _bands(x: Tensor) -> tuple[Tensor, Tensor]:
    """The fine and the coarse band of [3, H, W]."""
    ones = torch.ones_like(x[:1])
    fine, coarse = (blur(x, sigma) / blur(ones, sigma) for sigma in (FINE, COARSE))
    return x - fine, fine - coarse


def _covariances(picture: Tensor, where: Tensor) -> Tensor | None:
    """Covariances of the channels in the fine and in the coarse band [2, 3, 3], where a picture
    [3, H, W] in [0, 1] is flattest within a mask, bool [H, W]; None if no block lies there."""

    def mean(x: Tensor) -> Tensor:
        """Over the blocks: [n, C]."""
        sums = F.avg_pool2d(x * where, BLOCK)
        return (sums / share.clamp(min=1e-6)).flatten(1)[:, there].t()

    share = F.avg_pool2d(where[None].float(), BLOCK)[0]
    there = (share >= 0.5).flatten()
    if not there.any():
        return None
    products = [torch.einsum("chw,dhw->cdhw", band, band).flatten(0, 1) for band in _bands(picture)]
    found = [mean(product) for product in products]  # [n, 9] each
    level = mean(picture)
    inside = ((level > DARK) & (level < BRIGHT)).all(1)
    if inside.any():
        found = [block[inside] for block in found]
    energy = found[0][:, [0, 4, 8]].sum(1)
    chosen = energy <= ALIKE * energy.quantile(FLATTEST)
    return torch.stack([block[chosen].mean(0).view(3, 3) for block in found])


def _energy(covariances: Tensor) -> Tensor:
    """Of each of several covariances [n, C, C], summed over the channels."""
    return covariances.diagonal(dim1=1, dim2=2).sum(1)


def _root(matrix: Tensor) -> Tensor:
    """The symmetric root of a covariance [C, C]; what is negative in it counts as nothing."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.t()
