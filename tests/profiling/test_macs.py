"""Counted multiply-accumulates against golden figures and torchprofile, dense and sparse."""

import json
import warnings
from collections import Counter
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sgm.inference import presets
from sgm.io.checkpoint import build_model
from sgm.models.autoencoder import AutoencoderKL
from sgm.models.sige_autoencoder import SIGEAutoencoderKL
from sgm.modules.diffusionmodules.openaimodel import UNetModel
from sgm.modules.diffusionmodules.sige_openaimodel import SIGEUNetModel
from sgm.profiling.macs import Macs, count_macs
from sgm.sparse import matmul
from sgm.sparse.masks import inpainting_pyramid
from sgm.sparse.rules.published import PUBLISHED
from sgm.sparse.sparsify import handle_of, sparsify
from tests.conftest import ROOT, golden_file, oracle

# torchprofile's names. The sparse engine runs convolutions as products of rows, of the same size,
# so that only the sum over products can be compared between engines.
ATTENTION = "aten::scaled_dot_product_attention"
PRODUCTS = ("_convolution", "linear", "matmul", "mm", "addmm", "bmm", "baddbmm")


def check_operators(counted: Macs, operators: Mapping[str, int]) -> None:
    """Counts against those of torchprofile by operator."""
    assert counted.products == sum(operators.get(f"aten::{name}", 0) for name in PRODUCTS)
    assert counted.attention == operators.get(ATTENTION, 0)


def check(counted: Macs, reference: dict) -> None:
    check_operators(counted, reference["by_operator_0.1.0"])
    assert counted.total == pytest.approx(reference["torchprofile_0.0.4"], rel=0.01)
    assert counted.with_attention == pytest.approx(reference["torchprofile_0.1.0"], rel=0.01)


def unet_of(data, cls):
    """Counts do not depend on the weights, so the random ones of the constructor do."""
    config = data.info["config"]
    unet = cls(**{k: v for k, v in config.items() if k not in UNetModel.TRAINING_ONLY}).eval()
    if cls is SIGEUNetModel:
        sparsify(unet)
    return unet


@pytest.fixture(scope="module", params=["unet_base", "unet_refiner"])
def unet(request, golden):
    """A UNet that has recorded, its inputs, and its golden case."""
    data = golden(request.param)
    network = unet_of(data, SIGEUNetModel)
    inputs = (data["x0"], data["timesteps"], data["context"], data["y"])
    with torch.inference_mode(), handle_of(network).recording():
        network(*inputs)
    return network, inputs, data


def test_dense_unet(golden):
    data = golden("unet_base")
    inputs = (data["x0"], data["timesteps"], data["context"], data["y"])
    check(count_macs(unet_of(data, UNetModel), *inputs), data.info["macs"]["original"])


@pytest.mark.parametrize("mask", ["rect", "blob"])
def test_sparse_unet(unet, mask):
    network, inputs, data = unet
    height, width = (8 * n for n in data["x0"].shape[2:])
    masks = inpainting_pyramid(data.mask(f"{mask}/pixel_mask", height, width))
    with handle_of(network).sparse(masks):
        check(count_macs(network, *inputs), data.info["macs"][f"sige_{mask}"])


def vae_of(data, cls):
    model = cls(embed_dim=4, ddconfig=data.info["ddconfig"]).eval()
    if cls is SIGEAutoencoderKL:
        sparsify(model.encoder, PUBLISHED)
        sparsify(model.decoder, PUBLISHED)
    return model


def picture(data):
    return 2 * (data["image0"][None].float() / 255) - 1


def test_dense_autoencoder(golden):
    data = golden("vae")
    model, macs = vae_of(data, AutoencoderKL), data.info["macs"]
    check(count_macs(model.encoder, picture(data)), macs["encoder_original"])
    check(count_macs(model.decoder, data["z0"]), macs["decoder_original"])


@pytest.mark.parametrize("mask", ["rect", "blob"])
@torch.inference_mode()
def test_sparse_autoencoder(golden, mask):
    """Also: counting inside inference mode, where a pipeline would."""
    data = golden("vae")
    model, x = vae_of(data, SIGEAutoencoderKL), picture(data)
    pixels = data.mask(f"{mask}/pixel_mask", *x.shape[2:])
    for name, network, value, masks in (
        ("encoder", model.encoder, x, presets.PUBLISHED.sdedit_masks(pixels)),
        ("decoder", model.decoder, data["z0"], presets.PUBLISHED.sdedit_decoder_masks(pixels)),
    ):
        with handle_of(network).recording():
            network(value)
        with handle_of(network).sparse(masks):
            check(count_macs(network, value), data.info["macs"][f"{name}_sige_{mask}"])


@torch.inference_mode()
def test_a_count_does_not_depend_on_what_was_run_before(golden):
    """Active sets built while tracing are good afterwards, and cost nothing while they are."""
    data = golden("vae")
    encoder, x = vae_of(data, SIGEAutoencoderKL).encoder, picture(data)
    masks = presets.PUBLISHED.sdedit_masks(data.mask("rect/pixel_mask", *x.shape[2:]))
    with handle_of(encoder).recording():
        encoder(x)
    with handle_of(encoder).sparse(masks):
        first = count_macs(encoder, x)
        traced = encoder(x)
        assert count_macs(encoder, x) == first
    with handle_of(encoder).sparse(dict(masks)):  # builds its sets anew
        assert torch.equal(encoder(x), traced)


def test_shapes_alone_are_enough(unet):
    """On the meta device, without numbers, the counts are those of the real pass."""
    network, inputs, data = unet
    height, width = (8 * n for n in data["x0"].shape[2:])
    masks = inpainting_pyramid(data.mask("blob/pixel_mask", height, width))
    with handle_of(network).sparse(masks):
        real = count_macs(network, *inputs)
    with torch.device("meta"):
        empty = unet_of(data, SIGEUNetModel)
    shapes = [x.to("meta") for x in inputs]
    with handle_of(empty).recording():
        empty(*shapes)
    with handle_of(empty).sparse(masks):
        assert count_macs(empty, *shapes) == real


def test_operators_by_hand():
    a, b, index = torch.zeros(2, 3, 4), torch.zeros(2, 4, 5), torch.tensor([0, 2])
    assert count_macs(nn.Linear(3, 5), torch.zeros(2, 7, 3)) == Macs(2 * 7 * 3 * 5)
    assert count_macs(nn.Conv2d(4, 6, 3, groups=2), torch.zeros(1, 4, 5, 5)) == Macs(9 * 6 * 2 * 9)
    for product in (torch.bmm, torch.matmul, lambda a, b: torch.einsum("bij,bjk->bik", a, b)):
        assert count_macs(product, a, b) == Macs(2 * 3 * 4 * 5)
    assert count_macs(lambda x: x.mul_(2) + x * x, a) == Macs(0, elementwise=2 * 24)
    assert count_macs(torch.addcmul, a, a, a) == Macs(0, elementwise=24)
    assert count_macs(lambda x: x.mean(1), a) == Macs(0, elementwise=8)
    assert count_macs(lambda i: i * 2, index) == Macs(0)
    free = count_macs(lambda x: x.index_select(1, index).index_copy(1, index * 0 + 1, x[:, :2]), a)
    assert free == Macs(0)
    for affine in (True, False):
        norms = nn.LayerNorm(4, elementwise_affine=affine), nn.GroupNorm(3, 3, affine=affine)
        assert count_macs(nn.Sequential(*norms), a) == Macs(0, elementwise=2 * 24 * affine)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_is_counted_apart(device):
    """Whichever kernel runs: some are products of their own, some one operator."""
    q, k, v = (torch.zeros(2, 3, n, d, device=device) for n, d in ((5, 8), (7, 8), (7, 8)))
    counted = count_macs(lambda: F.scaled_dot_product_attention(q, k, v) @ v.mT)
    assert counted.attention == 2 * 3 * 5 * 7 * (8 + 8)
    assert (counted.products, counted.elementwise) == (2 * 3 * 5 * 8 * 7, 0)
    assert counted.with_attention - counted.total == counted.attention


@torch.inference_mode()
def test_dense_counts_equal_those_of_torchprofile(unet, monkeypatch):
    """Dense only: where it traces, sizes are tensors, which find no active set."""
    torchprofile = oracle("torchprofile")
    monkeypatch.setattr(matmul, "FEW_ROWS", 0)  # it does not know `aten::mm`
    network, inputs, _ = unet
    operators: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer: sizes become constants
        nodes = torchprofile.profile_macs(network, inputs, reduction=None)
    for node, count in nodes.items():
        operators[node.operator] += count
    counted = count_macs(network, *inputs)
    check_operators(counted, operators)
    assert counted.with_attention == pytest.approx(sum(operators.values()), rel=0.001)


@pytest.fixture(scope="module")
def published():
    """The published networks on the meta device, and the published figures in GMAC."""
    figures = json.loads(golden_file("macs_full.json").read_text())
    model = build_model(ROOT / "configs" / "sige.yaml").eval()
    autoencoder = model.first_stage_model
    for network in (model.model.diffusion_model, autoencoder.encoder, autoencoder.decoder):
        sparsify(network, PUBLISHED)
    return model, figures


@pytest.fixture(scope="module")
def rectangle():
    """The published inpainting mask."""
    mask = torch.zeros(512, 1024, dtype=torch.bool)
    mask[280:470, 590:910] = True
    return inpainting_pyramid(mask)


# Convolutions, linear layers and matrix products of the published networks, original and with the
# published mask, in GMAC.
@pytest.mark.parametrize(
    ("part", "exact"),
    [
        ("encoder", (1082.298, 160.190)),
        ("decoder", (2480.159, 342.872)),
        ("unet_base", (3014.926, 973.962)),
    ],
)
@torch.inference_mode()
def test_published_figures_at_full_size(published, rectangle, part, exact):
    model, figures = published
    with torch.device("meta"):
        if part == "unet_base":
            network, x = model.model.diffusion_model, torch.zeros(2, 4, 64, 128)
            inputs = [x, torch.zeros(2).long(), torch.zeros(2, 77, 2048), torch.zeros(2, 2816)]
        else:
            network = getattr(model.first_stage_model, part)
            inputs = [torch.zeros((1, 3, 512, 1024) if part == "encoder" else (1, 4, 64, 128))]
    dense = count_macs(network, *inputs)
    with handle_of(network).recording():
        network(*inputs)
    with handle_of(network).sparse(rectangle):
        sparse = count_macs(network, *inputs)
    for macs, kind, gmacs in zip((dense, sparse), ("original", "inpaint"), exact, strict=True):
        assert round(macs.products / 1e9, 3) == gmacs
        for version, count in (("0.0.4", macs.total), ("0.1.0", macs.with_attention)):
            total = figures[f"torchprofile_{version}"][part][kind]
            assert count / 1e9 == pytest.approx(total, rel=0.005)
