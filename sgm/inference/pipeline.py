"""A loaded model that edits pictures: load once, then inpaint and sdedit any number of times."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from sgm import runtime
from sgm.checkpoint import build_model, load_weights
from sgm.inference import inpainting, sdedit
from sgm.inference.composite import composite
from sgm.inference.networks import Networks
from sgm.inference.noise import Noise, sequential_noise
from sgm.inference.recipes import RECIPES
from sgm.modules.diffusionmodules.sampling import DPMPP2M
from sgm.sparse.masks import difference_mask
from sgm.specs import SIZE_MULTIPLE, Backend, ModelSpec, Precision, Preset, RunType


@dataclass(frozen=True)
class EditResult:
    """An edited picture.

    Attributes:
        image: [3, H, W] in [0, 1], float32 on the CPU.
        seconds: by stage: `encode`, `sample`, `decode`.
        edit_ratio: share of the pixels in the mask or the difference; None where unknown.
    """

    image: Tensor
    seconds: dict[str, float]
    edit_ratio: float | None


@dataclass
class Stopwatch:
    """Seconds by stage, with the device synchronised at the edges."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._synchronise()
        began = time.perf_counter()
        yield
        self._synchronise()
        self.seconds[stage] = time.perf_counter() - began

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Pipeline:
    """Networks together with the precision they run in.

    Args:
        networks: on their device, in their dtype.
        precision: decides the TF32 switches of a run; the dtype of the weights is given already.
        sparse: whether edits run sparsely.
        preset: how sparsely, and whether pixels outside of an edit stay those of the input.
    """

    def __init__(
        self,
        networks: Networks,
        precision: Precision,
        sparse: bool,
        preset: Preset = Preset.PUBLISHED,
    ) -> None:
        self.networks = networks
        self.precision = precision
        self.sparse = sparse
        self.recipe = RECIPES[preset]

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        run_type: RunType,
        config_path: Path,
        weight_path: Path,
        device: torch.device,
        precision: Precision,
        backend: Backend = Backend.AUTO,
        preset: Preset = Preset.PUBLISHED,
        progress: bool = True,
    ) -> "Pipeline":
        """Build the networks of a run type and load their weights.

        Args:
            config_path, weight_path: the folders of YAML files and of checkpoints.
            progress: show a bar on stderr.

        Raises:
            UserError: a file is missing or does not fit.
        """
        engine = build_model(Path(config_path) / spec.config_file(run_type, preset=preset))
        path = Path(weight_path) / spec.weight_file(spec.weight_role(run_type))
        load_weights(engine, path, device, runtime.dtype_of(precision), progress)
        networks = Networks(engine.eval().to(memory_format=torch.channels_last))
        networks.set_backend(backend.value)
        return cls(networks, precision, run_type.sparse, preset)

    @contextmanager
    def _run(self, seed: int) -> Iterator[Stopwatch]:
        """Scope of one edit: no gradients, the precision's switches, the seed, a stopwatch."""
        device = self.networks.device
        with (
            torch.inference_mode(),
            runtime.precision_scope(self.precision, device),
            runtime.seeded(seed),
        ):
            try:
                yield Stopwatch(device)
            finally:
                self.networks.forget()

    def inpaint(
        self,
        image: Tensor,
        mask: Tensor,
        prompt: str,
        negative_prompt: str = "",
        *,
        seed: int = 2,
        steps: int = 50,
        scale: float = 6.0,
        progress: bool = False,
        noise: Noise = sequential_noise,
    ) -> EditResult:
        """Repaint the masked part of a picture.

        Args:
            image: [3, H, W] in [-1, 1], H and W multiples of 64.
            mask: bool [H, W], True where to repaint; not empty.
            noise: source of the random draws; by default the published order of draws.

        Raises:
            ValueError: the mask is empty, or the sizes are not as above.
        """
        _check_sizes({"image": image, "mask": mask})
        recipe = self.recipe
        with self._run(seed) as stage:
            mask = mask.bool()
            masks, decoder_masks = recipe.inpainting(mask), recipe.inpainting_decoder(mask)
            with stage("encode"):
                c, uc = self.networks.condition(prompt, negative_prompt, image.shape[1:])
                plan = inpainting.prepare(
                    self.networks, image, masks, self.sparse, noise, decoder_masks
                )
            denoise = self.networks.denoiser(c, uc, scale)
            with stage("sample"), _progress(steps, progress) as on_step:
                x = inpainting.denoise_latents(
                    self.networks, plan, denoise, DPMPP2M(steps), noise, on_step
                )
            with stage("decode"):
                picture = inpainting.decode(self.networks, plan, x)
            if recipe.feather is not None:
                picture = composite(picture, (image + 1) / 2, mask, recipe.feather)
            return EditResult(picture, stage.seconds, mask.float().mean().item())

    def sdedit(
        self,
        init_image: Tensor | None,
        edited_image: Tensor,
        prompt: str,
        negative_prompt: str = "",
        *,
        seed: int = 2,
        steps: int = 50,
        scale: float = 6.0,
        strength: float = 0.8,
        progress: bool = False,
        noise: Noise = sequential_noise,
    ) -> EditResult:
        """Turn a picture that was drawn on into one in the manner of the model.

        Args:
            init_image: the unedited picture [3, H, W] in [-1, 1]; a dense run does without it.
            edited_image: the picture that was drawn on, same shape; not equal to the unedited.
            strength: share of the schedule that is run.
            noise: source of the random draws; by default the published order of draws.

        Raises:
            ValueError: a sparse run without the unedited picture, or with an equal one; or the
                sizes are not as above.
        """
        _check_sizes({"init_image": init_image, "edited_image": edited_image})
        networks, recipe = self.networks, self.recipe
        difference = None if init_image is None else difference_mask(init_image, edited_image)
        with self._run(seed) as stage:
            with stage("encode"):
                c, uc = networks.condition(prompt, negative_prompt, edited_image.shape[1:])
                if not self.sparse:
                    plan = sdedit.prepare_dense(networks, edited_image, noise)
                elif init_image is None or difference is None:
                    raise ValueError("A sparse SDEdit run needs the unedited picture too.")
                else:
                    masks = recipe.sdedit_masks(difference), recipe.sdedit_decoder_masks(difference)
                    plan = sdedit.prepare_sparse(networks, init_image, edited_image, *masks, noise)
            denoise = networks.denoiser(c, uc, scale)
            solver = DPMPP2M(steps)
            count = len(solver.sigmas(networks.engine.denoiser.discretization, strength)) - 1
            with stage("sample"), _progress(count, progress) as on_step:
                plan = sdedit.denoise_latents(
                    networks, plan, denoise, solver, strength, noise, on_step
                )
            with stage("decode"):
                picture = sdedit.decode(networks, plan)
            if recipe.feather is not None and difference is not None:
                region = recipe.sdedit_region(difference)
                picture = composite(picture, (edited_image + 1) / 2, region, recipe.feather)
            ratio = None if difference is None else difference.float().mean().item()
            return EditResult(picture, stage.seconds, ratio)


def _check_sizes(inputs: Mapping[str, Tensor | None]) -> None:
    """ValueError unless all have one height and width, both multiples of 64."""
    sizes = {name: tuple(x.shape[-2:]) for name, x in inputs.items() if x is not None}
    multiples = all(length % SIZE_MULTIPLE == 0 for size in sizes.values() for length in size)
    if len(set(sizes.values())) > 1 or not multiples:
        raise ValueError(
            f"Sizes (height, width) are {sizes}, but must be equal and multiples of "
            f"{SIZE_MULTIPLE}; see sgm.imageio.pad_to_multiple."
        )


@contextmanager
def _progress(steps: int, show: bool) -> Iterator[inpainting.OnStep]:
    """A bar of sampler steps on stderr."""
    with tqdm(total=steps, desc="sampling", unit="step", disable=not show) as bar:
        yield lambda number, latents: bar.update()
