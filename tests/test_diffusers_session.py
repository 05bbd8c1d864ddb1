"""Sessions with pipelines of diffusers: whole runs against a naive loop over the held oracle, and
what a person does with them."""

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sgm.errors import UserError
from sgm.inference.presets import FAST
from sgm.sparse import NotSparseError, SparseStateError
from sgm.sparse.masks import MaskPyramid, cover, difference_mask, downsample_mask
from sgm.specs import Blend, RecordingSettings
from sgm.words import RecordingPrecision
from tests.conftest import ROOT, max_error
from tests.diffusers_here import diffusers_or_skip
from tests.oracle import Oracle
from tests.tiny_diffusers import Called, lora, tiny_pipeline, tiny_unet

SIZE = (64, 128)
STEPS, SCALE = 8, 3.0
PROMPT = "a horse"
SCHEDULERS = [
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
]
# Every step recorded, and a hard edge.
EVERY = replace(
    FAST.with_recordings(RecordingSettings(every=1)), blend=Blend(0, match_border=False)
)


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    diffusers_or_skip("peft", "transformers", "accelerate")


def picture(size: tuple[int, int] = SIZE) -> Image.Image:
    draw = np.random.default_rng(1)
    small = draw.integers(0, 255, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BICUBIC)


def box(size: tuple[int, int] = SIZE, right: bool = False) -> np.ndarray:
    """A mask, bool [H, W], left or right."""
    mask = np.zeros(size, dtype=bool)
    left = size[1] * 5 // 8 if right else size[1] // 6
    mask[size[0] // 4 : size[0] * 5 // 8, left : left + size[1] // 4] = True
    return mask


def mask_image(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def drawn_on(image: Image.Image) -> Image.Image:
    """The picture with a red rectangle."""
    values = np.array(image)
    values[16:40, 40:70] = (200, 30, 20)
    return Image.fromarray(values)


def session_of(pipe: Any, image: Image.Image | None = None, **settings: Any) -> Any:
    from sgm.diffusers import EditSession

    settings = {"num_inference_steps": STEPS, "guidance_scale": SCALE, **settings}
    settings.setdefault("generator", torch.Generator().manual_seed(3))
    return EditSession(pipe, picture() if image is None else image, "a lake", **settings)


def changed(a: Image.Image, b: Image.Image) -> np.ndarray:
    """Where two pictures differ, bool [H, W]."""
    return (np.array(a) != np.array(b)).any(axis=2)


@pytest.fixture
def latents_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs an edit of a session; the latents that its pipeline decodes, and the picture."""

    def run(session: Any, edit: Any) -> tuple[Tensor, Image.Image]:
        seen: list[Tensor] = []
        decode = session.held.pipe.vae.decode
        monkeypatch.setattr(
            session.held.pipe.vae,
            "decode",
            lambda z, **named: (seen.append(z.clone()), decode(z, **named))[1],
        )
        out = edit(session)
        monkeypatch.setattr(session.held.pipe.vae, "decode", decode)
        return seen[-1] * session.held.pipe.vae.config.scaling_factor, out

    return run


def covering(mask: Tensor, dilation: int | tuple[int, ...]) -> MaskPyramid:
    """The pyramid of a mask that holds all that the mask touches."""
    return cover(downsample_mask(mask, dilation), mask)


class Naive:
    """An edit by hand: every pixel, every step, the dense network held outside of the masks."""

    def __init__(self, session: Any, unet: Any, strength: float = 1.0) -> None:
        self.session = session
        pipe = session.held.pipe
        self.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        self.scheduler.set_timesteps(STEPS)
        count = min(int(STEPS * strength), STEPS)
        self.levels = self.scheduler.timesteps[(STEPS - count) * self.scheduler.order :]
        self.scheduler.set_begin_index((STEPS - count) * self.scheduler.order)
        self.unet = unet

    def called(self, prompt: str) -> Called:
        """The UNet under a prompt and its negative, with the sizes that the pipeline tells it."""
        text, other, pooled, other_pooled = self.session.held.pipe.encode_prompt(
            prompt, do_classifier_free_guidance=True, device=torch.device("cpu")
        )
        sizes = torch.tensor([[*SIZE, 0, 0, *SIZE]]).float()
        return Called(
            self.unet,
            encoder_hidden_states=torch.cat([other, text]),
            added_cond_kwargs={
                "text_embeds": torch.cat([other_pooled, pooled]),
                "time_ids": torch.cat([sizes, sizes]),
            },
        )

    def run(
        self,
        masks: Any,
        inside: Tensor,
        start: Tensor | None = None,
        more: tuple[Tensor, Tensor] | None = None,
        prompt: str = PROMPT,
        before: tuple[Tensor, MaskPyramid] | None = None,
    ) -> Tensor:
        """The latents of the result.

        Args:
            masks: those of a step, from 0.
            start: latents that the edit starts from; None for noise alone.
            more: for 9 channels what follows the latents, in the unedited passes and in the
                edit's.
            before: latents of the picture before an edit that was accepted, and where it changed.
        """
        scheduler, z, noise = self.scheduler, self.session.held.z, self.session.held.noise
        base, edit = self.called("a lake"), self.called(prompt)
        unedited, edited = Oracle(base), Oracle(edit)
        x = noise * scheduler.init_noise_sigma
        if start is not None:
            x = scheduler.add_noise(start, noise, self.levels[:1])
        known = scheduler.add_noise(z, noise, self.levels[:1])
        # As the session's: of the same state, and as many draws in (of the posterior, with 9).
        generator = self.session.held.generator()
        for _ in range(2 if more is None else 1):
            torch.randn(z.shape, generator=generator)
        for i, t in enumerate(self.levels):
            x = torch.where(inside, x, known)
            base.timestep = edit.timestep = t
            whole, part = (scheduler.scale_model_input(torch.cat([y, y]), t) for y in (known, x))
            if more is not None:
                whole, part = torch.cat([whole, more[0]], 1), torch.cat([part, more[1]], 1)
            kept = unedited.record(whole)[1]
            if before is not None:
                old = scheduler.add_noise(before[0], noise, self.levels[i : i + 1])
                old = scheduler.scale_model_input(torch.cat([old, old]), t)
                kept = unedited.updated(unedited.record(old)[1], before[1], whole)
            eps = edited.held(kept, masks(i), part)
            plain, told = eps.chunk(2)
            eps = plain + SCALE * (told - plain)
            named = {"generator": generator} if type(scheduler).__name__.startswith("LCM") else {}
            x = scheduler.step(eps, t, x, **named).prev_sample
            last = i + 1 == len(self.levels)
            known = z if last else scheduler.add_noise(z, noise, self.levels[i + 1 : i + 2])
        return torch.where(inside, x, known)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


# --- whole runs ----------------------------------------------------------------------------------


def agree(found: Tensor, expected: Tensor) -> bool:
    """Whether latents of whole runs are equal to rounding, which a run adds up."""
    return max_error(found, expected) < 2e-4 * expected.abs().max().item()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_inpainting_equals_the_naive_loop(scheduler: str, latents_of: Any) -> None:
    session = session_of(tiny_pipeline(scheduler=scheduler), recipe=EVERY)
    found, out = latents_of(session, lambda s: s.inpaint(PROMPT, box()))
    mask = torch.from_numpy(box())
    masks = covering(mask, (1, 1, 1, 2, 1))
    inside = covering(mask, 1)[8, 16]
    expected = Naive(session, tiny_unet()).run(lambda i: masks, inside)
    assert agree(found, expected)
    assert max_error(expected, session.held.z) > 0.5
    # The picture: decoded sparsely, and put into the input.
    decoder = tiny_pipeline().vae
    z = session.held.pipe.vae.config.scaling_factor
    oracle = Oracle(decoder.decoder)
    kept = oracle.record(decoder.post_quant_conv(session.held.z / z))[1]
    held = oracle.held(kept, covering(mask, 1), decoder.post_quant_conv(expected / z))
    deep = np.zeros(SIZE, dtype=bool)
    deep[22:34, 28:46] = True  # beyond the transition
    levels = ((held[0] / 2 + 0.5).clamp(0, 1) * 255).permute(1, 2, 0).numpy()
    assert np.abs(np.array(out).astype(float) - levels)[deep].max() <= 1


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_img2img_equals_the_naive_loop(scheduler: str, latents_of: Any) -> None:
    strength = 0.75
    session = session_of(tiny_pipeline(scheduler=scheduler), recipe=EVERY)
    drawn = drawn_on(session.image)
    found, _ = latents_of(session, lambda s: s.img2img(PROMPT, drawn, strength))
    pictures = [
        torch.from_numpy(np.array(p)).permute(2, 0, 1) / 127.5 - 1 for p in (session.image, drawn)
    ]
    difference = difference_mask(*pictures)
    steps = FAST.sdedit_steps(difference, FAST.sdedit_masks(difference))
    naive = Naive(session, tiny_unet(), strength)
    assert len(naive.levels) == 6
    vae, draw = (
        tiny_pipeline().vae,
        torch.randn(session.held.z.shape, generator=torch.Generator().manual_seed(3)),
    )
    oracle = Oracle(vae.encoder)
    kept = oracle.record(pictures[0][None])[1]
    moments = vae.quant_conv(oracle.held(kept, FAST.sdedit_masks(difference), pictures[1][None]))
    mean, logvar = moments.chunk(2, dim=1)
    start = (mean + draw * (logvar.clamp(-30, 20) / 2).exp()) * vae.config.scaling_factor
    expected = naive.run(lambda i: steps.at(i, 6), steps.first[8, 16], start)
    assert agree(found, expected)
    assert max_error(expected, session.held.z) > 0.5


def test_nine_channels_equal_the_naive_loop(latents_of: Any) -> None:
    unet = tiny_unet(1, in_channels=9)
    session = session_of(tiny_pipeline(unet=copy.deepcopy(unet)), recipe=EVERY)
    found, _ = latents_of(session, lambda s: s.inpaint(PROMPT, box()))
    mask = torch.from_numpy(box())
    masks = covering(mask, (1, 1, 1, 2, 1))
    vae = tiny_pipeline().vae
    image = torch.from_numpy(np.array(session.image)).permute(2, 0, 1)[None] / 127.5 - 1
    oracle = Oracle(vae.encoder)
    kept = oracle.record(image)[1]
    mean, logvar = vae.quant_conv(oracle.held(kept, masks, image * (mask < 0.5))).chunk(2, dim=1)
    draw = torch.randn(session.held.z.shape, generator=torch.Generator().manual_seed(3))
    masked = (mean + draw * (logvar.clamp(-30, 20) / 2).exp()) * vae.config.scaling_factor
    small = torch.nn.functional.interpolate(mask[None, None].float(), (8, 16))
    whole = torch.cat([torch.zeros_like(small), session.held.z], 1).expand(2, -1, -1, -1)
    part = torch.cat([small, masked], 1).expand(2, -1, -1, -1)
    inside = covering(mask, 1)[8, 16]
    expected = Naive(session, unet).run(lambda i: masks, inside, more=(whole, part))
    assert agree(found, expected)


# --- what a session does -------------------------------------------------------------------------


def test_outside_of_an_edit_no_byte_changes() -> None:
    image = picture((60, 190))  # padded, and cropped back
    session = session_of(tiny_pipeline(), image)
    mask = box((60, 190))
    out = session.inpaint(PROMPT, mask_image(mask))
    assert out.size == image.size
    wide = torch.nn.functional.max_pool2d(torch.from_numpy(mask)[None].float(), 5, 1, 2)
    ring = (wide[0] > 0).numpy()  # two pixels, in which the edit fades out
    assert not changed(out, image)[~ring].any() and changed(out, image)[mask].mean() > 0.9
    drawn = drawn_on(image)
    other = session.img2img(PROMPT, drawn, strength=0.5)
    where = changed(other, drawn)
    assert where[20:36, 44:66].mean() > 0.9 and not where[:, 110:].any()
    assert not changed(session.image, image).any()


def test_few_steps_are_recorded_and_the_rest_interpolated(latents_of: Any) -> None:
    session = session_of(tiny_pipeline(), num_inference_steps=20)
    assert len(session.made) == 6 and len(session.store.names()) == 8
    every = session_of(tiny_pipeline(), num_inference_steps=20, recipe=EVERY)
    assert len(every.made) == 20
    found, expected = (
        latents_of(s, lambda s: s.inpaint(PROMPT, box()))[0] for s in (session, every)
    )
    error = (found - expected).square().mean().sqrt() / expected.std()
    assert 0 < error < 0.1


def test_edits_leave_no_trace(latents_of: Any) -> None:
    session = session_of(tiny_pipeline())
    first, _ = latents_of(session, lambda s: s.inpaint(PROMPT, box()))
    session.inpaint("a tree", box(right=True))
    session.img2img("a tree", drawn_on(session.image), 0.7)
    again, _ = latents_of(session, lambda s: s.inpaint(PROMPT, box()))
    assert torch.equal(first, again)
    fresh = session_of(tiny_pipeline())
    other, _ = latents_of(fresh, lambda s: s.inpaint(PROMPT, box()))
    assert torch.equal(first, other)


def test_an_accepted_edit_is_the_picture_of_the_next(latents_of: Any) -> None:
    session = session_of(tiny_pipeline(), recipe=EVERY)
    z = session.held.z.clone()
    out = session.inpaint(PROMPT, box())
    session.accept(out)
    assert not changed(session.image, out).any()
    mask = torch.from_numpy(box())
    inside = covering(mask, 1)[8, 16]
    around = ~downsample_mask(mask, (1, 1, 1, 2, 1))[8, 16]
    assert torch.equal(session.held.z[:, :, around], z[:, :, around])
    assert max_error(session.held.z[:, :, inside], z[:, :, inside]) > 0.1
    found, last = latents_of(session, lambda s: s.inpaint("a tree", box(right=True)))
    other = torch.from_numpy(box(right=True))
    changes = FAST.inpainting(torch.from_numpy(changed(picture(), out)))
    masks = covering(other, (1, 1, 1, 2, 1))
    expected = Naive(session, tiny_unet()).run(
        lambda i: masks, covering(other, 1)[8, 16], prompt="a tree", before=(z, changes)
    )
    assert agree(found, expected)
    assert not changed(last, out)[~box(right=True)].any()


@pytest.mark.parametrize("name", ["StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLPipeline"])
def test_other_pipelines_edit_with_the_same_networks(name: str, latents_of: Any) -> None:
    pipe = tiny_pipeline(name)
    session = session_of(pipe)
    assert session.held.pipe.unet is pipe.unet and session.held.pipe.scheduler is pipe.scheduler
    found, _ = latents_of(session, lambda s: s.inpaint(PROMPT, box()))
    expected, _ = latents_of(session_of(tiny_pipeline()), lambda s: s.inpaint(PROMPT, box()))
    assert torch.equal(found, expected)


def test_a_lora_loaded_fused_and_changed_after_the_recording(latents_of: Any) -> None:
    def edit(pipe: Any) -> Tensor:
        return latents_of(session_of(pipe), lambda s: s.inpaint(PROMPT, box()))[0]

    plain, loaded, fused = (tiny_pipeline() for _ in range(3))
    for pipe in (loaded, fused):
        lora(pipe.unet, ["to_q", "to_v", "conv1", "upsamplers.0.conv"])
    fused.fuse_lora()
    without, one, two = map(edit, (plain, loaded, fused))
    assert agree(two, one) and max_error(one, without) > 0.05
    session = session_of(plain)
    lora(plain.unet, ["to_q", "conv1"])
    with pytest.raises(SparseStateError, match="came or went since the picture was recorded"):
        session.inpaint(PROMPT, box())
    session.record()
    session.inpaint(PROMPT, box())


def test_a_controlnet(latents_of: Any) -> None:
    from diffusers import ControlNetModel

    def pipe() -> Any:
        unet = tiny_unet()
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8, 8))
        draw = torch.Generator().manual_seed(4)
        for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=draw) * 0.1)
        name = "StableDiffusionXLControlNetInpaintPipeline"
        return tiny_pipeline(name, unet=unet, controlnet=net.eval())

    everywhere = np.ones(SIZE, dtype=bool)
    control = {"control_image": picture()}
    session = session_of(pipe(), call=control, recipe=EVERY)
    found, _ = latents_of(session, lambda s: s.inpaint(PROMPT, everywhere))
    other, _ = latents_of(
        session_of(pipe(), call={**control, "controlnet_conditioning_scale": 0.0}),
        lambda s: s.inpaint(PROMPT, everywhere),
    )
    assert max_error(found, other) > 0.05
    # All pixels active: a sparse run is the dense one of the pipeline.
    dense = pipe()
    expected = dense(
        PROMPT,
        image=picture(),
        mask_image=mask_image(everywhere),
        control_image=picture(),
        height=SIZE[0],
        width=SIZE[1],
        strength=1.0,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        latents=session.held.noise,
        output_type="latent",
    ).images
    assert agree(found, expected)


def test_offloading_before_the_session(latents_of: Any) -> None:
    from accelerate import cpu_offload

    pipe = tiny_pipeline()
    cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    found, _ = latents_of(session_of(pipe), lambda s: s.inpaint(PROMPT, box()))
    expected, _ = latents_of(session_of(tiny_pipeline()), lambda s: s.inpaint(PROMPT, box()))
    assert agree(found, expected)


def test_embeddings_instead_of_a_prompt(latents_of: Any) -> None:
    session = session_of(tiny_pipeline())
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds")
    found = session.held.pipe.encode_prompt(PROMPT, device=torch.device("cpu"))
    call = dict(zip((*names, "negative_pooled_prompt_embeds"), found, strict=True))
    a, _ = latents_of(session, lambda s: s.inpaint(None, box(), call=call))
    b, _ = latents_of(session, lambda s: s.inpaint(PROMPT, box()))
    assert torch.equal(a, b)


def test_recordings_on_disk(tmp_path: Any, latents_of: Any) -> None:

    session = session_of(tiny_pipeline(), recording_memory="disk", recording_folder=str(tmp_path))
    assert len(list(tmp_path.glob("*.safetensors"))) == len(session.made) + 2
    found, out = latents_of(session, lambda s: s.inpaint(PROMPT, box()))
    expected, _ = latents_of(session_of(tiny_pipeline()), lambda s: s.inpaint(PROMPT, box()))
    assert torch.equal(found, expected)
    session.accept(out)
    session.inpaint(PROMPT, box(right=True))


def test_the_generator_is_read_and_left_as_it_is() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    session = session_of(tiny_pipeline(), generator=generator)
    session.inpaint(PROMPT, box())
    assert torch.equal(generator.get_state(), before)
    other = session_of(tiny_pipeline(), generator=torch.Generator().manual_seed(4))
    assert max_error(session.held.noise, other.held.noise) > 1


def test_nothing_to_edit_returns_the_picture() -> None:
    session = session_of(tiny_pipeline())
    image = session.image
    for out in (
        session.inpaint(PROMPT, np.zeros(SIZE, dtype=bool)),
        session.img2img(PROMPT, image),
    ):
        assert not changed(out, image).any()
    session.accept(image)


def test_the_code_of_the_page_runs() -> None:
    page = (ROOT / "docs" / "diffusers.md").read_text(encoding="utf-8")
    lines, whole, alone = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len([line for line in lines.splitlines() if line.strip()]) <= 6
    space: dict[str, Any] = {}
    exec(compile(whole, "docs/diffusers.md", "exec"), space)
    image = space["image"].copy()
    exec(compile(lines, "docs/diffusers.md", "exec"), space)
    out = space["out"]
    assert out.size == image.size and changed(out, image).any()
    assert not changed(out, image)[:, :3].any()
    before = list(space["pipe"].unet.state_dict())
    exec(compile(alone, "docs/diffusers.md", "exec"), space)
    assert list(space["pipe"].unet.state_dict()) == before


def test_mistakes_are_named() -> None:
    pipe = tiny_pipeline()
    with pytest.raises(TypeError, match="strength is given by the session"):
        session_of(pipe, call={"strength": 0.5})
    with pytest.raises(TypeError, match="DDPMPipeline cannot be used; expected a pipeline"):
        from diffusers import DDPMPipeline

        session_of(DDPMPipeline(tiny_unet(), pipe.scheduler))
    session = session_of(pipe)
    with pytest.raises(ValueError, match=r"64x64 pixels, expected 128x64"):
        session.img2img(PROMPT, picture((64, 64)))
    with pytest.raises(UserError, match="leaves no step"):
        session.img2img(PROMPT, drawn_on(session.image), strength=0.01)
    with pytest.raises(ValueError, match="expected \\(128, 64\\)"):
        session.accept(picture((64, 64)))
    pipe.vae.enable_tiling()
    with pytest.raises(NotSparseError, match="disable_tiling first"):
        session_of(pipe)


def test_recordings_of_fewer_bytes() -> None:
    """As int8 recordings take about a quarter, and edits and accepted edits are nearly the same."""
    mask = np.zeros(SIZE, bool)
    mask[20:44, 40:88] = True

    def size(store: Any) -> int:
        return sum(store.get(name).size_in_bytes() for name in store.names())

    found = []
    for precision in (RecordingPrecision.FULL, RecordingPrecision.INT8):
        recipe = FAST.with_recordings(RecordingSettings(precision=precision))
        session = session_of(tiny_pipeline(), recipe=recipe)
        sizes = [size(session.store)]
        first = session.inpaint("a horse", mask_image(mask))
        session.accept(drawn_on(first))
        sizes.append(size(session.store))
        second = session.img2img("a boat", drawn_on(picture()), strength=0.5)
        found.append((sizes, np.array(first, float), np.array(second, float)))
    (full, *exact), (small, *near) = found
    assert all(0.2 < b / a < 0.45 for a, b in zip(full, small, strict=True))
    for a, b in zip(exact, near, strict=True):
        assert np.abs(a - b).max() > 0 and np.abs(a - b).mean() < 0.5
