"""The sparse engine: an active set per resolution, and layers that compute only there.

    handle = sparsify(network)
    with handle.recording():
        network(unedited)          # a full pass, which leaves what sparse ones read
    with handle.sparse(masks):
        network(edited)            # computes where the masks say

It imports torch and no other library, and nothing of this package from outside of this folder; only
a table of rules imports the networks that it is about.
"""

from sgm.sparse.mask_sets import SparseStateError
from sgm.sparse.masks import dilate, downsample_mask
from sgm.sparse.recording import Recording
from sgm.sparse.sparsify import Rule, Sparse, Table, sparsify
from sgm.sparse.swap import NotSparseError

__all__ = [
    "NotSparseError",
    "Recording",
    "Rule",
    "Sparse",
    "SparseStateError",
    "Table",
    "dilate",
    "downsample_mask",
    "sparsify",
]
