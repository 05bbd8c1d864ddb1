"""v-prediction and the schedule of zero terminal SNR: scalings, networks, whole pictures."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sgm.inference.pipeline import Pipeline
from sgm.io.checkpoint import build_model
from sgm.io.sources import Kind
from sgm.modules.diffusionmodules.denoiser import DiscreteDenoiser
from sgm.modules.diffusionmodules.denoiser_scaling import EpsScaling, VScaling
from sgm.modules.diffusionmodules.discretizer import LAST_ALPHA, LegacyDDPMDiscretization
from sgm.specs import MODELS, Weights
from sgm.words import Precision, Prediction, RunType
from tests.conftest import ROOT, max_error
from tests.diffusers_here import diffusers_or_skip
from tests.edits_here import inpaint_with

CONFIGS = ROOT / "configs"
FILE = ROOT / "pretrained" / "tiny_base.safetensors"


def velocity(noise: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """The velocity that says the same as a noise about x, scaled as networks see it: with
    x = a picture + s noise and v = a noise - s picture, v = (noise - s x) / a."""
    a = (sigma**2 + 1).rsqrt()
    return (noise - sigma * a * x) / a


def test_the_scalings_of_both_say_the_same() -> None:
    sigma = torch.tensor([0.03, 1.0, 14.6, 4096.0], dtype=torch.float64)[:, None]
    picture, noise = torch.randn(2, 4, 9, dtype=torch.float64)
    x = picture + sigma * noise
    for scaling, output in (
        (EpsScaling(), noise),
        (VScaling(), velocity(noise, x * (sigma**2 + 1).rsqrt(), sigma)),
    ):
        skip, out, into, level = scaling(sigma)
        assert torch.equal(level, sigma) and torch.allclose(into * into * (1 + sigma**2), sigma**0)
        assert max_error(x * skip + output * out, picture) < 1e-9
        assert {t.dtype for t in (skip, out, into)} == {torch.float64}


def test_the_schedule_of_zero_terminal_snr() -> None:
    plain = LegacyDDPMDiscretization()(1000, append_zero=False).double()
    zero = LegacyDDPMDiscretization(zero_terminal_snr=True)(1000, append_zero=False).double()
    assert zero[0] == pytest.approx(LAST_ALPHA**-0.5, rel=1e-6)
    torch.testing.assert_close(zero[-1], plain[-1], rtol=1e-6, atol=0)  # the first stays
    # Square roots of what is left of the picture, shifted and stretched linearly.
    signal, before = ((1 + s[1:] ** 2).rsqrt() for s in (zero, plain))
    slope, start = before[0] - before[1], before[0]
    torch.testing.assert_close(
        (signal - signal[0]) / (signal[1] - signal[0]), (start - before) / slope, rtol=1e-4, atol=0
    )


def test_the_schedule_is_that_of_diffusers() -> None:
    (diffusers,) = diffusers_or_skip()
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
    )
    theirs = scheduler.sigmas[:-1].flip(0) if scheduler.sigmas[0] < 1 else scheduler.sigmas[:-1]
    ours = LegacyDDPMDiscretization(zero_terminal_snr=True)(1000, append_zero=False)
    # Theirs is a product of 1000 numbers in float32, worst where little of the picture is left.
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=5e-3, atol=0)
    torch.testing.assert_close(ours[100:], theirs[100:], rtol=1e-4, atol=0)
    assert ours[0] == pytest.approx(float(theirs[0]), rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "scaling", "last"),
    [
        (Kind(), EpsScaling, 14.6146),
        (Kind(Prediction.V), VScaling, 14.6146),
        (Kind(Prediction.V, True), VScaling, 4096),
    ],
)
def test_a_network_is_built_as_its_files_say(kind: Kind, scaling: type, last: float) -> None:
    denoiser = build_model(CONFIGS / "tiny-original.yaml", kind).denoiser
    assert isinstance(denoiser, DiscreteDenoiser) and type(denoiser.scaling) is scaling
    assert float(denoiser.sigmas[-1]) == pytest.approx(last, rel=1e-4)


class AsVelocity(nn.Module):
    """A network that predicts noise, made one that predicts the velocity."""

    def __init__(self, model: nn.Module, denoiser: DiscreteDenoiser) -> None:
        super().__init__()
        self.model, self.denoiser = model, denoiser

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        sigma = self.denoiser.idx_to_sigma(t).reshape(-1, 1, 1, 1)
        return velocity(self.model(x, t, cond), x, sigma)


def load(run_type: RunType, prediction: Prediction | None, path: Path = FILE) -> Pipeline:
    weights = Weights(path, prediction=prediction)
    arguments = (MODELS["tiny"], run_type, CONFIGS, path.parent, torch.device("cpu"))
    return Pipeline.load(*arguments, Precision.FP32, progress=False, weights=weights)


@pytest.mark.parametrize("run_type", [RunType.ORIGINAL, RunType.SIGE], ids=str)
def test_two_parametrisations_of_one_model_give_equal_pictures(run_type: RunType) -> None:
    noise, v = load(run_type, None), load(run_type, Prediction.V)
    engine = v.networks.engine
    engine.model = AsVelocity(engine.model, engine.denoiser)
    picture = torch.rand(3, 64, 64) * 2 - 1
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[16:40, 20:50] = True
    first, second = (inpaint_with(p, picture, mask, "a horse", steps=3).image for p in (noise, v))
    assert max_error(first, second) < 1e-4
    unlike = inpaint_with(load(run_type, Prediction.V), picture, mask, "a horse", steps=3).image
    assert max_error(first, unlike) > 0.05
