"""The networks of diffusers made sparse, against the oracle: the dense network, held outside of the
active pixels (see `tests.oracle`)."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sgm.sparse import NotSparseError, SparseStateError, sparsify
from sgm.sparse.masks import downsample_mask
from sgm.sparse.recording import tensors_of
from sgm.sparse.sparsify import Sparse
from tests.conftest import max_error
from tests.diffusers_here import diffusers_or_skip
from tests.oracle import Oracle
from tests.tiny_diffusers import (
    Called,
    conditions,
    latents,
    lora,
    masks_of,
    rectangle,
    tiny_unet,
    tiny_vae,
)

TOLERANCE = 2e-5  # of values up to about 5; the float32 oracle's own rounding
SIZE = (128, 192)
# Every layer that an adapter of a UNet is put on.
EVERYWHERE = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
    "conv_shortcut",
    "time_emb_proj",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
    "conv_in",
    "conv_out",
]


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    diffusers_or_skip("peft", "transformers", "accelerate")


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(params=["rectangle", "corner", "islands", "pixel", "all"])
def mask(request: pytest.FixtureRequest) -> Tensor:
    """bool [H, W]."""
    mask = torch.zeros(SIZE, dtype=torch.bool)
    match request.param:
        case "rectangle":
            mask = rectangle(SIZE)
        case "corner":
            mask[-9:, -20:] = True
        case "islands":
            mask |= torch.rand(SIZE, generator=torch.Generator().manual_seed(1)) > 0.9995
            mask[:5] = True
        case "pixel":
            mask[SIZE[0] // 2, SIZE[1] // 2] = True
        case _:
            mask[:] = True
    return mask


def check(dense: nn.Module, fast: nn.Module, handle: Sparse, mask: Tensor, *xs: Tensor) -> None:
    """Sparse passes of `fast` from a recording for any masks, and one for these, equal those of
    the oracle of `dense`."""
    masks, oracle = masks_of(mask), Oracle(dense)
    expected, kept = oracle.record(xs[0])
    held = oracle.held(kept, masks, xs[1])
    assert max_error(fast(xs[1]), dense(xs[1])) == 0  # dense mode is the library's
    for own in (None, masks):
        with handle.recording(own):
            assert max_error(fast(xs[0]), expected) < TOLERANCE
        with handle.sparse(masks):
            assert max_error(fast(xs[1]), held) < TOLERANCE
    # The comparison means something: pixels move, and holding them makes a difference.
    assert max_error(held, expected) > 100 * TOLERANCE
    if not mask.all():
        assert max_error(held, dense(xs[1])) > 100 * TOLERANCE


def check_unet(
    dense: Any, fast: Any, handle: Sparse, mask: Tensor | None = None, **named: Any
) -> None:
    """`check` of a UNet with random latents."""
    xs = [latents(seed, SIZE, dense.config.in_channels) for seed in (1, 2)]
    mask = rectangle(SIZE) if mask is None else mask
    check(Called(dense, **named), Called(fast, **named), handle, mask, *xs)


def test_a_unet_equals_the_held_dense_one(mask: Tensor) -> None:
    dense = tiny_unet()
    fast = copy.deepcopy(dense)
    check_unet(dense, fast, sparsify(fast), mask)


@pytest.mark.parametrize(
    "changes",
    [
        {"in_channels": 9},
        {"use_linear_projection": False, "attention_head_dim": 4},  # as Stable Diffusion 1.5
        {"resnet_time_scale_shift": "scale_shift"},
        {"mid_block_type": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_unets(changes: dict[str, Any]) -> None:
    dense = tiny_unet(1, **changes)
    fast = copy.deepcopy(dense)
    check_unet(dense, fast, sparsify(fast))


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_an_autoencoder_equals_the_held_dense_one(part: str, mask: Tensor) -> None:
    dense = getattr(tiny_vae(), part)
    fast = copy.deepcopy(dense)
    channels, shape = (3, SIZE) if part == "encoder" else (4, (SIZE[0] // 8, SIZE[1] // 8))
    xs = [
        torch.randn(1, channels, *shape, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 2)
    ]
    check(dense, fast, sparsify(fast), mask, *xs)


def test_an_updated_recording_is_that_of_the_changed_input() -> None:
    fast = tiny_unet()
    handle, called = sparsify(fast), Called(fast)
    masks, other = masks_of(rectangle(SIZE)), downsample_mask(rectangle(SIZE).flip(0, 1), 1)
    x0, x1, x2 = (latents(seed, SIZE) for seed in (1, 2, 3))
    oracle = Oracle(Called(tiny_unet()))
    left = oracle.updated(oracle.record(x0)[1], masks, x1)
    with handle.recording():
        called(x0)
    with handle.sparse(masks, update=True):
        called(x1)
    with handle.sparse(other):
        assert max_error(called(x2), oracle.held(left, other, x2)) < TOLERANCE


def test_a_recording_cut_to_a_mask_is_the_one_made_for_it() -> None:
    fast = tiny_unet()
    handle, called, masks = sparsify(fast), Called(fast), masks_of(rectangle(SIZE))
    with handle.recording(masks) as made:
        called(latents(1, SIZE))
    with handle.recording() as whole:
        called(latents(1, SIZE))
    cut = handle.cut(whole, masks)
    assert cut.values.keys() == made.values.keys()
    for key, value in made.values.items():
        for a, b in zip(tensors_of(cut.values[key]), tensors_of(value), strict=True):
            assert torch.equal(a, b), key


def test_names_and_saved_files_stay(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    unet, vae = tiny_unet(), tiny_vae()
    before, expected = list(unet.state_dict()), Called(unet)(latents(1, SIZE))
    names = list(vae.state_dict())
    for network in (unet, vae.encoder, vae.decoder):
        sparsify(network)
    assert list(unet.state_dict()) == before and list(vae.state_dict()) == names
    assert isinstance(unet, UNet2DConditionModel)
    unet.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == (
        "UNet2DConditionModel"
    )
    again = UNet2DConditionModel.from_pretrained(tmp_path).to(memory_format=torch.channels_last)
    assert type(again) is UNet2DConditionModel
    assert max_error(Called(again)(latents(1, SIZE)), expected) == 0


def test_results_come_in_diffusers_classes() -> None:
    unet, x = tiny_unet(), latents(1, SIZE)
    sparsify(unet)
    out = unet(x, 300, **conditions())
    assert type(out).__name__ == "UNet2DConditionOutput"
    [same] = unet(x, 300, return_dict=False, **conditions())
    assert torch.equal(out.sample, same)


# --- adapters -----------------------------------------------------------------------------------


def test_a_lora_that_is_added_scaled_fused_and_removed() -> None:
    dense = tiny_unet()
    fast = copy.deepcopy(dense)
    handle = sparsify(fast)
    plain = Called(dense)(latents(1, SIZE))
    for unet in (dense, fast):
        lora(unet, EVERYWHERE)
    assert max_error(Called(dense)(latents(1, SIZE)), plain) > 0.1
    check_unet(dense, fast, handle)
    assert sorted(fast.state_dict()) == sorted(dense.state_dict())
    for unet in (dense, fast):
        unet.set_adapters("one", 0.4)
    check_unet(dense, fast, handle)
    for unet in (dense, fast):
        lora(unet, ["conv1", "to_v", "upsamplers.0.conv"], name="two", seed=6)
        unet.set_adapters(["one", "two"], [0.7, 0.5])
    check_unet(dense, fast, handle)
    for unet in (dense, fast):
        unet.fuse_lora()
    check_unet(dense, fast, handle)
    for unet in (dense, fast):
        unet.unload_lora()
    assert not any(hasattr(layer, "base_layer") for layer in fast.modules())
    check_unet(dense, fast, handle)


def test_a_lora_that_was_there_before() -> None:
    dense = tiny_unet(1, in_channels=9)
    lora(dense, EVERYWHERE)
    fast = copy.deepcopy(dense)
    check_unet(dense, fast, sparsify(fast))


def test_a_lora_that_came_before_a_recording_leaves_dense_passes_as_they_are() -> None:
    dense = tiny_unet()
    fast = copy.deepcopy(dense)
    sparsify(fast)
    for unet in (dense, fast):
        lora(unet, EVERYWHERE)
    x = latents(1, SIZE)
    assert max_error(Called(fast)(x), Called(dense)(x)) == 0


def test_an_adapter_with_whole_weights_is_refused_until_it_is_fused() -> None:
    dense = tiny_unet()
    fast = copy.deepcopy(dense)
    handle = sparsify(fast)
    for unet in (dense, fast):
        lora(unet, ["to_q", "conv1"], use_dora=True)
    fast.load_state_dict(dense.state_dict())
    with (
        pytest.raises(NotSparseError, match=r"conv1 has an adapter that is no plain LoRA"),
        handle.recording(),
    ):
        pass
    for unet in (dense, fast):
        unet.fuse_lora()
    check_unet(dense, fast, handle)


def test_weights_that_changed_after_a_text_was_set_are_read_at_the_next_scope() -> None:
    dense = tiny_unet()
    unet = copy.deepcopy(dense)
    handle, called, x = sparsify(unet), Called(unet), latents(1, SIZE)
    masks, oracle = masks_of(rectangle(SIZE)), Oracle(Called(dense))
    for factor in (1, -1):
        for name, value in [*unet.named_parameters(), *dense.named_parameters()]:
            if name.endswith("attn2.to_k.weight"):
                value.mul_(factor)
        with handle.recording_steps() as kept:
            called(x)
        with handle.replaying(kept, masks):
            held = oracle.held(oracle.record(x)[1], masks, -x)
            assert max_error(called(-x), held) < TOLERANCE


# --- what is added to a UNet ---------------------------------------------------------------------


def residuals() -> dict[str, Any]:
    """What a ControlNet adds, for the maps of the tiny UNet at SIZE."""
    draw = torch.Generator().manual_seed(8)
    h, w = SIZE[0] // 8, SIZE[1] // 8
    shapes = [(16, 1)] * 2 + [(16, 2), (32, 2), (32, 4), (32, 4)]
    maps = [torch.randn(2, c, h // n, w // n, generator=draw) * 0.3 for c, n in shapes]
    middle = torch.randn(2, 32, h // 4, w // 4, generator=draw) * 0.3
    return {
        "down_block_additional_residuals": tuple(maps),
        "mid_block_additional_residual": middle,
    }


def test_the_residuals_of_a_controlnet(mask: Tensor) -> None:
    dense = tiny_unet()
    fast = copy.deepcopy(dense)
    check_unet(dense, fast, sparsify(fast), mask, **residuals())


def test_the_residuals_of_an_adapter() -> None:
    dense = tiny_unet()
    fast = copy.deepcopy(dense)
    draw = torch.Generator().manual_seed(8)
    h, w = SIZE[0] // 8, SIZE[1] // 8
    shapes = [(16, 2), (32, 2), (32, 4)]
    maps = [torch.randn(2, c, h // n, w // n, generator=draw) * 0.3 for c, n in shapes]
    check_unet(dense, fast, sparsify(fast), down_intrablock_additional_residuals=maps)


def with_ip_adapter(unet: Any) -> None:
    """The processors that `load_ip_adapter` sets."""
    from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0

    torch.manual_seed(3)
    processors = {}
    for name in unet.attn_processors:
        attention = unet.get_submodule(name.removesuffix(".processor"))
        width = attention.to_q.out_features
        cross = IPAdapterAttnProcessor2_0(width, 32, num_tokens=(4,))
        processors[name] = cross if attention.is_cross_attention else AttnProcessor2_0()
    unet.set_attn_processor(processors)


def test_the_processors_of_an_ip_adapter() -> None:
    dense = tiny_unet()
    with_ip_adapter(dense)
    fast = copy.deepcopy(dense)
    handle = sparsify(fast)
    picture = torch.randn(2, 1, 4, 32, generator=torch.Generator().manual_seed(5))
    text = conditions()["encoder_hidden_states"]
    check_unet(dense, fast, handle, encoder_hidden_states=(text, [picture]))
    with handle.recording():
        Called(fast, encoder_hidden_states=(text, [picture]))(latents(1, SIZE))
    with (
        handle.sparse(masks_of(rectangle(SIZE))),
        pytest.raises(SparseStateError, match="ip_adapter_masks are for whole maps"),
    ):
        fast(
            latents(1, SIZE),
            300,
            **conditions(),
            cross_attention_kwargs={"ip_adapter_masks": [torch.ones(1, 1, *SIZE)]},
        )


# --- hooks, processors and what is refused --------------------------------------------------------


@pytest.mark.parametrize("everywhere", [False, True], ids=["network", "layers"])
@pytest.mark.parametrize("first", [False, True], ids=["after", "before"])
def test_hooks_of_accelerate_before_and_after(everywhere: bool, first: bool) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Counting(ModelHook):
        calls = 0

        def pre_forward(self, module: nn.Module, *args: Any, **named: Any) -> Any:
            Counting.calls += 1
            return args, named

    dense = tiny_unet()
    fast = copy.deepcopy(dense)
    handle = None if first else sparsify(fast)
    hooked = [m for m in fast.modules() if not list(m.children())] if everywhere else [fast]
    for layer in hooked:
        add_hook_to_module(layer, Counting())
    handle = handle or sparsify(fast)
    check_unet(dense, fast, handle)
    assert Counting.calls
    for layer in hooked:
        remove_hook_from_module(layer)
    check_unet(dense, fast, handle)


def test_sequential_offloading() -> None:
    from accelerate import cpu_offload

    dense = tiny_unet()
    fast = copy.deepcopy(dense)
    cpu_offload(fast, execution_device=torch.device("cpu"))
    check_unet(dense, fast, sparsify(fast))


def test_processors_that_only_save_memory() -> None:
    dense = tiny_unet()
    fast = copy.deepcopy(dense)
    fast.set_attention_slice(1)
    handle = sparsify(fast)
    masks, x = masks_of(rectangle(SIZE)), latents(1, SIZE)
    oracle = Oracle(Called(dense))
    with handle.recording():
        Called(fast)(x)
    with handle.sparse(masks):
        held = oracle.held(oracle.record(x)[1], masks, -x)
        assert max_error(Called(fast)(-x), held) < TOLERANCE


def own_processor(unet: Any) -> None:
    from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0

    block = unet.down_blocks[1].attentions[0].transformer_blocks[0]
    block.attn1.set_processor(PAGIdentitySelfAttnProcessor2_0())


def gligen(unet: Any) -> None:
    from diffusers.models.attention import GatedSelfAttentionDense

    block = unet.down_blocks[1].attentions[0].transformer_blocks[0]
    block.fuser = GatedSelfAttentionDense(32, 32, 4, 8)


def chunked(unet: Any) -> None:
    block = unet.down_blocks[1].attentions[0].transformer_blocks[0]
    block.set_chunk_feed_forward(1, dim=1)


def grouped_offloading(unet: Any) -> None:
    unet.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (own_processor, "attn1 attends to itself by PAGIdentitySelfAttnProcessor2_0"),
        (lambda unet: unet.fuse_qkv_projections(), "attn1 attends to itself by Fused"),
        (lambda unet: unet.enable_freeu(0.9, 0.2, 1.1, 1.2), "up_blocks.0 has FreeU"),
        (chunked, "runs in chunks; call disable_forward_chunking"),
        (gligen, "fuser is the self-attention of GLIGEN"),
        (lambda unet: setattr(unet.conv_out, "groups", 2), "conv_out is no plain 3x3"),
        (grouped_offloading, "has a forward of its own"),
    ],
    ids=["processor", "fused", "freeu", "chunks", "gligen", "groups", "hooks"],
)
def test_refused_by_name_now_and_at_a_recording(change: Callable[[Any], None], words: str) -> None:
    unet = tiny_unet()
    change(unet)
    with pytest.raises(NotSparseError, match=words):
        sparsify(unet)
    if words.endswith("of its own"):
        return  # installed afterwards, such hooks are no obstacle
    unet = tiny_unet()
    handle = sparsify(unet)
    change(unet)
    with pytest.raises(NotSparseError, match=words), handle.recording():
        pass


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resnet_out_scale_factor": 1.0, "norm_num_groups": None}, "norm"),
        ({"conv_in_kernel": 5}, "conv_in is no plain 3x3 convolution"),
        (
            {
                "down_block_types": ("ResnetDownsampleBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
                "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("ResnetUpsampleBlock2D",),
            },
            "downsamplers.0 resamples inside of a residual block",
        ),
    ],
    ids=["no norm", "wide", "resampling"],
)
def test_unets_that_no_rule_covers(changes: dict[str, Any], words: str) -> None:
    from diffusers import UNet2DConditionModel

    from tests.tiny_diffusers import UNET

    try:
        unet = UNet2DConditionModel(**{**UNET, **changes})
    except (TypeError, ValueError) as error:
        pytest.skip(f"this diffusers does not build it: {error}")
    with pytest.raises(NotSparseError, match=words):
        sparsify(unet)


def test_samplers_without_a_convolution_are_refused() -> None:
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.upsampling import Upsample2D

    for sampler, place in ((Downsample2D(16), "down_blocks"), (Upsample2D(32), "up_blocks")):
        unet = tiny_unet()
        block = getattr(unet, place)[0]
        block.downsamplers = block.upsamplers = nn.ModuleList([sampler])
        with pytest.raises(NotSparseError, match="resamples otherwise than by a 3x3 convolution"):
            sparsify(unet)


def test_networks_of_other_kinds_are_refused() -> None:
    from diffusers import AutoencoderTiny, UNet2DModel

    with pytest.raises(NotSparseError, match="no rules for a AutoencoderKL; expected a UNet, an"):
        sparsify(tiny_vae())
    with pytest.raises(NotSparseError, match="no rules for a EncoderTiny"):
        sparsify(AutoencoderTiny().encoder)
    with pytest.raises(NotSparseError, match="no rules for a UNet2DModel"):
        sparsify(UNet2DModel(block_out_channels=(32, 32, 32, 32)))


def test_tiles_are_refused() -> None:
    vae = tiny_vae()
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 64, 8
    handle = sparsify(vae.encoder)
    with (
        handle.recording(),
        pytest.raises(SparseStateError, match="as tiles or slices; call disable_tiling"),
    ):
        vae.encode(torch.zeros(1, 3, 128, 128))


def test_a_size_that_does_not_halve_evenly_is_refused() -> None:
    unet, size = tiny_unet(), (144, 208)  # latents of 18x26, whose half is 9x13 and then 5x7
    handle = sparsify(unet)
    with handle.recording():
        Called(unet)(latents(1, size))
    with (
        handle.sparse(downsample_mask(rectangle(size), 0)),
        pytest.raises(SparseStateError, match="no level of 5x7"),
    ):
        Called(unet)(latents(1, size))


# --- somebody else's loop -------------------------------------------------------------------------


def test_passes_of_a_loop_are_recorded_skipped_and_replayed() -> None:
    dense = tiny_unet()
    unet = copy.deepcopy(dense)
    handle, called, masks = sparsify(unet), Called(unet), masks_of(rectangle(SIZE))
    xs = [latents(seed, SIZE) for seed in range(4)]
    oracle = Oracle(Called(dense))
    with handle.recording_steps(only={1, 3}) as kept:
        outs = [called(x) for x in xs]
    assert len(kept) == 2 and not outs[0].any() and outs[0].shape == (2, 4, 16, 24)
    assert max_error(outs[3], oracle.record(xs[3])[0]) < TOLERANCE
    texts = [layer for name, layer in unet.named_modules() if name.endswith("attn2.to_k")]
    calls: list[int] = []
    for layer in texts:
        layer.register_forward_hook(lambda *_: calls.append(1))
    with handle.replaying(kept, masks):
        for number in (1, 3):
            held = oracle.held(oracle.record(xs[number])[1], masks, -xs[number])
            assert max_error(called(-xs[number]), held) < TOLERANCE
    assert len(calls) == 2 * len(texts)  # `Called` copies its tensors, so each text is another


def test_a_text_is_projected_once_while_the_same_tensor_comes() -> None:
    unet, named = tiny_unet(), conditions()
    handle, masks = sparsify(unet), masks_of(rectangle(SIZE))
    x, changed = latents(1, SIZE), {**named, "encoder_hidden_states": torch.ones(2, 7, 32)}
    with handle.recording_steps() as kept:
        for given in (named, named, changed):
            unet(x, 300, **given)
    calls: list[int] = []
    layer = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2.to_v")
    layer.register_forward_hook(lambda *_: calls.append(1))
    with handle.replaying(kept, masks):
        outs = [unet(-x, 300, **given).sample for given in (named, named, changed)]
    assert len(calls) == 2
    assert torch.equal(outs[0], outs[1])
    with handle.recording():
        unet(x, 300, **changed)
    with handle.sparse(masks):  # projects what comes
        assert torch.equal(unet(-x, 300, **changed).sample, outs[2])
