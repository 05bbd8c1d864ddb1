"""Counted multiply-accumulates against the golden figures, dense and sparse."""

import json
import logging
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sgm.io.checkpoint import build_model
from sgm.models.autoencoder import AutoencoderKL
from sgm.models.sige_autoencoder import SIGEAutoencoderKL
from sgm.modules.diffusionmodules.openaimodel import UNetModel
from sgm.modules.diffusionmodules.sige_openaimodel import SIGEUNetModel
from sgm.profiling.macs import MATRIX_OPERATORS, Macs, count_macs
from sgm.sparse.masks import inpainting_pyramid, sdedit_decoder_pyramid, sdedit_pyramid
from sgm.sparse.rules.published import PUBLISHED
from sgm.sparse.sparsify import handle_of, sparsify
from tests.conftest import ROOT, golden_file

ATTENTION = "aten::scaled_dot_product_attention"


@pytest.fixture(autouse=True)
def no_unknown_operators(caplog):
    """Nothing may be left out of a count, and the tracer may not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert not [r for r in caplog.get_records("call") if r.levelno >= logging.WARNING]


def check(counted: Macs, reference: dict) -> None:
    operators = reference["by_operator_0.1.0"]
    products = sum(operators.get(name, 0) for name in MATRIX_OPERATORS)
    assert counted.products == products
    assert counted.attention == operators.get(ATTENTION, 0)
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
        ("encoder", model.encoder, x, sdedit_pyramid(pixels)),
        ("decoder", model.decoder, data["z0"], sdedit_decoder_pyramid(pixels)),
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
    masks = sdedit_pyramid(data.mask("rect/pixel_mask", *x.shape[2:]))
    with handle_of(encoder).recording():
        encoder(x)
    with handle_of(encoder).sparse(masks):
        first = count_macs(encoder, x)
        traced = encoder(x)
        assert count_macs(encoder, x) == first
    with handle_of(encoder).sparse(dict(masks)):  # builds its sets anew
        assert torch.equal(encoder(x), traced)


def test_shapes_alone_are_enough(unet):
    """On the meta device, without numbers, the counts are those of the real pass, whichever way
    around its processor multiplies."""

    def told_apart(macs):
        others = macs.by_operator.keys() - set(MATRIX_OPERATORS)
        return macs.products, {name: macs.by_operator[name] for name in others}

    network, inputs, data = unet
    height, width = (8 * n for n in data["x0"].shape[2:])
    masks = inpainting_pyramid(data.mask("blob/pixel_mask", height, width))
    with handle_of(network).sparse(masks):
        real = told_apart(count_macs(network, *inputs))
    with torch.device("meta"):
        empty = unet_of(data, SIGEUNetModel)
    shapes = [x.to("meta") for x in inputs]
    with handle_of(empty).recording():
        empty(*shapes)
    with handle_of(empty).sparse(masks):
        assert told_apart(count_macs(empty, *shapes)) == real


def test_small_operators_by_hand():
    layer = nn.Linear(3, 5)
    assert count_macs(layer, torch.zeros(2, 7, 3)) == Macs({"aten::linear": 2 * 7 * 3 * 5})
    a, b = torch.zeros(2, 3, 4), torch.zeros(2, 4, 5)
    assert count_macs(torch.bmm, a, b) == Macs({"aten::bmm": 2 * 3 * 4 * 5})
    assert count_macs(lambda x: torch.addcmul(x, x, x), a).by_operator == {"aten::addcmul": 24}
    index = torch.tensor([0, 2])
    free = count_macs(lambda x: x.index_select(1, index).index_copy(1, index * 0 + 1, x[:, :2]), a)
    assert free.by_operator == {}
    attended = count_macs(F.scaled_dot_product_attention, a, a, a)
    assert (attended.total, attended.with_attention) == (0, 2 * 3 * 3 * 8)


def test_an_unknown_operator_is_named(caplog):
    assert count_macs(torch.erfinv, torch.zeros(3)) == Macs({})
    assert "erfinv" in caplog.text
    caplog.clear()


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
    ("part", "products"),
    [
        ("encoder", (1082.298, 160.190)),
        ("decoder", (2480.159, 342.872)),
        ("unet_base", (3014.926, 973.962)),
    ],
)
@torch.inference_mode()
def test_published_figures_at_full_size(published, rectangle, part, products):
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
    for macs, kind, exact in zip((dense, sparse), ("original", "inpaint"), products, strict=True):
        assert round(macs.products / 1e9, 3) == exact
        for version, count in (("0.0.4", macs.total), ("0.1.0", macs.with_attention)):
            total = figures[f"torchprofile_{version}"][part][kind]
            assert count / 1e9 == pytest.approx(total, rel=0.005)
