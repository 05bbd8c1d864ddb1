"""The tiny refiner: which weights of the base it starts with, and what is shipped."""

import pytest
import torch

from sgm.io.checkpoint import build_model
from sgm.specs import MASKED_CHANNELS, MODELS
from tests.conftest import ROOT
from tools.tiny.checkpoints import read
from tools.tiny.shrink import kept, narrowed

UNET = "model.diffusion_model."
MEGABYTES = 25


def unet_shapes(config: str) -> dict[str, torch.Size]:
    model = build_model(ROOT / "configs" / config)
    return {k[len(UNET) :]: t.shape for k, t in model.state_dict().items() if k.startswith(UNET)}


def test_the_narrowed_base_fits_the_refiner() -> None:
    wide, narrow = unet_shapes("tiny-original.yaml"), unet_shapes("tiny-refiner.yaml")
    first = "input_blocks.0.0.weight"
    wide[first] = narrow[first] = torch.Size([wide[first][0], MASKED_CHANNELS, 3, 3])
    result = narrowed({name: torch.randn(shape) for name, shape in wide.items()}, narrow)
    assert {name: tensor.shape for name, tensor in result.items()} == narrow


@pytest.mark.parametrize(
    ("old", "new", "name", "axis", "expected"),
    [
        (64, 64, "input_blocks.2.0.in_layers.2.weight", 0, list(range(64))),
        (32, 24, "middle_block.0.out_layers.3.weight", 0, [*range(12), *range(16, 28)]),
        (192, 160, "output_blocks.1.0.in_layers.2.weight", 1, None),
        (48, 32, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1, [*range(16, 48)]),
        (128, 96, "middle_block.1.transformer_blocks.0.attn1.to_q.weight", 0, [*range(96)]),
        (128, 96, "middle_block.1.transformer_blocks.0.attn1.to_out.0.weight", 1, [*range(96)]),
    ],
)
def test_what_is_kept(old: int, new: int, name: str, axis: int, expected: list | None) -> None:
    indices = kept(old, new, name, axis).tolist()
    assert len(indices) == new and indices == sorted(set(indices))
    if expected is None:  # a deepest level of 128 thinned, a skip connection of 64 whole
        expected = [i for i in range(128) if i % 16 < 12] + [*range(128, 192)]
    assert indices == expected


def test_a_width_without_a_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="No rule narrows x from 128 to 90"):
        kept(128, 90, "x", 0)


def test_what_is_shipped() -> None:
    tiny = MODELS["tiny"]
    files = {file for role in tiny.weights for file in tiny.own(ROOT / "pretrained", role).files}
    assert len(files) == 3
    if not all(path.is_file() for path in files):
        pytest.skip("the shipped weights are not here")
    assert sum(path.stat().st_size for path in files) <= MEGABYTES * 1e6
    _, metadata = read(ROOT / "pretrained" / "tiny_refiner.safetensors")
    assert int(metadata["refiner_steps"]) > 0 and "tiny_base" in metadata["started_from"]
    _, metadata = read(ROOT / "pretrained" / "tiny_turbo_lora.safetensors")
    assert int(metadata["turbo_steps"]) > 0
