"""The drawing is found, and what a lossy format did to the rest is not."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sgm.inference.border import blur
from sgm.inference.drawing import find_drawing, where_drawn
from sgm.io.imageio import to_tensor
from sgm.sparse.masks import difference_mask, dilate

SIZE = (192, 256)
RECIPES = {"PNG": ("PNG", {}), "WebP": ("WEBP", {"quality": 90})} | {
    f"JPEG {quality}": ("JPEG", {"quality": quality}) for quality in (98, 90, 80, 50)
}


def scene(grain: float) -> np.ndarray:
    """uint8 [H, W, 3]: soft hills with edges, and grain as a camera leaves."""
    generator = torch.Generator().manual_seed(5)
    soft = blur(torch.rand(3, *SIZE, generator=generator) - 0.5, 6.0) * 1500 + 110
    ridge = torch.arange(SIZE[0])[:, None] > 90 + 20 * torch.sin(torch.arange(SIZE[1]) / 20)
    noise = torch.randn(1, *SIZE, generator=generator) * grain
    return (soft + 40 * ridge + noise).clamp(0, 255).permute(1, 2, 0).numpy().astype(np.uint8)


def drawn() -> Tensor:
    """Where it is drawn: a disc, and a stroke of three pixels."""
    rows, columns = torch.meshgrid(*map(torch.arange, SIZE), indexing="ij")
    return ((rows - 60) ** 2 + (columns - 80) ** 2 < 300) | (
        ((rows - 150).abs() <= 1) & (columns > 40) & (columns < 220)
    )


def stored(pixels: np.ndarray, recipe: str) -> Tensor:
    """A picture as it comes back from a file."""
    kind, options = RECIPES[recipe]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return to_tensor(Image.open(buffer).convert("RGB"))


@pytest.mark.parametrize("grain", [0, 6], ids=["flat", "grainy"])
@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "JPEG 50"])
def test_the_drawing_is_found_in_any_format(recipe: str, grain: float) -> None:
    before, mask = scene(grain), drawn()
    after = before.copy()
    after[mask.numpy()] = (200, 40, 60)
    found = find_drawing(to_tensor(Image.fromarray(before)), stored(after, recipe))
    assert (found & mask).sum() >= 0.97 * mask.sum()
    # Formats with fewer colours than pixels smear a stroke of three pixels to twice its width.
    assert found.float().mean() <= mask.float().mean() * (1 if recipe == "PNG" else 2.1)
    assert (found & ~dilate(dilate(mask, 8), 4)).float().mean() < 2e-3


def test_a_drawing_on_a_jpeg_that_is_saved_as_jpeg_again() -> None:
    first, mask = stored(scene(6), "JPEG 90"), drawn()
    pixels = ((first.permute(1, 2, 0) + 1) * 127.5).round().numpy().astype(np.uint8)
    pixels[mask.numpy()] = (240, 240, 20)
    found = find_drawing(first, stored(pixels, "JPEG 90"))
    assert (found & mask).sum() >= 0.97 * mask.sum() and found.float().mean() < 0.08


def test_specks_are_no_drawing_and_thin_lines_are_one() -> None:
    before = to_tensor(Image.fromarray(scene(0)))
    after = before.clone()
    after[:, 20, 30] *= -1  # dust
    after[:, 100:102, 200] *= -1
    assert difference_mask(before, after).any() and not find_drawing(before, after).any()
    after[:, 150, 40:200] = -1
    assert find_drawing(before, after)[150, 41:199].all()


@pytest.mark.parametrize("quality", [80, 50])
def test_compression_alone_is_no_drawing(quality: int) -> None:
    pixels = scene(6)
    before = to_tensor(Image.fromarray(pixels))
    after = stored(pixels, f"JPEG {quality}")
    assert difference_mask(before, after).float().mean() > 0.1
    assert find_drawing(before, after).float().mean() < 0.002


def test_where_nothing_stands_out_every_difference_counts() -> None:
    before = torch.zeros(3, 16, 16)
    after = before.clone()
    after[:, 4, 4] = after[:, 10, 3] = 0.5  # two specks, and nothing else
    assert not find_drawing(before, after).any()
    found = where_drawn(before, after, blended=True)
    assert torch.equal(found, difference_mask(before, after)) and found.sum() == 2
