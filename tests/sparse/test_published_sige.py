"""The adapter to the published package against our reference: operators, and whole networks.

What needs the compiled package skips without it (`python -m tools.install_sige` builds it).
"""

import sys

import pytest
import torch
from torch import Tensor

from sgm.inference.networks import Networks
from sgm.io.checkpoint import build_model
from sgm.sparse.active import CONV1X1, CONV3X3, UNET_DOWN, VAE_DOWN, Geometry, block_active_set
from sgm.sparse.backends.published_sige import PublishedOps
from sgm.sparse.backends.torch_ref import Prologue, TorchOps
from sgm.sparse.layers import as_map, as_rows
from sgm.sparse.masks import inpainting_pyramid
from sgm.sparse.norm import Affine
from sgm.sparse.ops import BACKENDS, select_ops
from sgm.sparse.rules.published import PUBLISHED
from sgm.sparse.sparsify import handle_of
from tests.conftest import ROOT, max_error, tiny_weights

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OBSTACLE = BACKENDS["sige"].obstacle(DEVICE)
installed = pytest.mark.skipif(OBSTACLE is not None, reason=f"backend sige: {OBSTACLE}")
KINDS = {"3x3": CONV3X3, "1x1": CONV1X1, "unet down": UNET_DOWN, "vae down": VAE_DOWN}
TORCH = TorchOps()
ARITHMETIC = 1e-5  # sums of some hundred products of numbers near one, in another order


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE)


@installed
@pytest.mark.parametrize("affine", [True, False], ids=["norm", "plain"])
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("size", [(5, 7), (9, 16), (33, 31)], ids=str)
@pytest.mark.parametrize("geometry", KINDS.values(), ids=KINDS)
def test_every_operator_equals_torch_at_odd_sizes(
    geometry: Geometry, size: tuple[int, int], share: float, affine: bool
) -> None:
    ops = select_ops("sige", DEVICE)
    mask = torch.rand(size) < share
    mask[size[0] // 2, size[1] // 2] = True
    active = block_active_set(mask, geometry).to(DEVICE)
    pixels = active.out_size[0] * active.out_size[1]
    x, base, residual = drawn(2, mask.numel(), 6), drawn(2, pixels, 8), drawn(2, pixels, 8)
    weight, bias = drawn(8, 6, geometry.kernel, geometry.kernel) / geometry.kernel**2, drawn(8)
    norm = Affine(drawn(2, 6), drawn(2, 6)) if affine else None
    prologue = Prologue(norm, silu=geometry.kernel > 1)
    y, rows = drawn(2, pixels, 6), drawn(2, active.count, 8)
    found, expected = (
        (
            o.conv(x, active, weight, bias, prologue),
            o.scatter(base, active, rows),
            o.scatter(base.clone(), active, rows, residual, in_place=True),
            o.conv_scatter(x, active, weight, None, prologue, base, residual),
            o.gather(y, active, Prologue(norm, silu=True)),
        )
        for o in (ops, TORCH)
    )
    for theirs, ours in zip(found, expected, strict=True):
        assert max_error(theirs, ours) < ARITHMETIC


@installed
def test_the_rows_of_a_map_cost_no_copy() -> None:
    """Base and result stay maps in memory, whatever the view on them."""
    ops, active = select_ops("sige", DEVICE), block_active_set(torch.ones(8, 8) > 0, CONV3X3)
    x, weight = drawn(2, 6, 8, 8), drawn(6, 6, 3, 3)
    active = active.to(DEVICE)
    out = ops.conv_scatter(as_rows(x), active, weight, None, Prologue(), as_rows(x))
    assert as_rows(x).data_ptr() == x.data_ptr()
    assert as_map(out, (8, 8)).is_contiguous()


def tiny(backend: str) -> Networks:
    engine = build_model(ROOT / "configs" / "tiny-sige.yaml").eval()
    shapes = {name: list(tensor.shape) for name, tensor in engine.state_dict().items()}
    engine.load_state_dict(tiny_weights(shapes), assign=True)
    networks = Networks(engine.to(DEVICE).to(memory_format=torch.channels_last), PUBLISHED)
    networks.set_backend(backend)
    return networks


@installed
@torch.inference_mode()
@pytest.mark.parametrize("part", ["unet", "encoder", "decoder"])
def test_a_network_equals_that_of_the_torch_backend(part: str) -> None:
    mask = torch.zeros(128, 192, dtype=torch.bool)
    mask[40:90, 70:130] = True
    masks = inpainting_pyramid(mask)
    shape = {"unet": (2, 4, 16, 24), "encoder": (1, 3, 128, 192), "decoder": (1, 4, 16, 24)}[part]
    unedited = drawn(*shape)
    edited = torch.where(masks[shape[2:]].to(DEVICE), drawn(*shape), unedited)
    rest: tuple[Tensor, ...] = ()
    if part == "unet":
        rest = (torch.full((2,), 500, device=DEVICE), drawn(2, 77, 48), drawn(2, 128))
    results = []
    for backend in ("sige", "torch"):
        networks = tiny(backend)
        network, layout = getattr(networks, part), networks.layout
        with handle_of(network).recording():
            network(unedited.contiguous(memory_format=layout), *rest)
        recorded = {
            key: v for key, v in handle_of(network).record.values.items() if key[1] == "out"
        }
        maps = [v for v in recorded.values() if isinstance(v, Tensor) and v.ndim == 4]
        assert maps and all(v.is_contiguous(memory_format=layout) for v in maps)
        with handle_of(network).sparse(masks):
            out = network(edited.contiguous(memory_format=layout), *rest)
        assert out.is_contiguous(memory_format=layout)
        results.append(out)
    scale = results[1].abs().max().item()
    assert max_error(*results) < 1e-5 * scale


def test_it_is_never_chosen_unasked_and_refuses_other_sets() -> None:
    assert select_ops("auto", torch.device("cpu")).name != "sige"
    padded = block_active_set(torch.ones(8, 8) > 0, CONV3X3).pad()
    with pytest.raises(ValueError, match="whole blocks, and this active set has none"):
        PublishedOps().gather(torch.zeros(1, 64, 2), padded, Prologue())


def test_without_the_package_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sige.cpu", None)
    with pytest.raises(ValueError, match=r"cannot run here: .*tools\.install_sige"):
        select_ops("sige", torch.device("cpu"))
    with pytest.raises(ValueError, match="and the device is mps"):
        select_ops("sige", torch.device("mps"))
