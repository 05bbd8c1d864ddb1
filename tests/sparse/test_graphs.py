"""Padded active sets, static memory and captured steps, as far as a CPU shows them.

A CUDA graph is stood in for by a tape: the operators of one pass, run again on the same tensors
without a line of the network's Python. Whatever a graph would read stale, the tape does too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sgm.inference.interpolate import Curve, Interpolated
from sgm.inference.networks import table_of_preset
from sgm.io.checkpoint import build_model
from sgm.modules.diffusionmodules.sampling import guidance_batch, guided
from sgm.sparse.active import CONV3X3, OUTSIDE, block_active_set, bucket
from sgm.sparse.backends.torch_ref import Prologue, TorchOps
from sgm.sparse.masks import MaskPyramid, inpainting_pyramid
from sgm.sparse.norm import Affine
from sgm.sparse.pixels import PixelGeometry
from sgm.sparse.recording import Recording
from sgm.sparse.sparsify import handle_of, sparsify
from sgm.sparse.static import StaticMemory
from sgm.words import Preset
from tests.conftest import ROOT, max_error, tiny_weights

SIZE = (128, 256)  # of the picture
LATENTS = (16, 32)


def tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class Tape(TorchDispatchMode):
    """Keeps every operator with its tensors; `play` computes all results anew, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.entries.append((func, args, kwargs or {}, out))
        return out

    def play(self) -> None:
        for func, args, kwargs, out in self.entries:
            read = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
            for old, new in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                if old.untyped_storage().data_ptr() not in read:  # neither a view nor in place
                    old.copy_(new)


def tape(step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """A `Capture`; after the capture the intermediate results are poisoned, as a graph's are not
    computed before its first launch."""
    recorder = Tape()
    with recorder:
        out = step()
    made = [t for *_, result in recorder.entries for t in tensors(result)]
    assert len(made) > 100
    out.fill_(torch.nan)
    recorder.play()
    return out, recorder.play


class NoWaiting(TorchDispatchMode):
    """Fails where a GPU pass would wait for the device: a tensor's value or a size that depends on
    values is asked for."""

    WAITS = (
        "item",
        "_local_scalar_dense",
        "nonzero",
        "unique",
        "_unique",
        "masked_select",
        "is_nonzero",
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition("::")[2].partition(".")[0]
        waits = any(name.startswith(w) for w in self.WAITS) or name == "equal"
        indexed = name in ("index", "index_put", "index_put_", "_index_put_impl_")
        if waits or (indexed and any(t.dtype == torch.bool for t in tensors(args[1]))):
            raise AssertionError(f"{func.name()} waits for the device")
        return func(*args, **(kwargs or {}))


def test_the_watch_for_waiting_sees_it() -> None:
    x = torch.arange(4)
    for wait in (lambda: x[0].item(), lambda: x[x > 1], lambda: x.nonzero(), lambda: x.unique()):
        with NoWaiting(), pytest.raises(AssertionError, match="waits"):
            wait()


def masks_of(*rectangles: tuple[int, int, int, int]) -> MaskPyramid:
    """A pyramid for rectangles (top, left, height, width) of picture pixels."""
    mask = torch.zeros(SIZE, dtype=torch.bool)
    for top, left, height, width in rectangles:
        mask[top : top + height, left : left + width] = True
    return inpainting_pyramid(mask)


FIRST, MOVED = masks_of((30, 50, 45, 60)), masks_of((62, 122, 45, 60))
LARGE = masks_of((0, 0, 128, 250))


@pytest.fixture(scope="module", params=["fast", "sige"])
def network(request) -> Iterator[tuple[str, torch.nn.Module]]:
    name = {"fast": "original", "sige": "sige"}[request.param]
    engine = build_model(ROOT / "configs" / f"tiny-{name}.yaml")
    shapes = {name: list(t.shape) for name, t in engine.state_dict().items()}
    engine.load_state_dict(tiny_weights(shapes), assign=True)
    preset = Preset.FAST if request.param == "fast" else Preset.PUBLISHED
    sparsify(engine.model.diffusion_model, table_of_preset(preset))
    yield request.param, engine.eval().to(memory_format=torch.channels_last)


@contextmanager
def fresh(unet: torch.nn.Module) -> Iterator[None]:
    """The network's state as if newly made, now and afterwards."""

    def forget() -> None:
        handle_of(unet).static = handle_of(unet).graphs = None
        handle_of(unet).clear()

    forget()
    with torch.inference_mode():
        yield
    forget()


class Run:
    """Steps of one network: a recording on drawn latents, then a sparse pass on edited ones."""

    def __init__(self, kind: str, unet: torch.nn.Module, text: int = 0) -> None:
        self.kind, self.unet = kind, unet
        generator = torch.Generator().manual_seed(1000 + text)
        self.context = torch.randn(2, 77, unet.context_dim, generator=generator)
        width = unet.label_emb[0][0].in_features
        self.y = torch.randn(2, width, generator=generator)

    def inputs(self, number: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(2, 4, *LATENTS, generator=generator)
        edited = x + torch.randn(x.shape, generator=generator)
        times = torch.tensor([number * 7, number * 7])
        return x, edited, {"timesteps": times, "context": self.context, "y": self.y}

    def __call__(self, number: int, masks: MaskPyramid) -> Tensor:
        x, edited, named = self.inputs(number)
        handle_of(self.unet).set_text(named["context"])
        with handle_of(self.unet).recording(masks if self.kind == "fast" else None):
            self.unet(x, **named)
        with handle_of(self.unet).sparse(masks):
            return self.unet(edited, **named)


def test_replayed_steps_equal_steps_that_are_run(network) -> None:
    """New recordings, masks of the same buckets, other text, and larger masks: nothing stale."""
    kind, engine = network
    unet = engine.model.diffusion_model
    run, other = Run(kind, unet), Run(kind, unet, text=1)
    steps = [(run, 0, FIRST), (run, 1, FIRST), (run, 2, FIRST), (run, 3, FIRST)]
    steps += [(run, 4, MOVED), (run, 5, MOVED), (run, 6, MOVED)]
    steps += [(other, 7, MOVED), (other, 8, MOVED), (other, 9, LARGE), (other, 10, LARGE)]
    with fresh(unet):
        expected = [r(number, masks) for r, number, masks in steps]
        handle_of(unet).clear()
        handle_of(unet).use_graphs(tape)
        captures = []
        for (r, number, masks), right in zip(steps, expected, strict=True):
            out = r(number, masks)
            # Padded rows change neither order nor number of what is summed for a real row, but a
            # matrix product may take another path for another number of rows.
            assert max_error(out, right) < 1e-5, number
            captures.append(handle_of(unet).graphs.captures)
    assert captures[:4] == [0, 1, 1, 1]  # run, captured, replayed
    if kind == "fast":
        assert captures[4:9] == [1] * 5  # other masks and text: the same graph
        assert captures[-1] == 2  # larger buckets: another one


def test_memory_outlives_forgetting(network) -> None:
    """A second edit finds the graph of the first."""
    kind, engine = network
    unet = engine.model.diffusion_model
    with fresh(unet):
        handle_of(unet).use_graphs(tape)
        run = Run(kind, unet)
        first = [run(number, FIRST) for number in range(3)]
        handle_of(unet).clear()
        second = [run(number, FIRST) for number in range(3)]
        assert handle_of(unet).graphs.captures == 1
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_graphs_for_two_sizes_of_masks_are_kept(network) -> None:
    """As an SDEdit run needs them, edit after edit: wide masks first, then narrow ones."""
    kind, engine = network
    unet = engine.model.diffusion_model
    with fresh(unet):
        handle_of(unet).use_graphs(tape)
        run = Run(kind, unet)
        for edit in range(3):
            for masks in (LARGE, FIRST):
                for number in range(3):
                    out = run(number, masks)
            handle_of(unet).clear()
            run = Run(kind, unet)
            if edit == 0:
                first, captures = out, handle_of(unet).graphs.captures
        assert torch.equal(out, first)
        assert captures == 2
        if kind == "fast":  # published recordings serve any masks, and lie in one place for all
            assert handle_of(unet).graphs.captures == 2


def test_a_recording_of_another_batch_is_captured_anew(network) -> None:
    kind, engine = network
    unet = engine.model.diffusion_model
    masks = FIRST if kind == "fast" else None
    with fresh(unet):
        handle_of(unet).use_graphs(tape)
        run = Run(kind, unet)
        for number in range(3):
            run(number, FIRST)
        x, edited, named = run.inputs(9)
        one = {name: t[:1].clone() for name, t in named.items()}
        handle_of(unet).set_text(one["context"])
        outs = []
        for _ in range(3):
            with handle_of(unet).recording(masks):
                unet(x[:1], **one)
            with handle_of(unet).sparse(FIRST):
                outs.append(unet(edited[:1], **one))
        assert handle_of(unet).graphs.captures == 2
    with fresh(unet):
        handle_of(unet).set_text(one["context"])
        with handle_of(unet).recording(masks):
            unet(x[:1], **one)
        with handle_of(unet).sparse(FIRST):
            right = unet(edited[:1], **one)
    assert all(max_error(out, right) < 1e-5 for out in outs)


def test_a_step_never_waits_for_the_device(network) -> None:
    """Recording and sparse pass with denoiser and guidance; the sets are built before."""
    kind, engine = network
    unet = engine.model.diffusion_model
    run = Run(kind, unet)
    x, edited, named = run.inputs(1)
    c = {"crossattn": named["context"][:1], "vector": named["y"][:1]}
    denoise = guided(engine.denoiser, engine.model, guidance_batch(c, c, 5.0), 5.0)
    sigma = torch.full((1,), 3.0)
    with fresh(unet):
        masks = FIRST if kind == "fast" else None
        for watch in (nullcontext(), NoWaiting()):
            with handle_of(unet).recording(masks), watch:
                denoise(x[:1], sigma)
            with handle_of(unet).sparse(FIRST), watch:
                denoise(edited[:1], sigma)


class NewTensors(TorchDispatchMode):
    """Counts operators whose result is in memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
        if any(t.untyped_storage().data_ptr() not in given for t in tensors(out)):
            self.found.append(func.name())
        return out


@pytest.mark.parametrize("dtype", [None, torch.int8])
def test_recordings_are_interpolated_where_graphs_read_them(network, dtype) -> None:
    """No memory from step to step and no copy, and the same bits as by way of a sum of its own."""
    kind, engine = network
    unet, handle = engine.model.diffusion_model, handle_of(engine.model.diffusion_model)
    if kind != "fast":
        pytest.skip("recordings of preset published are not interpolated")
    run, made, steps = Run(kind, unet), [0, 4, 8], [0, 1, 2, 3, 4, 5, 6]
    x, edited, named = run.inputs(20)

    def sparse_pass(recording: Recording) -> Tensor:
        handle.use(recording)
        with handle.sparse(FIRST):
            return unet(edited, **named)

    with fresh(unet):
        handle.use_graphs(tape)
        handle.set_text(named["context"])
        kept = {}
        for step in made:
            with handle.recording(dtype=dtype):
                unet(x + step, **named)
            kept[step] = handle.kept()
        own = Interpolated(Curve(kept.get, made, 2, handle.cut))
        expected = [sparse_pass(own.at(step, FIRST)) for step in steps]
        there = Interpolated(Curve(kept.get, made, 2, handle.cut), room=handle.room)
        for step, right in zip(steps, expected, strict=True):
            with NewTensors() as new:
                recording = there.at(step, FIRST)
                handle.use(recording)
            assert handle.record is recording
            # At step 0 the first recording, and at step 1 the others, were cut for the masks.
            assert not new.found or step < 2, new.found
            assert torch.equal(sparse_pass(recording), right), step
        assert handle.graphs.captures == 1


@pytest.mark.parametrize("count", [1, 63, 64, 65, 500, 1025, 5000, 100_000])
def test_buckets_are_few_and_close(count: int) -> None:
    padded = bucket(count)
    assert padded % 64 == 0 and count <= padded
    assert padded - count < 64 or padded < count * 1.0626
    assert bucket(padded) == padded


def test_a_padded_set_reads_and_writes_what_the_set_does() -> None:
    mask = FIRST[LATENTS]
    x, weight = torch.randn(2, mask.numel(), 3), torch.randn(5, 3, 3, 3)
    ops, plain = TorchOps(), Prologue()
    active = block_active_set(mask, CONV3X3)
    padded = active.pad()
    assert padded.count == bucket(active.count) and padded.count > active.count
    rows, more = (ops.conv(x, a, weight, None, plain) for a in (active, padded))
    assert max_error(more[:, : active.count], rows) < 1e-6
    assert not more[:, active.count :].any()  # they read nothing
    base = torch.randn(2, mask.numel(), 5)
    assert max_error(ops.scatter(base, padded, more), ops.scatter(base, active, rows)) < 1e-6


def test_a_padded_pixel_set_keeps_its_neighbours_apart() -> None:
    geometry = PixelGeometry(3, padding=1, padding_end=1)
    active = geometry.active_set(FIRST, LATENTS)
    padded = active.pad()
    own = active.in_size[0] - len(active.around)

    def pixels(chosen, count: int) -> Tensor:
        """The pixel of the whole map behind every entry of the table."""
        numbers = torch.cat([FIRST[LATENTS].flatten().nonzero()[:, 0], torch.zeros(count)])[:count]
        numbers = torch.cat([numbers, chosen.around, torch.tensor([OUTSIDE])])
        return numbers[chosen.inputs]

    same = pixels(padded, bucket(own))[: active.count]
    assert torch.equal(same, pixels(active, own))
    assert (padded.inputs[active.count :] == OUTSIDE).all()


def test_static_memory_keeps_addresses_and_counts_moves() -> None:
    memory = StaticMemory()
    value = torch.randn(2, 3)
    kept = memory.hold(("a",), value)
    assert torch.equal(kept, value) and kept is not value and memory.version == 1
    again = memory.hold(("a",), value + 1)
    assert again is kept and torch.equal(kept, value + 1) and memory.version == 1
    affine = memory.hold(("b",), Affine(value, value + 2))
    assert torch.equal(affine.shift, value + 2) and memory.version == 3
    assert memory.hold(("c",), (4, 5)) == (4, 5) and memory.version == 3
    assert memory.hold(("a",), value[:1]).shape == (1, 3) and memory.version == 4
    assert sum(t.numel() for t in memory.tensors.values()) == 3 + 6 + 6
