"""SDEdit (Meng et al., 2022): noise a picture that was drawn on, and denoise it again."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sgm.inference.between import leading
from sgm.inference.composite import composite
from sgm.inference.held import HeldPlan, Kept
from sgm.inference.networks import Networks, recording, sparse, state_of
from sgm.inference.noise import Noise
from sgm.inference.plan import Edit, OnStep, Plan, check_sizes
from sgm.inference.recipes import Recipe, StepMasks
from sgm.modules.diffusionmodules.sampling import Denoise, Solver
from sgm.sparse.masks import MaskPyramid, difference_mask


@dataclass(frozen=True, eq=False)
class SDEdit(Edit):
    """A picture that was drawn on, and the picture before.

    Attributes:
        init: the unedited picture [3, H, W] in [-1, 1]; a dense run does without it.
        edited: the picture that was drawn on, same shape.
        strength: share of the schedule that is run, above 0 to 1.

    Raises:
        ValueError: the pictures differ in size, or a side is no multiple of 64.
    """

    init: Tensor | None
    edited: Tensor
    strength: float = 0.8

    def __post_init__(self) -> None:
        check_sizes({"init": self.init, "edited": self.edited})

    @property
    def size(self) -> tuple[int, int]:
        """See `Edit.size`."""
        return self.edited.shape[1], self.edited.shape[2]

    @property
    def ratio(self) -> float | None:
        """See `Edit.ratio`."""
        if self.init is None:
            return None
        return difference_mask(self.init, self.edited).float().mean().item()

    def prepare(self, networks: Networks, recipe: Recipe | None, noise: Noise) -> Plan:
        """See `Edit.prepare`. A dense run encodes the edited picture alone; a sparse one the
        unedited in full and then the edited sparsely (published order).

        Raises:
            ValueError: a sparse run without the unedited picture, or with an equal one.
        """
        if recipe is None:
            return SDEditPlan(networks.encode(self.edited, noise, "edited"), self.strength)
        difference = self._difference()
        masks = recipe.sdedit_masks(difference)
        with recording(networks.encoder, masks):
            z_init = networks.encode(self.init, noise, "init")
        with sparse(networks.encoder, masks):
            z_edited = networks.encode(self.edited, noise, "edited")
        networks.forget()  # of the encoder, before the UNet needs the memory
        decoder_masks = recipe.sdedit_decoder_masks(difference) if recipe.sparse_decode else None
        steps = recipe.sdedit_steps(difference, masks)
        return SDEditPlan(
            z_edited,
            self.strength,
            z_init,
            steps,
            decoder_masks,
            refresh=recipe.sdedit_refresh,
            leading=recipe.sdedit_leading,
        )

    def held(self, networks: Networks, z: Tensor, recipe: Recipe, noise: Noise, kept: Kept) -> Plan:
        """The plan of an edit that is held to a picture whose latents z and recordings are kept.

        Raises:
            ValueError: without the unedited picture, or with an equal one.
        """
        difference = self._difference()
        masks = recipe.sdedit_masks(difference)
        state_of(networks.encoder).use(kept.encoder)
        with sparse(networks.encoder, masks):
            edited = networks.encode(self.edited, noise, "edited")
        decoder_masks = recipe.sdedit_decoder_masks(difference)
        steps = recipe.sdedit_steps(difference, masks)
        return HeldPlan(
            z, edited, None, steps, self.strength, kept=kept, decoder_masks=decoder_masks
        )

    def _difference(self) -> Tensor:
        """Where the pictures differ, bool [H, W]; ValueError without the unedited one."""
        if self.init is None:
            raise ValueError("A sparse SDEdit run needs the unedited picture too.")
        return difference_mask(self.init, self.edited)

    def finish(self, picture: Tensor, recipe: Recipe) -> Tensor:
        """See `Edit.finish`; the edited part is where the pictures differ, dilated."""
        if recipe.feather is None or self.init is None:
            return picture
        region = recipe.sdedit_region(difference_mask(self.init, self.edited))
        return composite(picture, (self.edited + 1) / 2, region, recipe.feather)


@dataclass(frozen=True, eq=False)
class SDEditPlan(Plan):
    """What is prepared before the loop, and what it ends in.

    Attributes:
        edited: scaled latents of the edited picture [1, C, h, w].
        strength: share of the schedule that is run.
        init: latents of the unedited picture; None in a dense run.
        masks: of the UNet in a sparse run; None in a dense one.
        decoder_masks: to decode sparsely, after a full pass of `init` that records; None to decode
            the result alone, in full.
        refresh: steps from one recording to the next.
        leading: share of the steps, from the first, that are all recorded.
    """

    edited: Tensor
    strength: float
    init: Tensor | None = None
    masks: StepMasks | None = None
    decoder_masks: MaskPyramid | None = None
    refresh: int = 1
    leading: float = 0.0

    def steps(self, networks: Networks, solver: Solver) -> int:
        """See `Plan.steps`."""
        return len(solver.sigmas(networks.engine.denoiser.discretization, self.strength)) - 1

    def denoise(
        self,
        networks: Networks,
        denoise: Denoise,
        solver: Solver,
        noise: Noise,
        on_step: OnStep,
    ) -> "SDEditPlan":
        """The sampling loop over the last `strength` of the schedule. In a sparse run both latents
        get the same noise and are stepped side by side: a full pass on the unedited one, which
        records, and a sparse pass on the edited one. The unedited one makes longer steps where
        not all are recorded, and brings the edited one back to itself outside of the masks."""
        sigmas = solver.sigmas(networks.engine.denoiser.discretization, self.strength)
        draw = noise("start", self.edited.shape).to(self.edited)
        size = torch.sqrt(1 + sigmas[0] ** 2).to(draw)

        def start(z: Tensor) -> Tensor:
            return solver.start((z + draw * sigmas[0].to(draw)) / size, sigmas)

        edited, edited_state = start(self.edited), None
        init, init_state = None if self.init is None else start(self.init), None
        count, masks = len(sigmas) - 1, None
        made = leading(count, self.refresh, self.leading)
        levels = sigmas[[*made, count]]  # of the unedited one
        for i in range(count):
            if init is not None and self.masks is not None and i in made:
                masks = self.masks.at(i, count)
                edited = self._outside_of(init, edited)
                with recording(networks.unet, masks):
                    number = made.index(i)
                    init, init_state = solver.step(denoise, init, number, levels, init_state)
            with sparse(networks.unet, masks):
                edited, edited_state = solver.step(denoise, edited, i, sigmas, edited_state)
            on_step(i, edited)
        if init is not None:
            edited = self._outside_of(init, edited)
        return replace(self, edited=edited, init=init)

    def _outside_of(self, init: Tensor, edited: Tensor) -> Tensor:
        """The edited latents in the masks of the first steps, the unedited ones outside, where
        recordings were not refreshed at every step. (Where they were, the two are the same.)"""
        if self.refresh == 1 or self.masks is None:
            return edited
        inside = self.masks.first[edited.shape[2], edited.shape[3]].to(edited.device)
        return torch.where(inside, edited, init)

    def decode(self, networks: Networks) -> Tensor:
        """See `Plan.decode`."""
        if self.decoder_masks is not None:
            with recording(networks.decoder, self.decoder_masks):
                networks.decode(self.init)
        with sparse(networks.decoder, self.decoder_masks):
            return networks.decode(self.edited)

    def for_refiner(self) -> "SDEditPlan":
        """See `Plan.for_refiner`; in a sparse run the base's edited result stands for both the
        unedited and the edited latents (published)."""
        return replace(self, init=None if self.init is None else self.edited)
