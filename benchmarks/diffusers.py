"""The UNet of diffusers, dense and sparse, beside ours: `python -m benchmarks.diffusers`.

All have one shape and, where they are timed, one set of weights. The MACs are those of the tiny and
of the real size, which is counted without memory for its weights. The times are those of the tiny
size as ratios, in one process and in turns. The mask is the inpainting example of the README.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from torch import Tensor, nn

from benchmarks.common import RESULTS, ROOT, commit, machine, write_results
from benchmarks.rival_networks import SIZES, renamed, unet_arguments
from sgm.cli.program import start
from sgm.config import instantiate_from_config, load_config
from sgm.inference.presets import FAST
from sgm.profiling.latency import measure
from sgm.profiling.macs import count_macs
from sgm.sparse.masks import MaskPyramid
from sgm.sparse.ops import select_ops
from sgm.sparse.sparsify import Sparse, sparsify
from tools.compare import markdown_table

CONFIGS = {"tiny": "tiny-original.yaml", "real": "original.yaml"}
PICTURES = {"tiny": (256, 512), "real": (512, 1024)}
DENSE, SPARSE, OURS = "diffusers, dense", "diffusers, sparse", "ours, preset fast"
TOKENS = 77


@dataclass(frozen=True, eq=False)
class Network:
    """A UNet and how it is called.

    Attributes:
        run: a pass with latents [2, 4, h, w].
        handle: of a sparse one.
    """

    run: Callable[[Tensor], Tensor]
    handle: Sparse | None = None


def networks(size: str, device: str) -> dict[str, Network]:
    """The three UNets of a size, by their titles, with one set of weights.

    Args:
        size: `tiny` or `real`.
        device: `meta` for shapes alone, or `cpu` for random weights.
    """
    config = load_config(ROOT / "configs" / CONFIGS[size])["model"]["params"]["network_config"]
    params = config["params"]
    arguments = unet_arguments(params)
    with torch.device("meta"):
        ours = instantiate_from_config(config).eval()
        theirs = [diffusers.UNet2DConditionModel(**arguments).eval() for _ in range(2)]
    if device != "meta":
        ours.to_empty(device=device)
        for value in ours.parameters():
            _fill(value)
    for network in theirs:
        network.load_state_dict(renamed(ours.state_dict()), assign=True)
    generator = torch.Generator().manual_seed(0)
    pooled = params["adm_in_channels"] - SIZES * arguments["addition_time_embed_dim"]
    text = torch.randn(2, TOKENS, params["context_dim"], generator=generator).to(device)
    vector = torch.randn(2, pooled, generator=generator).to(device)
    sizes = torch.zeros(2, SIZES, device=device)
    numbers = theirs[0].add_time_proj(sizes.flatten()).reshape(2, -1)
    y, t = torch.cat([vector, numbers], dim=1), torch.full((2,), 500, device=device)
    added = {"text_embeds": vector, "time_ids": sizes}

    def of_theirs(network: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: network(x, t, text, added_cond_kwargs=added, return_dict=False)[0]

    ops = select_ops("torch")
    for network in (ours, *theirs):
        network.to(memory_format=torch.channels_last)
    return {
        DENSE: Network(of_theirs(theirs[0])),
        SPARSE: Network(of_theirs(theirs[1]), sparsify(theirs[1], ops=ops)),
        OURS: Network(lambda x: ours(x, t, text, y), sparsify(ours, ops=ops)),
    }


def _fill(value: Tensor) -> None:
    """Values that keep activations near one."""
    with torch.no_grad():
        if value.ndim > 1:
            value.normal_(std=value[0].numel() ** -0.5)
        else:
            value.uniform_(0.5, 1.5)


def masks_of(size: str) -> MaskPyramid:
    """Those of the inpainting example, which is a rectangle, at a size of picture."""
    height, width = PICTURES[size]
    mask = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = (
        slice(a * height // 512, b * height // 512) for a, b in ((280, 470), (590, 910))
    )
    mask[rows, columns] = True
    return FAST.inpainting(mask)


@torch.no_grad()
def figures_of(size: str, timed: bool, runs: int | None) -> list[dict[str, object]]:
    """A row for each UNet of a size: `size`, `row`, `gmacs`, their share of the dense ones, and
    where it is timed the median `ms`, that of a dense pass by it (`speedup`), and the largest
    difference from ours in a pass from a recording (`error`)."""
    device, masks = ("cpu" if timed else "meta"), masks_of(size)
    found, (height, width) = networks(size, device), PICTURES[size]
    x = torch.randn(2, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(1))
    x = x.to(device, memory_format=torch.channels_last)
    macs, outs, calls = {}, {}, {}
    for title, network in found.items():
        sparse = network.handle
        if sparse is None:
            macs[title] = count_macs(network.run, x).total / 1e9
            calls[title] = lambda run=network.run: run(x)
            continue
        with sparse.recording(masks):
            network.run(x)
        calls[title] = _sparse_call(network, masks, -x)
        outs[title] = calls[title]()
        with sparse.sparse(masks):
            macs[title] = count_macs(network.run, -x).total / 1e9
    times = {k: v.median for k, v in measure(calls, x.device, runs).items()} if timed else {}
    rows = []
    for title in found:
        row: dict[str, object] = {"size": size, "row": title, "gmacs": macs[title]}
        row["share"] = macs[title] / macs[DENSE]
        if timed:
            row |= {"ms": times[title], "speedup": times[DENSE] / times[title]}
            if title in outs:
                row["error"] = (outs[title] - outs[OURS]).abs().max().item()
        rows.append(row)
    return rows


def _sparse_call(network: Network, masks: MaskPyramid, x: Tensor) -> Callable[[], Tensor]:
    """A sparse pass of a network."""
    handle = network.handle
    assert handle is not None

    def call() -> Tensor:
        with handle.sparse(masks):
            return network.run(x)

    return call


def describe(figures: Mapping[str, object]) -> str:
    """The figures as a Markdown table."""
    rows = figures["rows"]
    assert isinstance(rows, list)
    head = ["size", "UNet", "GMAC", "of dense", "time to dense", "differs by"]
    lines = [
        [
            row["size"],
            row["row"],
            f"{row['gmacs']:.2f}",
            f"{row['share']:.3f}",
            f"{row['speedup']:.2f}x" if "speedup" in row else "",
            f"{row['error']:.1e}" if "error" in row else "",
        ]
        for row in rows
    ]
    return markdown_table(head, lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write and print; 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "diffusers.json")
    parser.add_argument("--quick", action="store_true", help="the tiny size alone, one run each")
    chosen = parser.parse_args(arguments)
    rows = figures_of("tiny", timed=True, runs=1 if chosen.quick else None)
    if not chosen.quick:
        rows += figures_of("real", timed=False, runs=None)
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    figures = {"commit": commit(), "machine": machine(), "versions": versions, "rows": rows}
    write_results(chosen.output, figures, describe)
    return 0


if __name__ == "__main__":
    start("diffusers", main)
