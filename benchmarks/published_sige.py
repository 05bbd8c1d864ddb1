"""Our sparse residual block and the published package: `python -m benchmarks.published_sige`.

Sizes are those of SDXL at 512x1024, the mask is the published inpainting rectangle, fp32. One block
without shortcut is run dense, by our backends and by the compiled kernels of the package `sige`, on
the same numbers, each in the memory layout that suits it; results are compared and the passes are
timed in turns. The package runs twice: between its own modules, as in its examples, and behind our
contract (backend `sige`). Needs the package: see `python -m tools.install_sige`.

Its CPU kernel that scatters and gathers at once (release 0.3.0) writes past the end of its result
for more than one sample. There the two are done one after the other, by its other two kernels.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import RESULTS, commit, machine, write_results
from sgm import runtime
from sgm.cli.program import start
from sgm.errors import UserError
from sgm.io.files import check_writable
from sgm.profiling import latency
from sgm.sparse.backends.torch_ref import TorchOps
from sgm.sparse.masks import MaskPyramid, inpainting_pyramid
from sgm.sparse.network import Site
from sgm.sparse.norm import Affine
from sgm.sparse.ops import BACKENDS, select_ops
from sgm.sparse.rules.published import SIGEResBlock
from sgm.sparse.state import SparseState
from sgm.words import Precision
from tools.compare import markdown_table

PICTURE, RECTANGLE = (512, 1024), (slice(280, 470), slice(590, 910))
EMBEDDING, GROUPS = 64, 32
# The order of sums differs; values are about one.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Size:
    """Where a block stands, and the map [batch, channels, height, width] that it gets."""

    name: str
    batch: int
    channels: int
    height: int
    width: int


SIZES = (
    Size("UNet, first level", 2, 320, 64, 128),
    Size("UNet, second level", 2, 640, 32, 64),
    Size("UNet, third level", 2, 1280, 16, 32),
    Size("autoencoder, latent size", 1, 512, 64, 128),
    Size("autoencoder, half size", 1, 256, 256, 512),
    Size("autoencoder, picture size", 1, 128, 512, 1024),
)
QUICK = (Size("trial", 2, 32, 64, 128), Size("trial", 1, 32, 64, 128))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.published_sige",
        description="Our sparse residual block beside that of the published package.",
    )
    parser.add_argument("--quick", action="store_true", help="one small block: only a trial")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: the best)")
    parser.add_argument("--output", type=Path, default=RESULTS / "published_sige.json")
    return parser


class Trial:
    """One block on one set of numbers, laid out for a backend and recorded on the unedited map.

    Args:
        mask: where the edited map differs, bool [height, width].
        ops: who runs the sparse pass.
    """

    def __init__(self, size: Size, mask: Tensor, ops: TorchOps) -> None:
        torch.manual_seed(0)
        device, shape = mask.device, (size.batch, size.channels, size.height, size.width)
        block = SIGEResBlock(size.channels, EMBEDDING, size.channels, GROUPS).eval().to(device)
        self.block = block.to(memory_format=ops.memory_format)
        self.emb = torch.randn(size.batch, EMBEDDING).to(device)
        unedited, edited = (torch.randn(shape).to(device) for _ in range(2))
        self.unedited = unedited.to(memory_format=ops.memory_format)
        edited = torch.where(mask, edited, unedited)
        self.edited = edited.to(memory_format=ops.memory_format)
        self.state = SparseState(ops)
        self.block.site = Site(self.state, "block")
        with self.state.recording():
            block(self.unedited, self.emb)

    def norms(self) -> list[Affine]:
        """The recorded norms, the time embedding in the second one's shift."""
        return [self.state.record.values["block", name] for name in ("first", "second")]

    def dense(self) -> Tensor:
        """The block everywhere."""
        return self.block(self.edited, self.emb)

    def sparse(self, masks: MaskPyramid) -> Tensor:
        """The block where the masks say."""
        with self.state.sparse(masks):
            return self.block(self.edited, self.emb)


def published_block(trial: Trial, mask: Tensor) -> Callable[[], Tensor]:
    """The trial's convolutions between the package's own modules, put together as its examples do;
    a sparse pass of them."""
    nn_sige: Any = importlib.import_module("sige.nn")
    norms = [(n.scale[:, :, None, None], n.shift[:, :, None, None]) for n in trial.norms()]
    fused = len(trial.edited) == 1 or mask.device.type != "cpu"  # see the top of this file

    def own(conv: nn.Conv2d) -> nn.Module:
        made = nn_sige.SIGEConv2d(conv.in_channels, conv.out_channels, 3, padding=1)
        made.load_state_dict(conv.state_dict())
        return made.to(conv.weight.device)

    class Block(nn_sige.SIGEModel):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = own(trial.block.in_layers[2]), own(trial.block.out_layers[3])
            self.gather = nn_sige.Gather(self.conv1, 6, activation_name="swish")
            if fused:
                self.between = nn_sige.ScatterGather(self.gather, activation_name="swish")
            else:
                self.first = nn_sige.Scatter(self.gather)
                self.second = nn_sige.Gather(self.conv2, 6, activation_name="swish")
            self.scatter = nn_sige.Scatter(self.gather)

        def middle(self, h: Tensor, *norm: Tensor) -> Tensor:
            return self.between(h, *norm) if fused else self.second(self.first(h), *norm)

        def forward(self, x: Tensor) -> Tensor:
            (scale1, shift1), (scale2, shift2) = norms
            if self.mode == "full":
                h = self.conv1(F.silu(self.gather(x) * scale1 + shift1))
                h = self.conv2(F.silu(self.middle(h) * scale2 + shift2))
            else:
                h = self.conv1(self.gather(x, scale1, shift1))
                h = self.conv2(self.middle(h, scale2, shift2))
            return self.scatter(h, x)

    block, x = Block(), trial.edited.contiguous()
    block(trial.unedited.contiguous())
    block.set_masks({tuple(mask.shape): mask})
    block.set_mode("sparse")
    return lambda: block(x)


def measure(size: Size, masks: MaskPyramid, device: torch.device) -> dict[str, object]:
    """Check and time one block; milliseconds by who ran it.

    Raises:
        UserError: the package's result is not ours.
    """
    mask = masks[size.height, size.width].to(device)
    found = [name for name, entry in BACKENDS.items() if not entry.obstacle(device)]
    trials = {name: Trial(size, mask, select_ops(name, device)) for name in found}
    theirs = published_block(trials["torch"], mask)
    expected, errors = theirs(), {}
    for name, trial in trials.items():
        error = (trial.sparse(masks) - expected).abs().max().item()
        errors[name] = f"{error:.1e}"  # JSON files are rounded to five digits
        if not error <= TOLERANCE:
            raise UserError(
                f"The {name} backend and the package differ by {error:.1e} in {size.name}, "
                f"expected at most {TOLERANCE:.0e}; build the package anew."
            )
    calls: dict[str, latency.Call] = {"dense": trials["torch"].dense, "published": theirs}
    calls |= {name: partial(trial.sparse, masks) for name, trial in trials.items()}
    times = latency.measure(calls, device)
    milliseconds = {name: found.figures() for name, found in times.items()}
    return {**vars(size), "max_errors": errors, "milliseconds": milliseconds}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures as Markdown: medians, and how many times faster than dense."""
    names = list(rows[0]["milliseconds"])
    lines = []
    for row in rows:
        medians = {name: row["milliseconds"][name]["median"] for name in names}
        cells = [f"{medians['dense']:.2f}"]
        cells += [f"{medians[n]:.2f} ({medians['dense'] / medians[n]:.2f}x)" for n in names[1:]]
        size = f"{row['batch']} x {row['channels']} x {row['height']} x {row['width']}"
        lines.append((f"{row['name']} ({size})", *cells))
    return markdown_table(("residual block, ms", *names), lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the JSON file, print the table; the exit code."""
    args = build_parser().parse_args(argv)
    check_writable(args.output)
    device = runtime.pick_device(args.device)
    obstacle = BACKENDS["sige"].obstacle(device)
    if obstacle is not None:
        raise UserError(f"The published package cannot run here: {obstacle}.")
    mask = torch.zeros(PICTURE, dtype=torch.bool)
    mask[RECTANGLE] = True
    masks = inpainting_pyramid(mask)
    with torch.inference_mode(), runtime.precision_scope(Precision.FP32, device):
        rows = [measure(size, masks, device) for size in (QUICK if args.quick else SIZES)]
    figures: dict[str, object] = {
        "benchmark": "published_sige",
        "device": runtime.describe_device(device),
    }
    figures |= {"machine": machine(), "versions": runtime.versions(), "commit": commit()}
    write_results(args.output, figures | {"rows": rows}, lambda f: table(f["rows"]))
    return 0


if __name__ == "__main__":
    start("published_sige", main)
