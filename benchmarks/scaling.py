"""How the cost of an edit grows: `python -m benchmarks.scaling`.

Multiply-accumulates of whole inpainting edits, counted exactly without data, so that any machine
gives the same figures: against the edited share of the picture, the shape of the mask at one share,
the size of the picture, and the number of steps. Four ways to make an edit are set side by side:
`dense`; `published`, which records at every step; `cold`, preset `fast` alone; and `warm`, preset
`fast` from a session, for its base prompt and for a new one.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import RESULTS, ROOT, commit, write_results
from benchmarks.plot import Chart, Line
from sgm import runtime
from sgm.cli.program import start
from sgm.inference.composite import opacity
from sgm.inference.networks import Networks, recording, sparse, table_of_preset
from sgm.inference.presets import RECIPES, Recipe
from sgm.io.checkpoint import build_model
from sgm.io.files import check_writable, write_atomically
from sgm.profiling.macs import count_macs
from sgm.sparse.masks import MaskPyramid, cover
from sgm.specs import LATENT_CHANNELS, LATENT_FACTOR, MODELS
from sgm.words import Preset, RunType
from tools.compare import markdown_table

SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
SHAPE_SHARE = 0.05  # of the picture, where shapes and sizes are compared
STEPS = (4, 8, 20, 50)
WAYS = ("dense", "published", "cold", "warm, new prompt", "warm")
SIZES = ("512x512", "512x1024", "1024x1024", "1024x2048", "2048x2048")
ISLANDS = (4, 5)  # rows and columns of them
GIGA = 1e9
TEXT_TOKENS = 77


@dataclass(frozen=True)
class Counts:
    """GMACs of single passes, for one picture size and mask.

    Attributes:
        encoder, unet, decoder: of the dense networks.
        published_unet, published_decoder, fast_unet, fast_decoder: of sparse passes.
    """

    encoder: float
    unet: float
    decoder: float
    published_unet: float
    published_decoder: float
    fast_unet: float
    fast_decoder: float

    def edit(self, way: str, steps: int, recipe: Recipe) -> float:
        """Of a whole edit in so many steps."""
        full = len(recipe.recorded.steps(steps)) * self.unet
        warm = steps * self.fast_unet + self.fast_decoder
        match way:
            case "dense":
                return self.encoder + steps * self.unet + self.decoder
            case "published":
                each = self.unet + self.published_unet
                return self.encoder + steps * each + self.decoder + self.published_decoder
            case "cold":
                return self.encoder + full + steps * self.fast_unet + self.decoder
            case "warm":
                return warm
            case _:
                return warm + min(recipe.recorded.prompt_steps * self.unet, full)


class Counter:
    """Networks of both presets without data, recorded at one picture size."""

    def __init__(self, model: str, size: tuple[int, int]) -> None:
        self.size = size
        self.networks: dict[Preset, Networks] = {}
        spec, (height, width) = MODELS[model], (side // LATENT_FACTOR for side in size)
        for preset in Preset:
            engine = build_model(ROOT / "configs" / spec.config_file(RunType.SIGE, preset=preset))
            self.networks[preset] = Networks(engine.eval(), table_of_preset(preset))
        unet = self.networks[Preset.FAST].unet
        context = next(m.to_k.in_features for n, m in unet.named_modules() if n.endswith("attn2"))
        vector = unet.label_emb[0][0].in_features
        shapes = ((2, LATENT_CHANNELS, height, width), (2,), (2, TEXT_TOKENS, context), (2, vector))
        self.unet_inputs = [torch.empty(shape, device="meta") for shape in shapes]
        self.latents = torch.empty(1, LATENT_CHANNELS, height, width, device="meta")
        self.dense = self._record()

    def _record(self) -> tuple[float, float, float]:
        """Record with both presets; GMACs of the dense passes."""
        for networks in self.networks.values():
            with recording(networks.unet):
                networks.unet(*self.unet_inputs)
            with recording(networks.decoder):
                networks.decoder(self.latents)
        networks = self.networks[Preset.FAST]
        picture = torch.empty(1, 3, *self.size, device="meta")
        return (
            count_macs(networks.encoder, picture).total / GIGA,
            count_macs(networks.unet, *self.unet_inputs).total / GIGA,
            count_macs(networks.decoder, self.latents).total / GIGA,
        )

    def count(self, mask: Tensor) -> Counts:
        """Of a mask, bool [H, W]."""
        found: list[float] = []
        for preset, networks in self.networks.items():
            recipe = RECIPES[preset]
            masks, decoder_masks = recipe.inpainting(mask), recipe.inpainting_decoder(mask)
            if recipe.blend is not None:
                ring = opacity(mask, recipe.blend.width(self.size)) > 0
                masks, decoder_masks = cover(masks, ring), cover(decoder_masks, ring)
            found.append(self._sparse(networks.unet, masks, self.unet_inputs))
            found.append(self._sparse(networks.decoder, decoder_masks, [self.latents]))
        return Counts(*self.dense, *found)

    def _sparse(
        self, network: torch.nn.Module, masks: MaskPyramid, inputs: Sequence[Tensor]
    ) -> float:
        with sparse(network, masks):
            return count_macs(network, *inputs).total / GIGA


def rectangle(size: tuple[int, int], height: int, width: int) -> Tensor:
    """A mask, bool [H, W], of a rectangle in the middle."""
    mask = torch.zeros(size, dtype=torch.bool)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    mask[top : top + height, left : left + width] = True
    return mask


def square(size: tuple[int, int], share: float) -> Tensor:
    """A square of a share of the picture; as high as it, where that is less."""
    area = share * size[0] * size[1]
    height = min(round(area**0.5), size[0])
    return rectangle(size, height, round(area / height))


def shapes(size: tuple[int, int], share: float) -> Iterator[tuple[str, Tensor]]:
    """Masks of one share by their names."""
    height, width = size
    yield "square", square(size, share)
    yield "strip over the whole width", rectangle(size, round(share * height), width)
    islands = torch.zeros(size, dtype=torch.bool)
    rows, columns = ISLANDS
    side = round((share * height * width / (rows * columns)) ** 0.5)
    for row, column in itertools.product(range(rows), range(columns)):
        top, left = row * height // rows, column * width // columns
        islands[top : top + side, left : left + side] = True
    yield f"{rows * columns} islands", islands
    # Lines of two pixels, as many as the share asks for.
    lines = torch.zeros(size, dtype=torch.bool)
    count = max(1, round(share * height / 2))
    for number in range(count):
        top = number * height // count
        lines[top : top + 2] = True
    yield f"{count} thin lines", lines


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Count everything; the figures of `--output`."""
    size, recipe = (args.H, args.W), RECIPES[Preset.FAST]

    def row(counts: Counts, steps: int) -> dict[str, float]:
        return {way: counts.edit(way, steps, recipe) for way in WAYS}

    def told(name: str) -> None:
        bar.set_postfix_str(name)
        bar.update()

    sizes = [tuple(map(int, word.split("x"))) for word in args.sizes]
    total = len(args.shares) + 4 + len(sizes)
    with tqdm(total=total, desc="counting") as bar, torch.inference_mode():
        counter = Counter(args.model, size)
        by_share, passes = {}, {}
        for share in args.shares:
            told(f"share {share}")
            counts = counter.count(square(size, share))
            by_share[str(share)], passes[str(share)] = row(counts, args.steps), asdict(counts)
        by_shape, by_steps = {}, {}
        for name, mask in shapes(size, SHAPE_SHARE):
            told(name)
            counts = counter.count(mask)
            by_shape[name] = {"share": mask.float().mean().item(), **row(counts, args.steps)}
            by_steps = by_steps or {str(steps): row(counts, steps) for steps in STEPS}
        by_size = {}
        for one in sizes:
            told("x".join(map(str, one)))
            counts = Counter(args.model, one).count(square(one, SHAPE_SHARE))
            by_size["x".join(map(str, one))] = row(counts, args.steps)
    return {
        "benchmark": "scaling",
        "unit": "GMAC of a whole edit (inpainting), guidance included",
        "model": args.model,
        "size": list(size),
        "steps": args.steps,
        "recorded": len(recipe.recorded.steps(args.steps)),
        "share_of_shapes_sizes_and_steps": SHAPE_SHARE,
        "commit": commit(),
        "versions": runtime.versions(),
        "by_share": by_share,
        "passes_by_share": passes,
        "by_shape": by_shape,
        "by_size": by_size,
        "by_steps": by_steps,
        "pays_up_to": {way: pays_up_to(by_share, way) for way in WAYS[1:]},
    }


def pays_up_to(by_share: dict[str, dict[str, float]], way: str) -> float | None:
    """The edited share at which a way costs what dense does, on a line between two counted ones;
    None where it stays below."""
    ratios = [(float(share), row[way] / row["dense"]) for share, row in by_share.items()]
    for (share, ratio), (after, more) in itertools.pairwise(ratios):
        if ratio <= 1 < more:
            return share + (1 - ratio) / (more - ratio) * (after - share)
    return None if ratios[-1][1] <= 1 else 0.0


def table(figures: dict[str, object]) -> str:
    """The figures as Markdown: GMACs of dense, and how many times fewer the others take."""
    parts = []
    for key, head in (
        ("by_share", "edited share"),
        ("by_shape", "shape"),
        ("by_size", "picture"),
        ("by_steps", "steps"),
    ):
        rows = []
        for name, row in figures[key].items():
            dense = row["dense"]
            label = f"{float(name):.1%}" if key == "by_share" else name
            rows.append((label, f"{dense:.0f}", *(f"{dense / row[w]:.2f}x" for w in WAYS[1:])))
        parts.append(markdown_table((head, "dense, GMAC", *WAYS[1:]), rows))
    for way, share in figures["pays_up_to"].items():
        limit = "at every share counted" if share is None else f"up to a share of {share:.0%}"
        fewer = f"fewer than dense {limit}" if share != 0 else "more than dense at every share"
        parts.append(f"`{way}` takes {fewer}.")
    return "\n\n".join(parts)


def chart(figures: dict[str, object]) -> str:
    """The first table as a drawing (SVG)."""
    by_share = figures["by_share"]
    lines = [
        Line(way, [(100 * float(s), row["dense"] / row[way]) for s, row in by_share.items()])
        for way in WAYS[1:]
    ]
    return Chart("edited share of the picture, %", "times fewer than dense", lines).svg()


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description="How the cost of an edit grows."
    )
    parser.add_argument("--model", choices=list(MODELS), default="sdxl")
    parser.add_argument("--H", type=int, default=512, help="height (default %(default)s)")
    parser.add_argument("--W", type=int, default=1024, help="width (default %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="sampler steps (default 50)")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="0 to 1, rising")
    parser.add_argument("--sizes", nargs="*", default=SIZES, metavar="HxW")
    parser.add_argument("--output", type=Path, default=RESULTS / "scaling.json")
    parser.add_argument("--chart", type=Path, default=ROOT / "docs" / "scaling.svg")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Count, write JSON, Markdown and the drawing, print the tables; the exit code."""
    args = build_parser().parse_args(argv)
    for path in (args.output, args.chart):
        check_writable(path)
    figures = measure(args)
    write_results(args.output, figures, table)
    write_atomically(args.chart, lambda file: file.write(chart(figures).encode()))
    return 0


if __name__ == "__main__":
    start("benchmarks.scaling", main)
