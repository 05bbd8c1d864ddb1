"""An edit whose colours meet those of its surroundings: no tinted box, no ghost of a drawing.

Where the network's colours drift from the picture's, an edit that is put into the picture shows
its outline. How far they drift is seen just outside of it, where both show the same. That
difference is spread over the edit, smoothly, and added. Where an object of the edit reaches across
the border the difference is no drift, so a pixel that is far from the median counts little. What
is left of the difference right at the border fades out within the width of the ring.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sgm.sparse.masks import grown

# Widths of the blurs that spread the difference, as shares of the longer side, and their weights:
# near the border the narrow ones decide, far inside only the wide ones are left.
SCALES = ((0.006, 1.0), (0.016, 0.2), (0.04, 0.04), (0.1, 0.008))
BAND = 0.016  # width of the band in which pictures are compared, as a share of the longer side
TOLERANCE = 4.0  # median absolute deviations at which a pixel's weight has fallen to exp(-1/2)
LEAST_DEVIATION = 0.01  # of the median, in [0, 1]: less is rounding
FAR = 1e-6  # weight of the median where no blur reaches
HALF = 0.5  # of what is left at the border: the edit and its surroundings meet half way


def match_border(edited: Tensor, source: Tensor, weight: Tensor, feather: int) -> Tensor:
    """Shift the colours of an edit to meet the picture around it.

    Args:
        edited, source: the network's picture and the one it is put into, [3, H, W] in [0, 1].
        weight: opacity of the edit [H, W]; the pictures are compared in a band around the pixels
            where it is 1. Without one the edit stays as it is.
        feather: width in pixels of the ring in which the weight falls to 0; 0 for a hard border.
    """
    side = max(weight.shape)
    inside = weight >= 1
    reach = max(2, round(BAND * side))
    band = grown(inside, reach) & ~inside
    if not band.any():
        return edited
    difference = source - edited
    seen = difference[:, band]  # [3, n]
    median = seen.median(dim=1, keepdim=True).values
    spread = (seen - median).abs().median(dim=1, keepdim=True).values.clamp(min=LEAST_DEVIATION)
    trust = torch.zeros_like(weight)
    trust[band] = torch.exp(-((seen - median) / (TOLERANCE * spread)).square().sum(0) / 2)
    total = torch.full_like(trust, FAR)
    shift = FAR * median[:, :, None].expand_as(difference)
    for share, importance in SCALES:
        sigma = max(1.0, share * side)
        blurred = blur(torch.cat([difference * trust, trust[None]]), sigma)
        importance *= sigma**2  # the sum of a blur's weights does not depend on its width
        shift = shift + importance * blurred[:3]
        total = total + importance * blurred[3]
    matched = edited + shift / total
    if feather:
        matched = matched + _left_at_border(source - matched, weight, feather)
    return matched.clamp(0, 1)


def _left_at_border(difference: Tensor, weight: Tensor, feather: int) -> Tensor:
    """What takes the last of a difference [3, H, W] from the ring, whole at its outer end, half at
    the border and nothing a few rings' widths inside.

    Only what differs outside of the border counts: what was there before the edit plays no part in
    it, and an edge of the edit that runs along the border stays as sharp as it is.
    """
    ring = ((weight > 0) & (weight < 1)).float()
    sums = blur(torch.cat([difference * ring, ring[None]]), feather / 2 + 1)
    seen = torch.where(sums[3] > FAR, sums[:3] / sums[3].clamp(min=FAR), 0.0)
    falling = blur((weight < 1)[None].to(difference), float(feather))[0]
    # Thin strokes and spots have the outside on all sides.
    return seen * torch.where(weight < 1, falling, falling.clamp(max=HALF))


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [C, H, W], with zeros around the picture; wide ones on a smaller copy.
    `sigma` is in pixels."""
    height, width = x.shape[1:]
    factor = min(max(1, int(sigma / 4)), height, width)
    if factor > 1:
        # Padded so that no pixel is dropped by the division.
        padded = F.pad(x[None], (0, -width % factor, 0, -height % factor))
        small = blur(F.avg_pool2d(padded, factor)[0], sigma / factor)
        large = F.interpolate(small[None], size=padded.shape[2:], mode="bilinear")
        return large[0, :, :height, :width]
    radius = int(3 * sigma)
    taps = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-(taps**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    x = F.conv2d(x[:, None], kernel[None, None, :, None], padding=(radius, 0))
    return F.conv2d(x, kernel[None, None, None, :], padding=(0, radius))[:, 0]
