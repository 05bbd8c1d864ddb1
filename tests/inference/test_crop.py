"""Edits of a crop: the window, what the network sees, and what comes back."""

import pytest
import torch

from sgm.inference.crop import EditRequest
from sgm.inference.presets import FAST
from sgm.inference.window import Window, is_larger, window_around
from sgm.specs import Blend

TRAINED = (256, 512)


def rectangle(size: tuple[int, int], top: int, left: int, height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((768, 1024), (300, 400, 90, 100)),
        ((768, 1024), (0, 0, 20, 30)),
        ((768, 1024), (700, 900, 68, 124)),
        ((1500, 2000), (100, 100, 900, 1200)),
        ((1500, 400), (10, 300, 40, 100)),
        ((3001, 203), (1000, 50, 1500, 100)),
        ((65, 2999), (3, 7, 50, 60)),
    ],
)
@pytest.mark.parametrize("margin", [None, 16, 200])
def test_windows_hold_the_edit_within_the_picture(
    size: tuple[int, int], box: tuple[int, int, int, int], margin: int | None
) -> None:
    mask = rectangle(size, *box)
    window = window_around(mask, TRAINED, margin)
    assert window.of(mask).sum() == mask.sum()
    assert window.of(mask).shape == (window.height, window.width)
    around = min(margin or 32, box[0], size[0] - box[0] - box[2])
    assert mask.nonzero()[0, 0] - window.top >= around
    assert all(side % 64 == 0 for side in window.size)
    assert 0.6 < window.size[0] * window.size[1] / (256 * 512) < 1.6
    if margin is None and min(size) >= 512:
        assert window.height >= 256 and window.width >= 256  # never enlarged
        seen = window.size[1] / window.size[0] * window.height / window.width
        assert seen == pytest.approx(1, rel=0.02)


def test_a_small_edit_of_a_large_picture_is_seen_as_it_is() -> None:
    window = window_around(rectangle((1500, 2000), 700, 900, 100, 150), TRAINED)
    assert window.size == (window.height, window.width) == TRAINED
    assert is_larger((768, 1024), TRAINED) and not is_larger((256, 600), TRAINED)


def test_nothing_marked_gets_lost_where_the_network_sees_less() -> None:
    window = Window(0, 0, 700, 900, (128, 192))
    for row, column in ((100, 320), (699, 899), (3, 500)):
        seen = window.seen_levels(rectangle((700, 900), row, column, 1, 1))
        assert seen.dtype is torch.bool and 1 <= seen.sum() <= 4


@pytest.mark.parametrize("task", ["inpainting", "sdedit"])
def test_the_result_is_put_back_and_the_rest_stays(task: str) -> None:
    size = (700, 900)
    image = torch.rand(3, *size) * 2 - 1
    mask = rectangle(size, 120, 300, 240, 250)
    mask[100, 320] = True  # nothing marked gets lost
    window, blend = window_around(mask, TRAINED), Blend(5, match_border=False)
    edited = None if task == "inpainting" else -image
    edit = EditRequest(image, edited, mask, 0.7, blend).within(window)
    if edited is None:
        assert edit.inner.mask.sum() > 0 and edit.inner.image.shape[1:] == window.size
    else:
        assert edit.inner.strength == 0.7 and edit.inner.drawing.any()
    assert edit.size == window.size
    touched = edit.touched(FAST)
    assert touched.shape == size and (touched | ~mask).all() and touched.float().mean() < 0.4
    result = edit.finish(torch.ones(3, *window.size), FAST)
    assert torch.equal(result[:, ~touched], ((image + 1) / 2)[:, ~touched])
    assert torch.allclose(result[:, mask], torch.ones(()))


@pytest.mark.parametrize("task", ["inpainting", "sdedit"])
def test_colours_and_grain_are_those_of_the_whole_picture(task: str) -> None:
    size, generator = (700, 900), torch.Generator().manual_seed(3)
    grain = torch.randn(3, *size, generator=generator) * 6 / 255
    smooth = torch.linspace(0.3, 0.7, size[1]).expand(3, *size)
    image, mask = (smooth + grain) * 2 - 1, rectangle(size, 120, 300, 240, 350)
    window, blend = window_around(mask, TRAINED), Blend()
    edited = None if task == "inpainting" else -image
    edit = EditRequest(image, edited, mask, 0.7, blend).within(window)
    result = edit.finish(window.seen(smooth) + 0.08, FAST)
    found = (result - smooth)[:, mask] * 255
    assert found.mean().abs() < 1 and found.std() == pytest.approx(6, rel=0.1)
    outside = edit.weight(FAST) == 0
    assert torch.equal(result[:, outside], ((image + 1) / 2)[:, outside])
