"""Whole edits of preset `fast`, written down naively over dense networks that are held.

The numbers of the preset stand here once more, as literals: whoever changes one changes what edits
look like.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sgm.inference.noise import NamedNoise
from sgm.sparse.masks import MaskPyramid, difference_mask, dilate, downsample_mask
from tests.inference.test_edits import networks_of
from tests.oracle import Guided, Kept, Oracle, Trajectory, between, levels

SIZE, LATENTS = (128, 192), (16, 24)
SEED, SCALE_FACTOR = 3, 0.13025
BASE_PROMPT = "a grassland"

# Of preset `fast`: pixels of dilation at the picture's size, half of it and so on; of a drawing,
# at most steps and at the first; of what the decoder computes around a drawing.
UNET_DILATION, DECODER_DILATION, KNOWN_DILATION = (1, 1, 1, 2, 1), 1, 1
DRAWN_DILATIONS, REGION_DILATION = (7, 40), 8
EARLY, LEADING = 0.4, 0.15  # of the steps
DRAWN_REFRESH = 5  # steps
RECORDED = [0, 4, 7, 11]  # of 12 steps: the first, the last, and no two more than 4 apart
FEATHER = 4


class Dense:
    """The dense engine of the same weights, its networks ready to be held."""

    def __init__(self) -> None:
        self.networks = networks_of("original")
        self.first_stage = self.networks.engine.first_stage_model
        self.unet, self.encoder = Oracle(self.networks.unet), Oracle(self.networks.encoder)
        self.decoder = Oracle(self.networks.decoder)

    def guided(self, prompt: str) -> Guided:
        c, uc = self.networks.condition(prompt, "", SIZE)
        return Guided(*(torch.cat([uc[key], c[key]]) for key in ("crossattn", "vector")))

    def latents(self, encoded: Tensor, name: str) -> Tensor:
        """Scaled, of what the encoder returned; `name` of the one draw."""
        mean, logvar = self.first_stage.quant_conv(encoded).chunk(2, dim=1)
        draw = NamedNoise(SEED)(f"posterior/{name}", mean.shape)
        return SCALE_FACTOR * (mean + (logvar.clamp(-30, 20) / 2).exp() * draw)

    def decoder_input(self, z: Tensor) -> Tensor:
        return self.first_stage.post_quant_conv(z / SCALE_FACTOR)

    def recorded(self, guided: Guided, x: Tensor, sigma: float) -> tuple[Tensor, Kept]:
        """The estimate for unedited latents at a level, and what the pass leaves."""
        left: list[Kept] = []

        def network(*inputs: Tensor) -> Tensor:
            out, kept = self.unet.record(*inputs)
            left.append(kept)
            return out

        return guided(network, x, sigma), left[0]

    def updated(
        self, guided: Guided, x: Tensor, sigma: float, kept: Kept, masks: MaskPyramid
    ) -> Kept:
        """What a held pass on latents at a level leaves."""
        left: list[Kept] = []

        def network(*inputs: Tensor) -> Tensor:
            left.append(self.unet.updated(kept, masks, *inputs))
            return inputs[0]

        guided(network, x, sigma)
        return left[0]

    def recordings(
        self, guided: Guided, z: Tensor, sigmas: Sequence[float], made: Sequence[int]
    ) -> dict[int, Kept]:
        """Of the unedited latents under the fixed noise, at the steps `made`."""
        draw = start_noise(z)
        return {i: self.recorded(guided, z + draw * sigmas[i], sigmas[i])[1] for i in made}

    def step(
        self, run: Trajectory, guided: Guided, kept: Kept, masks: MaskPyramid, pair: Sequence[float]
    ) -> None:
        """Move latents from the first of two levels to the second by a held pass."""
        estimate = guided(lambda *inputs: self.unet.held(kept, masks, *inputs), run.x, pair[0])
        run.step(estimate, *pair)


class Base:
    """What a session keeps of a picture [3, H, W]: latents, and recordings under its prompt."""

    def __init__(
        self, dense: Dense, image: Tensor, sigmas: Sequence[float], made: Sequence[int]
    ) -> None:
        encoded, self.encoder = dense.encoder.record(image[None])
        self.z = dense.latents(encoded, "init")
        self.decoder = dense.decoder.record(dense.decoder_input(self.z))[1]
        self.recordings = dense.recordings(dense.guided(BASE_PROMPT), self.z, sigmas, made)

    def decoded(self, dense: Dense, masks: MaskPyramid, z: Tensor) -> Tensor:
        """Picture [3, H, W] in [0, 1] of edited latents."""
        x = dense.decoder.held(self.decoder, masks, dense.decoder_input(z))[0]
        return ((x + 1) / 2).clamp(0, 1)


def start_noise(z: Tensor) -> Tensor:
    return NamedNoise(SEED)("start", z.shape)


def kept_at(recordings: dict[int, Kept], step: int) -> Kept:
    """Of any step: linear between the two recordings around it."""
    before = max(i for i in recordings if i <= step)
    after = min(i for i in recordings if i >= step)
    if before == after:
        return recordings[step]
    return between(recordings[before], recordings[after], (step - before) / (after - before))


def held_loop(
    dense: Dense,
    guided: Guided,
    z: Tensor,
    first: Tensor,
    sigmas: Sequence[float],
    kept_of: Callable[[int], Kept],
    masks_of: Callable[[int], MaskPyramid],
    sampled_of: Callable[[int], Tensor],
) -> list[Tensor]:
    """Latents after every step, where before each one the surroundings are put back, noised.

    Args:
        first: latents at the first level.
        kept_of, masks_of: of the UNet, by step.
        sampled_of: bool [h, w], by step; False where the surroundings are put back.
    """
    run, found = Trajectory(first), []
    for i in range(len(sigmas) - 1):
        known = z + start_noise(z) * sigmas[i]
        run.x = torch.where(sampled_of(i), run.x, known)
        dense.step(run, guided, kept_of(i), masks_of(i), sigmas[i : i + 2])
        found.append(run.x)
    return found


def inpainted(
    dense: Dense, guided: Guided, z: Tensor, mask: Tensor, recordings: dict[int, Kept], steps: int
) -> list[Tensor]:
    """Latents after every step of inpainting, bool mask [H, W], from recordings by step."""
    sigmas = levels(steps)
    first = start_noise(z) * (1 + sigmas[0] ** 2) ** 0.5
    masks = downsample_mask(mask, UNET_DILATION)
    sampled = downsample_mask(mask, KNOWN_DILATION)[LATENTS]
    return held_loop(
        dense,
        guided,
        z,
        first,
        sigmas,
        lambda i: kept_at(recordings, i),
        lambda i: masks,
        lambda i: sampled,
    )


def drawn_masks(image: Tensor, drawing: Tensor) -> tuple[MaskPyramid, MaskPyramid]:
    """Masks of the UNet where a drawing differs from the picture: of most steps, of the first."""
    difference = difference_mask(image, drawing)
    late, early = (downsample_mask(dilate(difference, n), UNET_DILATION) for n in DRAWN_DILATIONS)
    return late, early


def drawn_region(image: Tensor, drawing: Tensor) -> Tensor:
    """Where the picture may change: bool [H, W]."""
    difference = difference_mask(image, drawing)
    return dilate(dilate(difference, DRAWN_DILATIONS[0]), REGION_DILATION)


def drawn(
    dense: Dense, guided: Guided, image: Tensor, drawing: Tensor, sigmas: Sequence[float]
) -> list[Tensor]:
    """Latents after every step of SDEdit and the result, of two pictures [3, H, W]. The unedited
    one is stepped along, by longer steps; its recordings stand until the next.
    """
    count = len(sigmas) - 1
    leading = int(LEADING * count)
    made = [*range(leading), *range(leading, count, DRAWN_REFRESH)]
    late, early = drawn_masks(image, drawing)
    encoded, kept = dense.encoder.record(image[None])
    z = dense.latents(encoded, "init")
    z_drawn = dense.latents(dense.encoder.held(kept, late, drawing[None]), "edited")
    init, edited = (Trajectory(x + start_noise(z) * sigmas[0]) for x in (z, z_drawn))
    found = []
    for i in range(count):
        if i in made:
            edited.x = torch.where(early[LATENTS], edited.x, init.x)
            masks = early if i < int(EARLY * count) else late
            estimate, kept = dense.recorded(guided, init.x, sigmas[i])
            init.step(estimate, sigmas[i], sigmas[[*made[1:], count][made.index(i)]])
        dense.step(edited, guided, kept, masks, sigmas[i : i + 2])
        found.append(edited.x)
    return [*found, torch.where(early[LATENTS], edited.x, init.x)]


def naive_opacity(mask: Tensor) -> Tensor:
    """Of the edit at each pixel of mask [H, W]: a fifth at the border, 1 from the fifth pixel in;
    the deepest pixels within reach of a pixel count as 1 where they are less deep."""
    height, width = mask.shape
    depth = torch.zeros(height, width)
    for d in range(FEATHER + 1):  # a pixel is deeper than d if all around it are in the mask
        for r, c in mask.nonzero().tolist():
            around = mask[max(r - d, 0) : r + d + 1, max(c - d, 0) : c + d + 1]
            depth[r, c] += around.all()
    weight = torch.zeros(height, width)
    for r, c in mask.nonzero().tolist():
        rows, columns = (slice(max(n - FEATHER, 0), n + FEATHER + 1) for n in (r, c))
        weight[r, c] = depth[r, c] / depth[rows, columns].max()
    return weight.clamp(max=1)
