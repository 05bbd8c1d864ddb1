"""What a recording leaves out is computed anew around an edit, and is then what it was: against a
recording of everything, and against the oracle."""

import math

import pytest
import torch
from torch import Tensor

from sgm.models.autoencoder import AutoencoderKL
from sgm.sparse.fill import masks_to_fill
from sgm.sparse.masks import downsample_mask
from sgm.sparse.recording import ROWS, Part, Quantised, Recording, size_of
from sgm.sparse.sparsify import Sparse, sparsify
from tests.conftest import max_error
from tests.modules.test_fast_networks import CODER, TOLERANCE, same_weights
from tests.oracle import Oracle

# Pixels, of which latents are an eighth: 9x13 of the first, so that all sides are odd there.
SIZES = [(72, 104), (128, 208)]
PARTS = ["encoder", "decoder"]
LEVELS = [4, 16]  # maps of at most this part of the picture's pixels are kept
CODER_OF_TWO = {**CODER, "num_res_blocks": 2}


@pytest.fixture(scope="module")
def autoencoders() -> tuple[AutoencoderKL, AutoencoderKL]:
    dense, fast = (AutoencoderKL(embed_dim=4, ddconfig=CODER_OF_TWO) for _ in range(2))
    same_weights(dense, fast)
    for part in PARTS:
        sparsify(getattr(fast, part))
    return dense, fast


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


@pytest.fixture(params=["inside", "corner", "islands", "border", "pixel"])
def mask(request: pytest.FixtureRequest, size: tuple[int, int]) -> Tensor:
    """bool [H, W]."""
    mask, (height, width) = torch.zeros(size, dtype=torch.bool), size
    match request.param:
        case "inside":
            mask[height // 3 : height // 2, width // 3 : width // 2] = True
        case "corner":
            mask[-7:, -9:] = True
        case "islands":
            mask[3:8, 5:9] = mask[height // 2, width - 20 : width - 11] = mask[-9:-6, 2:4] = True
        case "border":
            mask[:2, width // 3 : width // 2] = True
        case _:
            mask[height // 2 + 1, width // 2 + 1] = True
    return mask


def inputs(part: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The unedited and the edited one."""
    shape = (1, 3, *size) if part == "encoder" else (1, 4, size[0] // 8, size[1] // 8)
    first, second = (torch.randn(shape, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    return first, second


def recorded(handle: Sparse, x: Tensor, largest: int | None = None) -> Recording:
    with handle.recording(largest=largest) as recording:
        handle.network(x)
    return recording


def rows_read(handle: Sparse, name: str) -> Tensor:
    """Pixel numbers of the recorded rows of a layer that a pass with the masks in use reads."""
    size, cpu = size_of(handle.record.by_layer()[name]), torch.device("cpu")
    found = []
    for geometry in handle.layers[name].geometries:
        active = handle.active(geometry, size, cpu)
        found.append(getattr(active, "around", active.outputs))
    return torch.cat(found).unique()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kept", LEVELS)
@torch.inference_mode()
def test_what_an_edit_reads_is_as_it_was_recorded(autoencoders, size, mask, part, kept):
    dense, fast = (getattr(autoencoder, part) for autoencoder in autoencoders)
    handle, (x, edited) = fast.site.state, inputs(part, size)
    masks, largest = downsample_mask(mask, 1), math.prod(size) // kept
    whole = recorded(handle, x)
    with handle.sparse(masks):
        expected = fast(edited)
    small = recorded(handle, x, largest)
    assert whole.values.keys() > small.values.keys()
    handle.fill(masks, lambda: fast(x))
    assert whole.values.keys() - small.values.keys() == handle.filled.keys()
    with handle.sparse(masks):
        found, again = fast(edited), fast(x)
        for name, key in handle.filled:
            assert key == ROWS and math.prod(size_of(small.by_layer()[name])) > largest
            pixels, before = rows_read(handle, name), whole.values[name, key]
            after = handle.filled[name, key].widen()
            assert max_error(after[:, pixels], before[:, pixels]) < TOLERANCE, name
    assert max_error(found, expected) < TOLERANCE
    oracle = Oracle(dense)
    unedited, maps = oracle.record(x)
    assert max_error(found, oracle.held(maps, masks, edited)) < TOLERANCE
    assert max_error(again, unedited) < TOLERANCE
    assert all(name not in handle.record.values for name in handle.filled)
    handle.clear()
    assert not handle.filled


@torch.inference_mode()
def test_few_pixels_are_computed_anew(autoencoders) -> None:
    """No more than the convolutions of a level reach, and one pixel where all is recorded."""
    size, decoder = (128, 208), autoencoders[1].decoder
    handle, (x, _) = decoder.site.state, inputs("decoder", size)
    mask = torch.zeros(size, dtype=torch.bool)
    mask[64, 104] = True
    masks = {level: torch.zeros(level, dtype=torch.bool) for level in downsample_mask(mask, 0)}
    for (height, width), level in masks.items():
        level[height // 2, width // 2] = True
    small = recorded(handle, x, math.prod(size) // 16)
    geometries = {name: layer.geometries for name, layer in handle.layers.items()}
    wide = masks_to_fill(small, geometries, masks)
    assert wide is not None
    # One pixel around the edit, and one for each of six convolutions. Of the level before, nine are
    # read by the doubled map of these fifteen.
    assert wide[size].sum() == 15 * 15 and wide[64, 104].sum() == 21 * 21
    assert all(level.sum() == 1 for at, level in wide.items() if at not in (size, (64, 104)))
    assert masks_to_fill(recorded(handle, x), geometries, masks) is None
    handle.clear()


@pytest.mark.parametrize("part", PARTS)
@torch.inference_mode()
def test_an_update_leaves_out_what_was_left_out(autoencoders, part) -> None:
    """And brings the rest up to date as it does with everything recorded."""
    size, network = (72, 104), getattr(autoencoders[1], part)
    handle, (x, edited) = network.site.state, inputs(part, size)
    mask = torch.zeros(size, dtype=torch.bool)
    mask[20:40, 30:60] = True
    masks, made = downsample_mask(mask, 1), []
    for largest in (None, math.prod(size) // 16):
        made.append(recorded(handle, x, largest))
        handle.fill(masks, lambda: network(x))
        with handle.sparse(masks, update=True):
            network(edited)
    whole, small = (recording.values for recording in made)
    assert {key for _, key in whole.keys() - small.keys()} == {ROWS}
    for place, value in small.items():
        if isinstance(value, Tensor):
            assert max_error(value, whole[place]) < TOLERANCE, place
        elif place[1] == "moments":
            assert max_error(value.square, whole[place].square) < TOLERANCE, place
    handle.clear()


@torch.inference_mode()
def test_what_is_filled_in_is_as_small_as_the_recording(autoencoders) -> None:
    size, decoder = (128, 208), autoencoders[1].decoder
    handle, (x, edited) = decoder.site.state, inputs("decoder", size)
    mask = torch.zeros(size, dtype=torch.bool)
    mask[50:60, 80:90] = True
    masks, largest = downsample_mask(mask, 1), math.prod(size) // 16
    recorded(handle, x, largest)
    handle.fill(masks, lambda: decoder(x))
    with handle.sparse(masks):
        expected = decoder(edited)
    with handle.recording(dtype=torch.int8, largest=largest):
        decoder(x)
    handle.fill(masks, lambda: decoder(x))
    for value in handle.filled.values():
        assert isinstance(value, Part) and isinstance(value.rows, Quantised)
        assert value.rows.codes.shape[1] == len(value.pixels) < value.count
    with handle.sparse(masks):
        error = (decoder(edited) - expected).square().mean().sqrt() / expected.std()
    assert 0 < error < 0.02
    handle.clear()


@torch.inference_mode()
def test_with_graphs_each_edit_reads_what_was_filled_in_for_it() -> None:
    network = AutoencoderKL(embed_dim=4, ddconfig=CODER_OF_TWO).decoder
    same_weights(network)
    handle, size = sparsify(network, graphs=True), (72, 104)
    x, edited = inputs("decoder", size)
    found: list[list[Tensor]] = []
    for largest in (math.prod(size) // 16, None):
        recorded(handle, x, largest)
        found.append([])
        for top in (8, 40, 24):
            mask = torch.zeros(size, dtype=torch.bool)
            mask[top : top + 8, 40:56] = True
            masks = downsample_mask(mask, 1)
            handle.fill(masks, lambda: network(x))
            for _ in range(3):  # the second is captured, the third a graph's
                with handle.sparse(masks):
                    out = network(edited)
            found[-1].append(out)
        # What is filled in lies elsewhere for every edit, where no graph would look for it.
        assert (handle.graphs.captures > 0) == (largest is None)
    for small, whole in zip(*found, strict=True):
        assert max_error(small, whole) < TOLERANCE
