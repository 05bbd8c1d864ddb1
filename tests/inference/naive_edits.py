"""Whole edits of preset `fast`, written down naively over dense networks that are held.

The numbers of the preset stand here once more, as literals: whoever changes one changes what edits
look like.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgm.inference.noise import NamedNoise
from sgm.sparse.masks import MaskPyramid, difference_mask, dilate, downsample_mask
from tests.inference.test_edits import networks_of
from tests.oracle import Guided, Kept, Oracle, Trajectory, levels, weighted

SIZE, LATENTS = (128, 192), (16, 24)
SEED, SCALE_FACTOR = 3, 0.13025
BASE_PROMPT = "a grassland"

# Of preset `fast`: pixels of dilation at the picture's size, half of it and so on; of a drawing,
# at most steps and at the first; of what the decoder computes around a drawing.
UNET_DILATION, DECODER_DILATION, KNOWN_DILATION = (1, 1, 1, 2, 1), 1, 1
DRAWN_DILATIONS, REGION_DILATION = (7, 40), 8
EARLY = 0.4  # of the steps
# Six of the steps of a run are recorded, denser at the first and in SDEdit more so. By the steps
# of a run:
STEPS, RECORDED = 16, [0, 2, 5, 8, 12, 15]
DRAWN_RECORDED = {15: [0, 1, 2, 5, 9, 14], 9: [0, 1, 2, 3, 5, 8], 3: [0, 1, 2]}
# The recorded steps at which a session follows another prompt, by the steps of a run.
FOLLOWED = {16: [0, 8, 15], 9: [0, 3, 8], 5: [0, 2, 4], 3: [0, 1, 2]}
FEATHER = 2  # pixels of the ring, for a picture of 192


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
    ) -> tuple[Tensor, Kept]:
        """The estimate of a held pass on latents at a level, and what it leaves."""
        left: list[Kept] = []

        def network(*inputs: Tensor) -> Tensor:
            out, now = self.unet.run(kept, masks, *inputs)
            left.append(now)
            return out

        return guided(network, x, sigma), left[0]

    def recordings(
        self, guided: Guided, z: Tensor, sigmas: Sequence[float], made: Sequence[int]
    ) -> dict[int, Kept]:
        """Of the unedited latents under the fixed noise, at the steps `made`."""
        draw = start_noise(z)
        return {i: self.recorded(guided, z + draw * sigmas[i], sigmas[i])[1] for i in made}

    def stepped(
        self,
        z: Tensor,
        sigmas: Sequence[float],
        full_pass: Callable[[int, Tensor, float], tuple[Tensor, Kept]],
    ) -> "Stepped":
        """The unedited latents noised once and denoised for themselves, in as many steps as are
        recorded.

        Args:
            full_pass: the estimate at a step, for latents at a level, and what it leaves.
        """
        made = DRAWN_RECORDED[len(sigmas) - 1]
        run, latents, recordings = Trajectory(z + start_noise(z) * sigmas[0]), {}, {}
        for i, after in zip(made, [*made[1:], len(sigmas) - 1], strict=True):
            latents[i] = run.x
            estimate, recordings[i] = full_pass(i, run.x, sigmas[i])
            run.step(estimate, sigmas[i], sigmas[after])
        return Stepped(recordings, latents, run.x)

    def step(
        self, run: Trajectory, guided: Guided, kept: Kept, masks: MaskPyramid, pair: Sequence[float]
    ) -> None:
        """Move latents from the first of two levels to the second by a held pass."""
        estimate = guided(lambda *inputs: self.unet.held(kept, masks, *inputs), run.x, pair[0])
        run.step(estimate, *pair)


@dataclass
class Stepped:
    """The unedited picture of SDEdit: recordings and latents by step, and the last latents."""

    recordings: dict[int, Kept]
    latents: dict[int, Tensor]
    end: Tensor


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


def points_of(made: Sequence[int], step: int) -> list[int]:
    """The recorded steps that a parabola goes through at another step: the two around it and the
    nearest of the rest, of two that are as near the earlier."""
    if step in made:
        return [step]
    around = [max(i for i in made if i < step), min(i for i in made if i > step)]
    rest = [i for i in made if i not in around]
    return sorted([*around, min(rest, key=lambda i: (abs(i - step), i))])


def kept_at(recordings: dict[int, Kept], step: int) -> Kept:
    """Of any step: on the parabola through three recordings (Lagrange's formula)."""
    points = points_of(sorted(recordings), step)
    if points == [step]:
        return recordings[step]
    a, b, c = points
    shares = {
        a: (step - b) * (step - c) / ((a - b) * (a - c)),
        b: (step - a) * (step - c) / ((b - a) * (b - c)),
        c: (step - a) * (step - b) / ((c - a) * (c - b)),
    }
    return weighted([recordings[i] for i in points], [shares[i] for i in points])


def followed(
    dense: Dense,
    guided: Guided,
    recordings: dict[int, Kept],
    sigmas: Sequence[float],
    known_of: Callable[[int], Tensor],
) -> Callable[[int], Kept]:
    """What is kept of a step under another prompt than that of the recordings: a parabola through
    what it changes at three steps is added to them.

    Args:
        guided: under the new prompt.
        known_of: the unedited latents at a recorded step.
    """
    changes = {}
    for i in FOLLOWED[len(sigmas) - 1]:
        now = dense.recorded(guided, known_of(i), sigmas[i])[1]
        changes[i] = weighted([now, recordings[i]], [1, -1])
    return lambda i: weighted([kept_at(recordings, i), kept_at(changes, i)], [1, 1])


def held_loop(
    dense: Dense,
    guided: Guided,
    first: Tensor,
    sigmas: Sequence[float],
    kept_of: Callable[[int], Kept],
    masks_of: Callable[[int], MaskPyramid],
    sampled: Tensor,
    known_of: Callable[[int], Tensor | None],
) -> list[Tensor]:
    """Latents after every step, where before each one the surroundings are put back, if they are
    known.

    Args:
        first: latents at the first level.
        kept_of, masks_of: of the UNet, by step.
        sampled: bool [h, w]; False where the surroundings are put back.
        known_of: the unedited latents at a step.
    """
    run, found = Trajectory(first), []
    for i in range(len(sigmas) - 1):
        known = known_of(i)
        if known is not None:
            run.x = torch.where(sampled, run.x, known)
        dense.step(run, guided, kept_of(i), masks_of(i), sigmas[i : i + 2])
        found.append(run.x)
    return found


def inpainted(
    dense: Dense,
    guided: Guided,
    z: Tensor,
    mask: Tensor,
    kept_of: Callable[[int], Kept],
    steps: int,
) -> list[Tensor]:
    """Latents after every step of inpainting, bool mask [H, W], from what is kept of a step."""
    sigmas = levels(steps)
    first = start_noise(z) * (1 + sigmas[0] ** 2) ** 0.5
    masks = with_ring(downsample_mask(mask, UNET_DILATION), mask)
    sampled = with_ring(downsample_mask(mask, KNOWN_DILATION), mask)[LATENTS]
    return held_loop(
        dense,
        guided,
        first,
        sigmas,
        kept_of,
        lambda i: masks,
        sampled,
        lambda i: z + start_noise(z) * sigmas[i],
    )


def drawn_masks(image: Tensor, drawing: Tensor) -> tuple[MaskPyramid, MaskPyramid]:
    """Masks of the UNet where a drawing differs from the picture: of most steps, of the first."""
    difference = difference_mask(image, drawing)
    late, early = (downsample_mask(dilate(difference, n), UNET_DILATION) for n in DRAWN_DILATIONS)
    return late, early


def drawn_region(image: Tensor, drawing: Tensor) -> Tensor:
    """Where the picture changes, but for the ring around it: bool [H, W]."""
    return dilate(difference_mask(image, drawing), DRAWN_DILATIONS[0])


def drawn_decoder_masks(region: Tensor) -> MaskPyramid:
    """Masks of the decoder for the region of a drawing."""
    return with_ring(downsample_mask(dilate(region, REGION_DILATION), 0), region)


def drawn(
    dense: Dense,
    guided: Guided,
    image: Tensor,
    drawing: Tensor,
    sigmas: Sequence[float],
    unedited: Stepped,
    encoder: Kept,
    kept_of: Callable[[int], Kept] | None = None,
) -> list[Tensor]:
    """Latents after every step of SDEdit and the result, of two pictures [3, H, W].

    Args:
        unedited: the picture without the drawing, stepped along the same levels.
        encoder: what its encoding left.
        kept_of: what is kept of a step, if not what `unedited` left there.
    """
    count = len(sigmas) - 1
    late, early = drawn_masks(image, drawing)
    z = dense.latents(dense.encoder.held(encoder, late, drawing[None]), "edited")
    found = held_loop(
        dense,
        guided,
        z + start_noise(z) * sigmas[0],
        sigmas,
        lambda i: kept_at(unedited.recordings, i) if kept_of is None else kept_of(i),
        lambda i: early if i < int(EARLY * count) else late,
        early[LATENTS],
        unedited.latents.get,
    )
    return [*found, torch.where(early[LATENTS], found[-1], unedited.end)]


def naive_opacity(mask: Tensor, feather: int = FEATHER) -> Tensor:
    """Of the edit at each pixel of mask [H, W]: 1 where it was marked, and less the farther away,
    smoothly, within two pixels of that or more."""
    rows, columns = torch.meshgrid(*(torch.arange(float(n)) for n in mask.shape), indexing="ij")
    distance = torch.full(mask.shape, float("inf"))
    for r, c in mask.nonzero().tolist():
        distance = torch.minimum(distance, ((rows - r) ** 2 + (columns - c) ** 2).sqrt())
    near = torch.where(distance <= feather, 1 - distance / (feather + 1), 0)
    return 3 * near**2 - 2 * near**3


def drawn_opacity(image: Tensor, drawing: Tensor) -> Tensor:
    """Of the edit at each pixel of what was drawn [3, H, W]: 1 on the drawing alone, 0 beyond its
    region and the ring."""
    near = naive_opacity(difference_mask(image, drawing), DRAWN_DILATIONS[0] + FEATHER)
    return torch.minimum(near, naive_opacity(drawn_region(image, drawing)))


def with_ring(pyramid: MaskPyramid, mask: Tensor) -> MaskPyramid:
    """A pyramid that holds all that a mask [H, W] and the ring around it touch."""
    height, width = mask.shape
    touched = (naive_opacity(mask) > 0).nonzero().tolist()
    found = {size: level.clone() for size, level in pyramid.items()}
    for (h, w), level in found.items():
        for r, c in touched:
            # Where sizes do not divide, a pixel of a level stands for all that it overlaps.
            rows = slice(r * h // height, -(-(r + 1) * h // height))
            level[rows, c * w // width : -(-(c + 1) * w // width)] = True
    return found
