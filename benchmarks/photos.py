"""Twenty photos and masks as people have them, edited: `python -m benchmarks.photos`.

The pictures are drawn scenes of the tiny model (`tools/tiny/scenes.py`) at odd sizes, with camera
grain, colour profiles, transparency, EXIF rotation, and as PNG, JPEG, WebP and TIFF; the masks are
boxes, discs, soft brushes, strokes, spots, parts at the picture's border, labels. Each is edited by
`run.py` with preset `fast`, and the result is read from its file. Listed per picture are the seam
(the largest jump across the border of the edit beyond what the result has elsewhere), the pixels
that changed beyond the ring, and whether profile, EXIF, resolution and alpha came back. A contact
sheet shows them all.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor

from benchmarks.common import ROOT, write_figures
from sgm.cli import main as cli
from sgm.cli.outputs import contact_sheet
from sgm.cli.program import start
from sgm.inference.border import blur
from sgm.inference.composite import distance
from sgm.io.imageio import save_picture
from sgm.io.maskio import load_levels
from tools.compare import markdown_table
from tools.tiny.captions import caption
from tools.tiny.pairs import HELD_OUT, held_out_scene
from tools.tiny.scenes import render

NARROW, WIDE = 3, 12  # pixels on either side of the border whose colours are compared


@dataclass(frozen=True)
class Case:
    """A picture and a mask.

    Attributes:
        size: (height, width).
        suffix: of the picture's file.
        mask: given rows and columns scaled to [0, 1], levels in [0, 1].
        save: options of Pillow's `save`.
        grain: standard deviation of the noise, of 255.
        change: what else becomes of the picture.
    """

    size: tuple[int, int]
    suffix: str
    mask: Callable[[np.ndarray, np.ndarray], np.ndarray]
    save: dict[str, object] = field(default_factory=dict)
    grain: float = 4.0
    change: Callable[[Image.Image], Image.Image] = lambda picture: picture


def box(top: float, left: float, bottom: float, right: float) -> Callable[..., np.ndarray]:
    """A rectangle, by shares of the sides."""
    return lambda y, x: (y >= top) & (y < bottom) & (x >= left) & (x < right)


def disc(row: float, column: float, radius: float, soft: float = 0.0) -> Callable[..., np.ndarray]:
    """A disc; with `soft`, as a brush of that share of the radius paints it."""

    def levels(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        away = np.hypot(y - row, x - column) / radius
        return ((1 - away) / soft).clip(0, 1) if soft else away < 1

    return levels


def stroke(width: float) -> Callable[..., np.ndarray]:
    """A wavy line across the picture."""
    return lambda y, x: np.abs(y - 0.6 - 0.08 * np.sin(9 * x)) < width


def spots(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Dust, and one larger part."""
    dust = ((x * 17) % 1 < 0.09) & ((y * 11) % 1 < 0.1)
    return dust | ((y > 0.6) & (y < 0.8) & (x > 0.4) & (x < 0.6))


def cut_out(picture: Image.Image) -> Image.Image:
    """With a transparent border."""
    height, width = picture.height, picture.width
    y, x = np.mgrid[:height, :width]
    inside = ((y / height - 0.5) ** 2 + (x / width - 0.5) ** 2) < 0.23
    cut = picture.copy()
    cut.putalpha(Image.fromarray((inside * 255).astype(np.uint8)))
    return cut


def turned(picture: Image.Image) -> Image.Image:
    """As the sensor of a camera held upside down saw it."""
    return picture.rotate(180)


def exif(orientation: int) -> Image.Exif:
    """Of a camera that was held so."""
    found = Image.Exif()
    found[0x0112], found[0x010F] = orientation, "Camera"
    return found


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
CASES = {
    "box": Case((256, 512), ".png", box(0.5, 0.3, 0.8, 0.6)),
    "small disc": Case((256, 512), ".png", disc(0.6, 0.5, 0.08)),
    "large disc": Case((256, 512), ".png", disc(0.5, 0.5, 0.35), grain=0),
    "soft brush": Case((256, 512), ".png", disc(0.6, 0.4, 0.3, 0.7)),
    "stroke of two pixels": Case((256, 512), ".png", stroke(0.004)),
    "broad stroke": Case((256, 512), ".png", stroke(0.04)),
    "spots": Case((256, 512), ".png", spots),
    "left border": Case((256, 512), ".png", box(0.4, 0, 0.8, 0.15)),
    "a corner": Case((256, 512), ".png", box(0.7, 0.8, 1.1, 1.1)),
    "all of the sky": Case((256, 512), ".png", box(0, 0, 0.35, 1.1)),
    "odd size": Case((251, 397), ".png", disc(0.6, 0.5, 0.2)),
    "upright": Case((397, 203), ".png", box(0.5, 0.2, 0.7, 0.8)),
    "larger": Case((600, 1100), ".png", disc(0.6, 0.5, 0.1)),
    "larger, upright": Case((1001, 600), ".jpg", box(0.6, 0.3, 0.75, 0.6), {"quality": 92}),
    "JPEG": Case((256, 512), ".jpg", disc(0.6, 0.5, 0.2), {"quality": 90}, grain=8),
    "WebP": Case((256, 512), ".webp", box(0.5, 0.5, 0.7, 0.8), {"quality": 90}),
    "TIFF, 300 dpi": Case((240, 400), ".tif", disc(0.5, 0.3, 0.2), {"dpi": (300, 300)}),
    "turned camera": Case(
        (256, 512), ".jpg", disc(0.6, 0.6, 0.2), {"exif": exif(3)}, change=turned
    ),
    "profile": Case((256, 512), ".png", box(0.5, 0.2, 0.8, 0.5), {"icc_profile": SRGB}),
    "cut-out": Case((256, 512), ".png", disc(0.6, 0.5, 0.15), change=cut_out),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photos", description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="sampler steps (default 20)")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs/photos", help="a folder")
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), help="some of them")
    return parser


def make(case: Case, number: int, folder: Path) -> tuple[Path, Path, str]:
    """Write a picture and its mask; their files, and a prompt that fits."""
    scene = held_out_scene(HELD_OUT + 1000 + number)
    height, width = case.size
    picture = render(scene).resize((width, height), Image.Resampling.LANCZOS)
    noise = np.random.default_rng(number).normal(0, case.grain, (height, width, 1))
    picture = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    files = folder / f"{number:02d}{case.suffix}", folder / f"{number:02d}-mask.png"
    case.change(picture).save(files[0], **case.save)
    y, x = np.mgrid[:height, :width]
    levels = case.mask((y + 0.5) / height, (x + 0.5) / width).astype(float)
    Image.fromarray((levels * 255).round().astype(np.uint8)).save(files[1])
    return *files, caption(scene, np.random.default_rng(number))


def seam(result: Tensor, levels: Tensor) -> float:
    """How much more a result jumps across the border of its edit than it does nearby, of 255.

    Args:
        result: [3, H, W] in [0, 1].
        levels: of the mask [H, W].
    """
    marked = levels > 0.5
    inward, outward = distance(~marked, WIDE), distance(marked, WIDE)

    def jump(at: int) -> Tensor:
        """Between the strips on both sides of the line so far outside of the border."""
        signed = torch.where(marked, 1 - inward, outward) - at
        sides = [(signed > 0) & (signed <= NARROW), (signed <= 0) & (signed > -NARROW)]
        means = []
        for side in sides:
            sums = blur(torch.cat([result * side, side[None].float()]), 3.0)
            means.append(torch.where(sums[3] > 0.02, sums[:3] / sums[3], float("nan")))
        return (means[0] - means[1]).abs().mean(0)[signed.abs() <= 1].nanmean()

    elsewhere = [jump(at) for at in (-WIDE // 2, WIDE // 2)]
    found = torch.stack([at for at in elsewhere if at.isfinite()] or [torch.zeros(())]).max()
    return 255 * max(0.0, (jump(1) - found).item())


def judge(picture: Path, mask: Path, result: Path, figures: dict) -> dict[str, object]:
    """The figures of one result."""
    with Image.open(picture) as before, Image.open(result) as after:
        return _compared(before, after, mask, figures)


def _compared(
    before: Image.Image, after: Image.Image, mask: Path, figures: dict
) -> dict[str, object]:
    """The figures of a picture and what became of it."""
    rgb = torch.from_numpy(np.array(after.convert("RGB"))).permute(2, 0, 1) / 255
    levels = load_levels(mask, (after.height, after.width))
    kept = {
        "profile": before.info.get("icc_profile") == after.info.get("icc_profile"),
        "camera": before.getexif().get(0x010F) == after.getexif().get(0x010F),
        "alpha": before.has_transparency_data == after.has_transparency_data,
        "dpi": ("dpi" in before.info) <= ("dpi" in after.info),
    }
    return {
        "size": [after.height, after.width],
        "seam": round(seam(rgb, levels), 2),
        "changed_outside": figures["changed_outside"],
        "lost": [name for name, same in kept.items() if not same],
        "seconds": figures["seconds"]["total"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Make the pictures, edit them, write figures and contact sheet, print the table."""
    args = build_parser().parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    found, shown = {}, {}
    for number, (name, case) in enumerate(CASES.items()):
        if args.only and name not in args.only:
            continue
        picture, mask, prompt = make(case, number, args.output)
        result = args.output / f"{number:02d}-result.png"
        words = ["--model", "tiny", "--run_type", "sige", "--preset", "fast", "--json", "-"]
        words += ["--prompt", prompt, "--steps", str(args.steps), "--seed", str(number)]
        words += ["--init_img", str(picture), "--mask_path", str(mask)]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            cli.main([*words, "--output_path", str(result), "--overwrite"])
        found[name] = judge(picture, mask, result, json.loads(printed.getvalue()))
        with Image.open(result) as image:
            shown[number] = image.convert("RGB").resize((512, 256))
    save_picture(contact_sheet(shown), args.output / "sheet.png")
    write_figures(args.output / "photos.json", {"benchmark": "photos", "cases": found})
    rows = [
        (
            name,
            "x".join(map(str, one["size"][::-1])),
            f"{one['seam']:.1f}",
            f"{one['changed_outside']:.2f}",
            ", ".join(one["lost"]) or "-",
            f"{one['seconds']:.1f}",
        )
        for name, one in found.items()
    ]
    head = ("picture", "size", "seam", "% changed outside", "lost", "seconds")
    print(markdown_table(head, rows))
    return 0


if __name__ == "__main__":
    start("benchmarks.photos", main)
