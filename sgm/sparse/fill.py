"""Where rows that a recording has left out are computed anew.

The rows of a network's largest maps take most of its recording, and follow from those before them.
So a recording may leave them out and keep only the moments of their group norms. Before an edit a
sparse pass of the unedited input, with masks of these maps alone, computes what the edit will read
of them. That pass knows nothing around its own active pixels and reads zeros there, so behind every
3x3 convolution the outermost active pixels are wrong. It therefore starts with as many more pixels
around those that the edit reads as there are such convolutions in a row.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from sgm.sparse.mask_sets import AnyGeometry
from sgm.sparse.masks import MaskPyramid, Resolution, grown
from sgm.sparse.pixels import PIXELS, SAME, PixelGeometry
from sgm.sparse.recording import ROWS, Recording, size_of


def masks_to_fill(
    recording: Recording, geometries: Mapping[str, Sequence[AnyGeometry]], masks: MaskPyramid
) -> MaskPyramid | None:
    """The masks of a pass that computes what a recording has left out.

    Args:
        recording: of whole maps.
        geometries: of every layer, by its name. A layer that has `PIXELS` reads recorded rows: at
            its active pixels, and around them through its other geometry.
        masks: of the sparse passes to come, bool by resolution.

    Returns:
        bool by resolution; a single pixel at resolutions whose rows are recorded, since no layer
        runs on no pixel at all. None if nothing was left out.
    """
    left_out: set[Resolution] = set()
    halo: Counter[Resolution] = Counter()  # convolutions between two readers of one map
    reads: dict[Resolution, set[PixelGeometry]] = {}
    for name, values in recording.by_layer().items():
        found = geometries[name]
        if PIXELS in found:
            if ROWS not in values:
                left_out.add(size_of(values))
            short = {g for g in found if isinstance(g, PixelGeometry) and g.short}
            reads.setdefault(size_of(values), set()).update(short)
        elif tuple(found) == (SAME,) and "out" not in values:  # nothing follows the last one
            halo[size_of(values)] += 1
    if not left_out:
        return None

    @cache
    def filled(size: Resolution) -> Tensor:
        if size not in left_out:
            one = torch.zeros_like(masks[size])
            one[0, 0] = True
            return one
        read = masks[size]
        for geometry in reads[size]:
            out = geometry.out_size(size)
            outputs = masks[out]
            if out in left_out and out != size:
                outputs = outputs | filled(out)
            read = read | geometry.read(outputs, size)
        return grown(read, halo[size])

    return {size: filled(size) for size in masks}
