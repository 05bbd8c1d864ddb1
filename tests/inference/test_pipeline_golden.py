"""End-to-end edits with the small golden engines: base, turbo and refiner, dense and sparse."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sgm.inference.edit import Edit
from sgm.inference.inpainting import Inpainting
from sgm.inference.networks import Networks
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.refined import refined_edit
from sgm.inference.sdedit import SDEdit
from sgm.models.diffusion import DiffusionEngine
from sgm.modules.diffusionmodules.openaimodel import UNetModel
from sgm.modules.diffusionmodules.sampling import Solver, SolverState
from sgm.modules.diffusionmodules.schedules import TURBO_INDICES
from sgm.sparse.masks import difference_mask, dilate
from sgm.sparse.rules.published import PUBLISHED
from sgm.specs import SamplingParams, Turbo
from sgm.words import Precision
from tests.conftest import Golden, max_error, rule_weights

LATENTS = 1e-4  # golden README: of the largest value
IMAGE = 5e-4
DIFFUSION = "sgm.modules.diffusionmodules"
ENCODERS = "sgm.modules.encoders.modules"
TARGETS = {
    "original": (f"{DIFFUSION}.openaimodel.UNetModel", "sgm.models.autoencoder.AutoencoderKL"),
    "sige": (
        f"{DIFFUSION}.sige_openaimodel.SIGEUNetModel",
        "sgm.models.sige_autoencoder.SIGEAutoencoderKL",
    ),
}
RUNS = [
    *(
        f"{task}/{m}/{k}"
        for task in ("inpaint", "sdedit")
        for m in ("base", "turbo")
        for k in TARGETS
    ),
    "inpaint_refined/original",
    "inpaint_refined/sige",
    "sdedit_refined/sige",
]
Load = Callable[[str, str], Pipeline]


def embedders(text: dict, family: str) -> list[dict]:
    """Entries of the conditioner, in the golden order."""
    towers = text["towers"][family]
    clip = {k: v for k, v in towers.get("clip", {}).items() if k != "projection_dim"}
    params = {
        "FrozenCLIPEmbedder": {"layer_idx": 3, "tower": clip},
        "FrozenOpenCLIPEmbedder2": {"tower": towers["open_clip"]},
        "ConcatTimestepEmbedderND": {"outdim": 8},
    }
    return [
        {"input_key": key, "target": f"{ENCODERS}.{name}", "params": params[name]}
        for key, name in text[f"conditioner_{family}"]["embedders"]
    ]


def engine_configs(info: dict, text: dict, family: str, run_type: str) -> dict:
    unet, vae = TARGETS[run_type]
    drop = UNetModel.TRAINING_ONLY
    return {
        "network_config": {
            "target": unet,
            "params": {k: v for k, v in info["unet"][family].items() if k not in drop},
        },
        "denoiser_config": {
            "target": f"{DIFFUSION}.denoiser.DiscreteDenoiser",
            "params": {
                "num_idx": 1000,
                "scaling_config": {"target": f"{DIFFUSION}.denoiser_scaling.EpsScaling"},
                "discretization_config": {
                    "target": f"{DIFFUSION}.discretizer.LegacyDDPMDiscretization"
                },
            },
        },
        "conditioner_config": {
            "target": "sgm.modules.GeneralConditioner",
            "params": {"emb_models": embedders(text, family)},
        },
        "first_stage_config": {
            "target": vae,
            "params": {"embed_dim": 4, "ddconfig": info["ddconfig"]},
        },
        "scale_factor": info["scale_factor"],
    }


def fill(module: nn.Module, shapes: dict[str, list[int]], seed: int) -> None:
    weights = rule_weights(shapes, seed)
    module.load_state_dict({k: weights.get(k, v) for k, v in module.state_dict().items()})


@pytest.fixture(scope="module")
def load(golden: Callable[[str], Golden]) -> Load:
    """Engines by family (base, refiner) and run type, each made once; turbo is a way to run."""
    engines: dict[tuple[str, str], Networks] = {}

    def build(family: str, run_type: str) -> Networks:
        data, text = golden("pipeline"), golden("text").info
        engine = DiffusionEngine(**engine_configs(data.info, text, family, run_type))
        seeds = data.info["weights_seeds"][family]
        unet_shapes = golden(f"unet_{family}").info["state_dict"]
        fill(engine.model.diffusion_model, unet_shapes, seeds["unet"])
        fill(engine.first_stage_model, golden("vae").info["state_dict"], seeds["vae"])
        shapes = text[f"conditioner_{family}"]["state_dict"]
        towers = ("clip", "open_clip") if family == "base" else ("open_clip",)
        for number, tower in enumerate(towers):
            names = shapes[f"conditioner.embedders.{number}"]
            fill(engine.conditioner.embedders[number], names, seeds[tower])
        table = PUBLISHED if run_type == "sige" else None
        return Networks(engine.eval().to(memory_format=torch.channels_last), table)

    def make(model: str, run_type: str) -> Pipeline:
        key = ("refiner" if model == "refiner" else "base", run_type)
        if key not in engines:
            engines[key] = build(*key)
        turbo = Turbo() if model == "turbo" else None
        return Pipeline(engines[key], Precision.FP32, run_type == "sige", turbo)

    return make


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What every sampler step of a test returned."""
    found: list[Tensor] = []
    step = Solver.step

    def watched(self: Solver, *arguments: object) -> tuple[Tensor, SolverState]:
        x, state = step(self, *arguments)
        found.append(x)
        return x, state

    monkeypatch.setattr(Solver, "step", watched)
    return found


def picture(tensor: Tensor) -> Tensor:
    return 2 * (tensor.float() / 255) - 1


def edit_of(data: Golden, task: str) -> Edit:
    """The edit of a task: `inpaint` or `sdedit`, or with `_refined`."""
    if task.startswith("sdedit"):
        return SDEdit(picture(data["image"]), picture(data["image_edited"]), 0.8)
    wide = "_wide" if task.endswith("refined") else ""
    image = picture(data[f"image{wide}"])
    return Inpainting(image, data.mask(f"inpaint_mask{wide}", *image.shape[1:]))


def params_of(data: Golden, run: str) -> SamplingParams:
    prompts = data.info["prompt"], data.info["negative_prompt"]
    steps = None if "/turbo/" in run else data.info["steps"]  # turbo's own are the four
    return SamplingParams(*prompts, data.info["runs"][run]["seed"], steps, 6.0)


def check(data: Golden, run: str, stepped: list[Tensor], result: EditResult) -> None:
    """Latents after every step, at the end, and the picture."""
    sparse = run.endswith("sige")
    expected = data[f"{run}/step_outputs"]
    if sparse:  # recording passes and edits alternate
        expected = expected[1::2]
        stepped = stepped[1::2] if run.startswith("sdedit") else stepped
    assert len(stepped) == len(expected)
    for number, (x, reference) in enumerate(zip(stepped, expected, strict=True)):
        assert max_error(x, reference) < LATENTS * expected.abs().max().item(), number
    latents = data[f"{run}/latents"]
    assert max_error(stepped[-1], latents) < LATENTS * latents.abs().max().item()
    if f"{run}/image_u16" in data:
        image = data.raw(f"{run}/image_u16").to(torch.float64) / 65535
        assert max_error(result.image[None], image) < IMAGE


@pytest.mark.parametrize("run", [run for run in RUNS if "refined" not in run])
def test_edits(
    run: str, golden: Callable[[str], Golden], load: Load, stepped: list[Tensor]
) -> None:
    data, (task, model, run_type) = golden("pipeline"), run.split("/")
    data.raw(f"{run}/step_outputs")  # where it is not there, skip before the work
    result = load(model, run_type).edit(edit_of(data, task), params_of(data, run))
    check(data, run, stepped, result)


@pytest.mark.parametrize("run", [run for run in RUNS if "refined" in run])
def test_refined_edits(
    run: str, golden: Callable[[str], Golden], load: Load, stepped: list[Tensor]
) -> None:
    data, (task, run_type) = golden("pipeline"), run.split("/")

    def stage(refiner: bool) -> Pipeline:
        return load("refiner" if refiner else "base", run_type)

    result = refined_edit(stage, edit_of(data, task), params_of(data, run))
    half = len(stepped) // 2
    base = data[f"{run}/base_latents"]
    assert max_error(stepped[half - 1], base) < LATENTS * base.abs().max().item()
    check(data, run, stepped[half:], result)


def test_every_golden_run_is_tested(golden: Callable[[str], Golden]) -> None:
    assert sorted(golden("pipeline").info["runs"]) == sorted(RUNS)


@pytest.mark.parametrize("name", ["inpaint", "sdedit", "refiner"])
@torch.inference_mode()
def test_conditioning(name: str, golden: Callable[[str], Golden], load: Load) -> None:
    data = golden("pipeline")
    networks = load("refiner" if name == "refiner" else "base", "original").networks
    prompts = data.info["prompt"], data.info["negative_prompt"]
    for kind, cond in zip(("c", "uc"), networks.condition(*prompts, (128, 256)), strict=True):
        for key, value in cond.items():
            assert max_error(value, data[f"conditioning/{name}/{kind}_{key}"]) < 1e-4, (kind, key)


def test_the_difference_mask(golden: Callable[[str], Golden]) -> None:
    data = golden("pipeline")
    edit = edit_of(data, "sdedit")
    expected = data.mask("difference_mask_dilated5", *edit.size)
    assert torch.equal(dilate(difference_mask(edit.init, edit.edited), 5), expected)


def test_turbo_is_not_the_schedule_of_the_base(golden: Callable[[str], Golden], load: Load) -> None:
    """A guard of the tests above: the base's sampler at four steps ends elsewhere."""
    data, run = golden("pipeline"), "inpaint/turbo/sige"
    reference = data.raw(f"{run}/image_u16").to(torch.float64) / 65535
    pipe = load("turbo", "sige")
    assert pipe.solver(SamplingParams("")).schedule.indices == TURBO_INDICES
    pipe.turbo = None
    params = params_of(data, "inpaint/base/sige")
    image = pipe.edit(edit_of(data, "inpaint"), params).image
    assert max_error(image[None], reference) > 100 * IMAGE
