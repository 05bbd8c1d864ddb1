"""The edit put into the input: nothing outside changes, and the transition is soft."""

import pytest
import torch

from sgm.inference.composite import composite, depth, opacity


def test_depth_counts_from_the_border_of_the_mask_and_not_of_the_picture():
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask[0:4, 1:7] = True  # touches the top and the right
    expected = torch.tensor(
        [
            [0, 1, 2, 3, 3, 3, 3],
            [0, 1, 2, 3, 3, 3, 3],
            [0, 1, 2, 2, 2, 2, 2],
            [0, 1, 1, 1, 1, 1, 1],
            [0, 0, 0, 0, 0, 0, 0],
        ]
    )
    assert torch.equal(depth(mask, 3), expected.float())


@pytest.mark.parametrize("feather", [1, 4, 8])
def test_opacity_rises_to_one(feather):
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[5:35, 5:55] = True
    weight = opacity(mask, feather)
    assert torch.equal(weight > 0, mask)
    assert torch.equal(weight[20, 5:25], (torch.arange(1, 21) / (feather + 1)).clamp(max=1))


def test_thin_parts_keep_their_edit():
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[10, 10] = True  # a pixel, far from a large part
    mask[25:40, 30:60] = True
    weight = opacity(mask, 8)
    assert weight[10, 10] == 1 and weight[39, 59] == 1 and 0 < weight[25, 45] < 0.2


def test_outside_is_the_source_itself():
    source, edited = torch.rand(3, 24, 24), torch.full((3, 24, 24), float("inf"))
    mask = torch.rand(24, 24) > 0.5
    mixed = composite(edited, source, mask, 3)
    assert torch.equal(mixed[:, ~mask], source[:, ~mask])
    assert torch.equal(composite(source, source, mask, 3), source)
