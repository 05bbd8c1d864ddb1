"""A loaded model that edits pictures: load once, then edit any number of times."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from sgm import runtime
from sgm.errors import UserError
from sgm.inference import loop
from sgm.inference.edit import Edit
from sgm.inference.loop import Plan
from sgm.inference.networks import Networks, NonFiniteError, table_of_preset
from sgm.inference.noise import Noise, by_level, sequential_noise
from sgm.inference.presets import PUBLISHED, RECIPES, Recipe
from sgm.inference.progress import NanCheck, Progress, Stopwatch, told
from sgm.io.checkpoint import build_model, load_weights
from sgm.io.sources import Kind, kind_of, read_contents
from sgm.modules.diffusionmodules.sampling import Denoise, Solver, solver_of
from sgm.specs import ModelSpec, SamplingParams, Turbo, Weights
from sgm.words import Backend, Precision, Preset, RunType

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
AnyEdit = TypeVar("AnyEdit", bound=Edit)


@dataclass(frozen=True)
class EditResult:
    """An edited picture.

    Attributes:
        image: [3, H, W] in [0, 1], float32 on the CPU.
        seconds: by stage: `encode`, `sample`, `decode`; of a session also `record`, the full passes
            under a new prompt.
        touched: where it is to differ from the picture before, bool [H, W] on the CPU (see
            `Edit.changed`); None where that is not known.
    """

    image: Tensor
    seconds: dict[str, float]
    touched: Tensor | None = None


@dataclass(eq=False)
class Pipeline:
    """The networks of one checkpoint together with the way they run.

    Attributes:
        networks: on their device, in their dtype.
        precision: decides the TF32 switches of a run; the dtype of the weights is given already.
        sparse: whether edits run sparsely.
        turbo: the few steps to make instead of the whole schedule.
        recipe: how sparsely, and whether pixels outside of an edit stay those of the input.
    """

    networks: Networks
    precision: Precision
    sparse: bool
    turbo: Turbo | None = None
    recipe: Recipe = PUBLISHED

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
        refiner: bool = False,
        progress: bool = True,
        weights: Weights | None = None,
        graphs: bool | None = None,
    ) -> "Pipeline":
        """Build the networks of a run type and load their weights.

        Args:
            config_path, weight_path: the folders of YAML files and of checkpoints.
            refiner: the refiner instead of the base or turbo model; always the whole schedule.
            progress: show a bar on stderr.
            weights: the files to load; None for the family's own in `weight_path`.
            graphs: whether sparse UNet passes run as CUDA graphs; None for the device's own way.

        Raises:
            UserError: a file is missing or does not fit.
        """
        if weights is None:
            role = "refiner" if refiner else spec.weight_role(run_type)
            weights = spec.own(Path(weight_path), role)
        config = Path(config_path) / spec.config_file(run_type, refiner, preset)
        kind = kind_of(read_contents(weights), weights.prediction)
        if kind != Kind():
            logger.info("The checkpoint is for %s.", kind)
        engine = build_model(config, kind)
        # The autoencoder's activations pass the largest float16.
        exact = ("first_stage_model.",) if precision is Precision.FP16 else ()
        load_weights(engine, weights, device, runtime.dtype_of(precision), progress, exact)
        networks = Networks(engine.eval(), table_of_preset(preset) if run_type.sparse else None)
        networks.set_backend(backend.value, graphs)
        turbo = spec.turbo if run_type.turbo and not refiner else None
        return cls(networks, precision, run_type.sparse, turbo, RECIPES[preset])

    def with_recipe(self, recipe: Recipe) -> "Pipeline":
        """The same networks, run by another recipe."""
        return replace(self, recipe=recipe)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Scope in which the networks run: no gradients, the precision's switches; at its end the
        recordings are freed."""
        with torch.inference_mode(), runtime.precision_scope(self.precision, self.networks.device):
            try:
                yield
            finally:
                self.networks.forget()

    def prepare(self, edit: Edit, noise: Noise) -> Plan:
        """Encode the pictures and make the masks, as `Edit.prepare` does; inside `scope`."""
        recipe = self.recipe if self.sparse else None

        def prepared() -> Plan:
            plan = edit.prepare(self.networks, recipe, noise)
            return replace(plan, concat=edit.concat(self.networks, noise))

        return self._retried(prepared)

    @property
    def workplace(self) -> torch.device:
        """Where pictures are worked on: a CUDA device, with the networks, else the CPU."""
        device = self.networks.device
        return device if device.type == "cuda" else torch.device("cpu")

    def placed(self, edit: AnyEdit) -> AnyEdit:
        """An edit with its pictures where they are worked on."""
        return edit.on(self.workplace)

    def finished(self, edit: Edit, picture: Tensor, seconds: dict[str, float]) -> EditResult:
        """The result of a placed edit, from the networks' picture [3, H, W] in [0, 1]."""
        with runtime.precision_scope(Precision.FP32, self.networks.device):
            done = edit.finish(picture.to(self.workplace), self.recipe)
            touched = edit.changed(self.recipe)
            return EditResult(done.cpu(), seconds, None if touched is None else touched.cpu())

    def decode(self, plan: Plan) -> Tensor:
        """Picture [3, H, W] in [0, 1], float32, of a denoised plan; inside `scope`."""
        return self._retried(lambda: loop.decode(plan, self.networks))

    def _retried(self, run: Callable[[], Result]) -> Result:
        """What the autoencoder makes; once more in float32 if it overflowed, and UserError if that
        gave no numbers either."""
        first_stage = self.networks.engine.first_stage_model
        try:
            try:
                return run()
            except NonFiniteError:
                dtype = next(first_stage.parameters()).dtype
                if dtype is torch.float32:
                    raise
                logger.warning("The autoencoder overflowed in %s; it runs in float32 now.", dtype)
                self.networks.forget()
                first_stage.float()
                return run()
        except NonFiniteError as error:
            raise UserError(
                f"The networks returned values that are no numbers at {self.precision}; check the "
                "checkpoint, or use --precision fp32."
            ) from error

    def solver(self, params: SamplingParams, noise: Noise = sequential_noise) -> Solver:
        """The sampler: by default DPM++ 2M over 50 steps, or over the 4 levels of a turbo run. Of
        `noise` draws a sampler that needs some; ValueError: more steps than there are levels."""
        return solver_of(params, self.turbo, by_level(noise))

    def denoiser(
        self, params: SamplingParams, size: tuple[int, int], concat: Tensor | None = None
    ) -> Denoise:
        """The guided estimate for the prompts of `params` and a picture of `size` (height, width);
        inside `scope`. A turbo model gets the prompt in both halves (published). `concat` is
        what an inpainting network reads beside its latents."""
        texts = (params.prompt, params.negative_prompt)
        c, uc = self.networks.condition(*texts, size, params.weighted)
        if self.networks.reads_mask:
            assert concat is not None
            c, uc = ({**cond, "concat": concat} for cond in (c, uc))
        return self.networks.denoiser(c, uc if self.turbo is None else c, params.scale)

    def denoise(
        self,
        plan: Plan,
        params: SamplingParams,
        size: tuple[int, int],
        noise: Noise,
        stage: Stopwatch,
        progress: Progress,
    ) -> Plan:
        """Condition on the prompt for a picture of `size` (height, width), and run the sampling
        loop; inside `scope`. The plan with its latents denoised; UserError if these stopped being
        numbers."""
        networks, solver = self.networks, self.solver(params, noise)
        with stage("encode"):
            denoise = self.denoiser(params, size, plan.concat)
        count, watch = loop.steps_of(plan, networks, solver), NanCheck(networks.device)
        if not count:
            logger.warning("No sampler step is left at strength %g; take more.", params.strength)
        with stage("sample"), told("sampling", count, progress) as told_step:

            def on_step(i: int, x: Tensor, estimate: Tensor) -> None:
                watch(i, x)
                told_step(estimate)

            done = loop.run(plan, networks, denoise, solver, noise, on_step)
        watch.check(self.precision)
        return done

    def edit(
        self,
        edit: Edit,
        params: SamplingParams,
        noise: Noise = sequential_noise,
        progress: Progress = False,
    ) -> EditResult:
        """Make an edit.

        Args:
            params: its `strength` plays no part; an `SDEdit` holds its own.
            noise: source of the random draws; by default the published order of draws.

        Raises:
            ValueError: there is nothing to edit, or a sparse SDEdit lacks the unedited picture.
        """
        stage, edit = Stopwatch(self.networks.device), self.placed(edit)
        with runtime.seeded(params.seed), self.scope():
            with stage("encode"):
                plan = self.prepare(edit, noise)
            plan = self.denoise(plan, params, edit.size, noise, stage, progress)
            with stage("decode"):
                picture = self.decode(plan)
            return self.finished(edit, picture, stage.seconds)
