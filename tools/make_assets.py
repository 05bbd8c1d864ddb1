"""Draws the example pictures under assets/: `python -m tools.make_assets [--check]`.

Everything is deterministic. With --check nothing is written: the exit status is 1, and the files
are named, where what is on disk differs from what would be drawn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from sgm.cli.program import start
from tools.tiny.crude import draw_crude
from tools.tiny.layout import PlacedObject, Scene
from tools.tiny.scenes import render

HEIGHT, WIDTH = 512, 1024
# The inpainting mask: the first and the last row and column to repaint, ends included.
MASK_ROWS, MASK_COLUMNS = (280, 469), (590, 909)
# Pictures in [-1, 1] count as different where any channel differs by more than this.
EDIT_THRESHOLD = 0.02
FEW = 1e-4  # of the values of a picture, which may be rounded otherwise

MEADOW = Scene(
    "grassland",
    "day",
    "photograph",
    seed=21,
    horizon=0.44,
    objects=(PlacedObject("tree", 0.2, 0.62, 0.46, False, 0),),
    clouds=True,
)
# Each SDEdit example: the picture, and the object a person draws on it.
SDEDITS: tuple[tuple[Scene, PlacedObject], ...] = (
    (
        Scene("fantasy", "violet", "painting", seed=4, horizon=0.47, clouds=True, lake=True),
        PlacedObject("sun", 0.345, 0.19, 0.207),
    ),
    (
        Scene("beach", "ember", "painting", seed=8, horizon=0.47, clouds=True),
        PlacedObject("palm", 0.49, 0.89, 0.465),
    ),
)


def build() -> dict[str, np.ndarray]:
    """All assets by their path under assets/.

    Pictures are (512, 1024, 3) uint8; the mask is (512, 1024) bool, True where to repaint.
    """
    meadow = np.asarray(render(MEADOW, HEIGHT, WIDTH))
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[MASK_ROWS[0] : MASK_ROWS[1] + 1, MASK_COLUMNS[0] : MASK_COLUMNS[1] + 1] = True
    masked = meadow.copy()
    masked[mask] = 255
    found = {
        "inpainting/original/0.png": meadow,
        "inpainting/masks/0.npy": mask,
        "inpainting/masked/0.png": masked,
    }
    for index, (scene, drawn) in enumerate(SDEDITS):
        original = render(scene, HEIGHT, WIDTH)
        found[f"img2img/original/{index}.png"] = np.asarray(original)
        found[f"img2img/edited/{index}.png"] = np.asarray(draw_crude(original, drawn))
    return found


def edit_fraction(original: np.ndarray, edited: np.ndarray) -> float:
    """The share of pixels that differ between two (height, width, 3) uint8 pictures."""
    change = np.abs(original.astype(np.float32) - edited.astype(np.float32)) / 127.5
    return float((change.max(axis=2) > EDIT_THRESHOLD).mean())


def load(path: Path) -> np.ndarray:
    """An asset as an array; OSError or ValueError if it cannot be read."""
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    with Image.open(path) as image:
        return np.asarray(image)


def write(root: Path, assets: dict[str, np.ndarray]) -> None:
    """Write the assets under `root`, making folders as needed."""
    for name, array in assets.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, array)
        else:
            Image.fromarray(array).save(path, optimize=True)


def differing(root: Path, assets: dict[str, np.ndarray]) -> list[str]:
    """Which assets are missing, unreadable or not the given arrays.

    Decoded pixels are compared, not bytes: another version of zlib packs a picture differently. A
    few pixels may be one level off, as versions of Pillow round differently.
    """
    names = []
    for name, array in assets.items():
        try:
            found = load(root / name)
        except (OSError, ValueError):
            names.append(name)
            continue
        if found.dtype != array.dtype or not _same(found, array):
            names.append(name)
    return names


def _same(found: np.ndarray, array: np.ndarray) -> bool:
    if found.shape != array.shape or found.dtype != np.uint8:
        return np.array_equal(found, array)
    apart = np.abs(found.astype(int) - array)
    return apart.max() <= 1 and (apart > 0).mean() < FEW


def main(argv: list[str] | None = None) -> int:
    """Draw or check the assets; the exit status."""
    parser = argparse.ArgumentParser(description="Draw the example pictures under assets/.")
    parser.add_argument("--check", action="store_true", help="only compare with what is on disk")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(__file__).resolve().parents[1] / "assets",
        help="the folder of the assets (default: the repository's)",
    )
    args = parser.parse_args(argv)
    assets = build()
    if args.check:
        names = differing(args.root, assets)
        for name in names:
            print(f"differs: {name}")
        print(f"{len(assets) - len(names)} of {len(assets)} assets are as drawn")
        return 1 if names else 0
    write(args.root, assets)
    for name in assets:
        print(f"{name}: {(args.root / name).stat().st_size} bytes")
    print(f"inpainting mask: {assets['inpainting/masks/0.npy'].mean():.2%} of the picture")
    for index in range(len(SDEDITS)):
        pair = (assets[f"img2img/{kind}/{index}.png"] for kind in ("original", "edited"))
        print(f"img2img {index}: {edit_fraction(*pair):.2%} of the picture is edited")
    return 0


if __name__ == "__main__":
    start("tools.make_assets", main)
