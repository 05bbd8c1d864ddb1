"""The published figures: GMAC and milliseconds of one pass on an A100 in FP32, at 512x1024.

From the tables of the README of the SDXL port of SIGE. A network is measured at guidance batch 2
(UNet) or batch 1 (autoencoder).
"""

from dataclasses import dataclass

INPAINTING, SDEDIT = "inpainting", "sdedit"
EXAMPLES = {INPAINTING: ("mask",), SDEDIT: ("0", "1")}
NETWORKS = ("unet", "encoder", "decoder")


@dataclass(frozen=True)
class Figure:
    """GMAC and milliseconds; the latter None where none was published."""

    gmacs: float
    milliseconds: float | None = None


# By model, network and task: the original, then SIGE for each example of the task.
PUBLISHED: dict[tuple[str, str, str], tuple[Figure, ...]] = {
    ("base", "unet", INPAINTING): (Figure(3015.82, 319.99), Figure(974.42, 130.08)),
    ("base", "decoder", INPAINTING): (Figure(2481.99, 113.89), Figure(343.51, 27.16)),
    # Not in its tables: its program's tracer on its encoder, with the inpainting mask.
    ("base", "encoder", INPAINTING): (Figure(1083.27), Figure(160.49)),
    ("base", "unet", SDEDIT): (
        Figure(3015.82, 320.77),
        Figure(592.03, 112.15),
        Figure(876.87, 125.16),
    ),
    ("base", "encoder", SDEDIT): (
        Figure(1083.27, 62.53),
        Figure(39.18, 6.17),
        Figure(76.29, 8.32),
    ),
    ("base", "decoder", SDEDIT): (
        Figure(2481.99, 114.06),
        Figure(154.22, 19.09),
        Figure(318.28, 26.13),
    ),
    ("refiner", "unet", INPAINTING): (Figure(3058.80, 304.85), Figure(985.25, 118.37)),
    ("refiner", "unet", SDEDIT): (
        Figure(3058.80, 304.44),
        Figure(521.47, 88.04),
        Figure(777.37, 108.01),
    ),
    ("turbo", "unet", INPAINTING): (Figure(3015.82, 321.03), Figure(974.42, 130.03)),
    ("turbo", "unet", SDEDIT): (
        Figure(3015.82, 320.21),
        Figure(592.03, 114.51),
        Figure(876.87, 124.76),
    ),
}
