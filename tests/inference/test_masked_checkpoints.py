"""Inpainting checkpoints of 9 input channels: mask and masked picture beside the latents."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.rival_networks import unet_arguments
from sgm.config import load_config
from sgm.inference import loop
from sgm.inference.edit import Edit
from sgm.inference.inpainting import Inpainting
from sgm.inference.noise import NamedNoise
from sgm.inference.pipeline import Pipeline
from sgm.inference.sdedit import SDEdit
from sgm.inference.session import EditSession
from sgm.specs import MODELS, SamplingParams, Weights
from sgm.words import Precision, Preset, RunType, Spacing, Task
from tests.conftest import ROOT, max_error
from tests.diffusers_here import diffusers_or_skip
from tests.io.tiny_files import UNET, folder_tensors, saved

SIZE = (64, 128)
FIRST = f"{UNET}input_blocks.0.0.weight"
KINDS = {
    "original": (RunType.ORIGINAL, Preset.PUBLISHED),
    "sige": (RunType.SIGE, Preset.PUBLISHED),
    "fast": (RunType.SIGE, Preset.FAST),
}
NOISE = NamedNoise(3)
PARAMS = SamplingParams("a horse", seed=3, steps=3, scale=3.0, spacing=Spacing.TRAILING)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """The shipped weights with further channels that matter as much as the first ones."""
    found = load_file(ROOT / "pretrained" / "tiny_base.safetensors")
    first = found[FIRST][:, :4]
    further = torch.randn(len(first), 5, 3, 3, generator=torch.Generator().manual_seed(0))
    found[FIRST] = torch.cat([first, (further * first.float().std()).half()], dim=1)
    return found


@pytest.fixture(scope="module")
def pipes(
    tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Pipeline]:
    path = saved(tmp_path_factory.mktemp("masked") / "inpainting.safetensors", tensors)
    arguments = (ROOT / "configs", Path("nowhere"), torch.device("cpu"), Precision.FP32)
    return {
        name: Pipeline.load(
            MODELS["tiny"],
            run_type,
            *arguments,
            preset=preset,
            progress=False,
            weights=Weights(path),
        )
        for name, (run_type, preset) in KINDS.items()
    }


def picture() -> Tensor:
    down, across = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in SIZE), indexing="ij")
    return torch.stack([across, down, across * down])


def rectangle() -> Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[16:48, 40:96] = True
    return mask


def drawn() -> Tensor:
    edited = picture().clone()
    edited[:, rectangle()] = 0.7
    return edited


EDITS: dict[str, Edit] = {
    "inpainting": Inpainting(picture(), rectangle()),
    "sdedit": SDEdit(picture(), drawn(), 0.8),
}


@pytest.mark.parametrize("task", EDITS)
@pytest.mark.parametrize("name", KINDS)
def test_mask_and_masked_picture_reach_the_network(
    name: str, task: str, pipes: dict[str, Pipeline]
) -> None:
    pipe, edit, seen = pipes[name], EDITS[task], []
    hook = pipe.networks.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0].clone()), with_kwargs=True
    )
    try:
        result = pipe.edit(edit, PARAMS, NOISE)
    finally:
        hook.remove()
    assert result.image.shape == (3, *SIZE) and result.image.std() > 0.01
    assert {tuple(x.shape) for x in seen} == {(2, 9, 8, 16)}
    image, mask = edit.shown
    with pipe.scope():
        wanted = pipe.networks.encode(image * ~mask, NOISE, "masked")
    for x in seen:
        assert torch.equal(x[0, 4].bool(), mask[::8, ::8]) and torch.equal(x[0, 4:], x[1, 4:])
        assert max_error(x[:1, 5:], wanted) < 1e-6


def test_a_mask_off_the_grid_covers_every_latent_it_touches(pipes: dict[str, Pipeline]) -> None:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[7, 15] = mask[9, 100] = True
    with pipes["original"].scope():
        concat = pipes["original"].networks.masked(picture(), mask, NOISE)
    assert concat.shape == (1, 5, 8, 16)
    assert concat[0, 0].nonzero().tolist() == [[0, 1], [1, 12]]


def test_a_sparse_pass_on_everything_is_the_dense_one(pipes: dict[str, Pipeline]) -> None:
    """With a mask that covers all, nothing recorded is left in the result: the mask and the masked
    picture took the same way into both."""
    edit = Inpainting(picture(), torch.ones(SIZE, dtype=torch.bool))
    params = SamplingParams("a horse", steps=1, scale=3.0)
    dense, sparse = (pipes[n].edit(edit, params, NOISE).image for n in ("original", "fast"))
    assert max_error(dense, sparse) < 1e-3


def test_a_session_shows_the_mask_of_each_edit(pipes: dict[str, Pipeline]) -> None:
    session = EditSession(pipes["fast"], picture(), PARAMS, noise=NOISE)
    first = session.inpaint("a horse", rectangle())
    blended = replace(EDITS["inpainting"], blend=pipes["fast"].recipe.blend)
    cold = pipes["fast"].edit(blended, PARAMS, NOISE)
    # And the ring of one pixel in which the edit fades out.
    mask = torch.nn.functional.max_pool2d(rectangle()[None].float(), 3, 1, 1)[0] > 0
    assert torch.equal(first.image[:, ~mask], ((picture() + 1) / 2)[:, ~mask])
    # Recorded under another mask, so not the same; alike it is.
    assert max_error(first.image, cold.image) < 0.5
    session.accept(first)
    assert session.sdedit("a sun", drawn(), 0.5).image.shape == (3, *SIZE)


def test_the_grey_picture_of_sdedits_is_encoded_once(pipes: dict[str, Pipeline]) -> None:
    """For all recordings, edits and prompts of a session, with a draw for each as before."""
    networks, passes, draws = pipes["fast"].networks, [], []

    def counted(name: str, shape: torch.Size) -> Tensor:
        draws.append(name)
        return NOISE(name, shape)

    hook = networks.encoder.register_forward_pre_hook(lambda module, args: passes.append(args[0]))
    networks._grey.clear()
    try:
        session = EditSession(pipes["fast"], picture(), PARAMS, Task.SDEDIT, noise=counted)
        first, again = (session.sdedit("a sun", drawn()).image for _ in range(2))
    finally:
        hook.remove()
    assert torch.equal(first, again)
    assert sum(not x.any() for x in passes) == 1 < draws.count("posterior/masked")
    other = torch.zeros(3, 128, 128), torch.ones(128, 128, dtype=torch.bool)
    with pipes["fast"].scope():
        assert networks.masked(*other, NOISE).shape == (1, 5, 16, 16)


@pytest.mark.parametrize(("task", "masked"), [(Task.SDEDIT, 1.0), (Task.INPAINTING, 0.0)])
def test_what_a_recording_is_told(task: Task, masked: float, pipes: dict[str, Pipeline]) -> None:
    """For SDEdit what the edit is told, that all is masked; for inpainting that nothing is. Also
    where an accepted edit or another prompt changes the recordings."""
    seen: list[Tensor] = []
    hook = pipes["fast"].networks.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0].clone()), with_kwargs=True
    )
    try:
        session = EditSession(pipes["fast"], picture(), PARAMS, task, noise=NOISE)
        edit = session.sdedit if task is Task.SDEDIT else session.inpaint
        what = drawn() if task is Task.SDEDIT else rectangle()
        recorded = len(seen)
        result = edit("a sun", what)
        edited = len(seen)
        session.accept(result)
    finally:
        hook.remove()
    told = seen if task is Task.SDEDIT else [*seen[:recorded], *seen[edited:]]
    assert recorded < edited < len(seen)
    assert {x[:, 4].unique().item() for x in told} == {masked}
    if task is Task.SDEDIT:
        assert all(torch.equal(x[:, 4:], seen[-1][:, 4:]) for x in told)


# ---- diffusers ----


def rival(tensors: dict[str, Tensor]) -> object:
    """diffusers' inpainting pipeline with the same UNet."""
    diffusers, _ = diffusers_or_skip("transformers")
    config = ROOT / "configs" / "tiny-original.yaml"
    params = load_config(config)["model"]["params"]["network_config"]["params"]
    unet = diffusers.UNet2DConditionModel(**unet_arguments({**params, "in_channels": 9})).eval()
    unet.load_state_dict({n: t.float() for n, t in folder_tensors(tensors)["unet"].items()})
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    return diffusers.StableDiffusionXLInpaintPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=(32,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
        ),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=scheduler,
    )


def test_equal_to_diffusers_inpainting_pipeline(
    tensors: dict[str, Tensor], pipes: dict[str, Pipeline]
) -> None:
    """A whole run of three guided steps. The mask covers all: elsewhere we put the known region
    back at every step, which diffusers does not do with such a network."""
    pipe, mask = pipes["original"], torch.ones(SIZE, dtype=torch.bool)
    edit = Inpainting(picture(), mask)
    networks = pipe.networks
    with pipe.scope():
        plan = pipe.prepare(edit, NOISE)
        c, uc = networks.condition(PARAMS.prompt, "", SIZE)
        denoise, solver = pipe.denoiser(PARAMS, SIZE, plan.concat), pipe.solver(PARAMS)
        ours = loop.run(plan, networks, denoise, solver, NOISE, lambda i, x, estimate: None).result
        theirs = rival(tensors)(
            image=picture()[None] / 2 + 0.5,
            mask_image=mask[None, None].float(),
            masked_image_latents=plan.concat[:, 1:],
            latents=NOISE("start", ours.shape),
            strength=1.0,
            num_inference_steps=3,
            guidance_scale=PARAMS.scale,
            height=SIZE[0],
            width=SIZE[1],
            original_size=(1024, 1024),
            target_size=SIZE,
            prompt_embeds=c["crossattn"],
            pooled_prompt_embeds=c["vector"][:, :32],
            negative_prompt_embeds=uc["crossattn"],
            negative_pooled_prompt_embeds=uc["vector"][:, :32],
            output_type="latent",
        ).images
    assert max_error(ours, theirs) < 1e-4 * theirs.abs().max().item()


def test_one_prediction_with_a_mask_is_that_of_diffusers(
    tensors: dict[str, Tensor], pipes: dict[str, Pipeline]
) -> None:
    pipe = pipes["original"]
    unet = rival(tensors).unet
    with pipe.scope():
        plan = pipe.prepare(EDITS["inpainting"], NOISE)
        c, _ = pipe.networks.condition(PARAMS.prompt, "", SIZE)
        x, t = torch.randn(1, 4, 8, 16), torch.tensor([499])
        ours = pipe.networks.engine.model(x, t, {**c, "concat": plan.concat})
        added = {
            "text_embeds": c["vector"][:, :32],
            "time_ids": torch.tensor([[1024.0, 1024, 0, 0, *SIZE]]),
        }
        theirs = unet(
            torch.cat([x, plan.concat], dim=1),
            t,
            encoder_hidden_states=c["crossattn"],
            added_cond_kwargs=added,
        ).sample
    assert max_error(ours, theirs) < 1e-4 * theirs.abs().max().item()
