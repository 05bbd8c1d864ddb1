"""Our sparse residual block and the published package: `python -m benchmarks.published_sige`.

Sizes are those of SDXL at 512x1024, the mask is the published inpainting rectangle, fp32. One block
without shortcut is run dense, by our backends and by the compiled kernels of the package `sige`, on
the same numbers; results are compared and the passes are timed in turns. Needs the package: see
`python -m tools.install_sige`.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import RESULTS, commit, machine, write_figures
from sgm import runtime
from sgm.errors import UserError
from sgm.files import check_writable
from sgm.modules.diffusionmodules.sige_openaimodel import SIGEResBlock
from sgm.profiling import latency
from sgm.program import run_program
from sgm.sparse.masks import MaskPyramid, inpainting_pyramid
from sgm.sparse.network import Site
from sgm.sparse.norm import Affine
from sgm.sparse.ops import BACKENDS, select_ops
from sgm.sparse.state import SparseState
from sgm.specs import Precision
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
QUICK = (Size("trial", 2, 32, 64, 128),)


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


def published_block(block: SIGEResBlock, first: Affine, second: Affine) -> nn.Module:
    """Our block's convolutions between the package's operators, as its own examples do.

    Args:
        first, second: the norms of the recording, applied by the package as scale and shift.

    Returns:
        A module from x [B, C, H, W] to the block's output, with the package's `set_mode`.
    """
    nn_sige: Any = importlib.import_module("sige.nn")
    norms = [(n.scale[:, :, None, None], n.shift[:, :, None, None]) for n in (first, second)]

    def own(conv: nn.Conv2d) -> nn.Module:
        made = nn_sige.SIGEConv2d(conv.in_channels, conv.out_channels, 3, padding=1)
        made.load_state_dict(conv.state_dict())
        return made.to(conv.weight.device)

    class Block(nn_sige.SIGEModel):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = own(block.in_layers[2]), own(block.out_layers[3])
            self.gather = nn_sige.Gather(self.conv1, 6, activation_name="swish")
            self.between = nn_sige.ScatterGather(self.gather, activation_name="swish")
            self.scatter = nn_sige.Scatter(self.gather)

        def forward(self, x: Tensor) -> Tensor:
            (scale1, shift1), (scale2, shift2) = norms
            if self.mode == "full":
                h = self.conv1(F.silu(self.gather(x) * scale1 + shift1))
                h = self.conv2(F.silu(self.between(h) * scale2 + shift2))
            else:
                h = self.conv1(self.gather(x, scale1, shift1))
                h = self.conv2(self.between(h, scale2, shift2))
            return self.scatter(h, x)

    return Block()


def measure(size: Size, masks: MaskPyramid, device: torch.device) -> dict[str, object]:
    """Check and time one block; milliseconds by who ran it.

    Raises:
        UserError: the package's result is not ours.
    """
    torch.manual_seed(0)
    channels, area = size.channels, (size.height, size.width)
    block = SIGEResBlock(channels, EMBEDDING, channels, GROUPS).eval().to(device)
    block = block.to(memory_format=torch.channels_last)
    state = SparseState()
    block.site = Site(state, "block")
    shape, emb = (size.batch, channels, *area), torch.randn(size.batch, EMBEDDING, device=device)
    mask = masks[area].to(device)
    unedited = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
    x = torch.where(mask, torch.randn(shape, device=device), unedited)
    x = x.to(memory_format=torch.channels_last)
    with state.recording():
        block(unedited, emb)
    first, second = (state.record.values["block", name] for name in ("first", "second"))
    theirs = published_block(block, first, second)
    theirs(unedited.contiguous())
    theirs.set_masks({area: mask})
    theirs.set_mode("sparse")
    rows = x.contiguous()  # the package wants this layout

    def ours(name: str) -> Tensor:
        state.ops = ops[name]
        with state.sparse(masks):
            return block(x, emb)

    found = [name for name, entry in BACKENDS.items() if not entry.obstacle(device)]
    ops = {name: select_ops(name, device) for name in found}
    expected = theirs(rows)
    for name in found:
        error = (ours(name) - expected).abs().max().item()
        if not error <= TOLERANCE:
            raise UserError(
                f"The {name} backend and the package differ by {error:.1e} in {size.name}, "
                f"expected at most {TOLERANCE:.0e}; build the package anew."
            )
    calls: dict[str, latency.Call] = {"dense": lambda: block(x, emb)}
    calls["published"] = lambda: theirs(rows)
    calls |= {name: lambda name=name: ours(name) for name in found}
    times = latency.measure(calls, device)
    milliseconds = {name: found.figures() for name, found in times.items()}
    return {**vars(size), "max_error": error, "milliseconds": milliseconds}


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
    if importlib.util.find_spec("sige") is None:
        raise UserError("The package sige is not installed; run `python -m tools.install_sige`.")
    check_writable(args.output)
    device = runtime.pick_device(args.device)
    mask = torch.zeros(PICTURE, dtype=torch.bool)
    mask[RECTANGLE] = True
    masks = inpainting_pyramid(mask)
    with torch.inference_mode(), runtime.precision_scope(Precision.FP32, device):
        rows = [measure(size, masks, device) for size in (QUICK if args.quick else SIZES)]
    figures = {"benchmark": "published_sige", "device": runtime.describe_device(device)}
    figures |= {"machine": machine(), "versions": runtime.versions(), "commit": commit()}
    write_figures(args.output, figures | {"rows": rows})
    print(f"{table(rows)}\n\n{args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_program("published_sige", main))
