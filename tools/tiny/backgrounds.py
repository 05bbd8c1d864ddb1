"""The backgrounds: sky, hills, mountains, lake, sea and sand."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from tools.tiny.layout import RGB, Palette, Scene

# Soft things (gradients, clouds, grass shading) are computed on this small grid and enlarged.
GRID_H, GRID_W = 64, 128
BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST


def mix(a: RGB, b: RGB, t: float) -> RGB:
    """The colour a fraction `t` of the way from a to b."""
    r, g, bl = (round(p + (q - p) * t) for p, q in zip(a, b, strict=True))
    return r, g, bl


def gradient(top: RGB, low: RGB, start: float, stop: float) -> np.ndarray:
    """(GRID_H, 1, 3) float: `top` above the height fraction `start`, `low` below `stop`."""
    y = (np.arange(GRID_H) + 0.5) / GRID_H
    t = np.clip((y - start) / max(stop - start, 1e-6), 0, 1)[:, None, None]
    return np.asarray(top, np.float32) * (1 - t) + np.asarray(low, np.float32) * t


def enlarge(
    grid: np.ndarray, size: tuple[int, int], top: float = 0.0, stop: float = 1.0
) -> Image.Image:
    """A small float picture (h, w, 3), 0..255, as an RGB image of `size` (width, height).

    A grid one wide is a vertical gradient. Only the rows between the height fractions `top` and
    `stop` are computed, the others are black. Both sides of `size` are even: the smooth part of
    the enlargement stops at half of them, because the canvas is averaged 2 x 2 in the end anyway.
    """
    small = Image.fromarray(np.clip(grid + 0.5, 0, 255).astype(np.uint8))
    w, h = size[0] // 2, size[1] // 2
    # Two grid rows more at the top, so that the first row wanted is interpolated as ever.
    first = max(0, int((top - 2 / GRID_H) * h))
    last = min(h, int(np.ceil((stop + 2 / GRID_H) * h)))
    part = (0, first * small.height / h, small.width, last * small.height / h)
    half = small.resize((w if small.width > 1 else 1, last - first), BILINEAR, box=part)
    image = Image.new("RGB", size)
    image.paste(half.resize((2 * w, 2 * (last - first)), NEAREST), (0, 2 * first))
    return image


def waves(rng: np.random.Generator, width: int, low: float, high: float) -> np.ndarray:
    """A smooth random profile over the picture's width, (width,), about -1..1.

    low, high: how many periods of the slowest and the fastest wave fit the width.
    """
    x = (np.arange(width) + 0.5) / width * 2 * np.pi
    freq = rng.uniform(low, high, 3)
    phase = rng.uniform(0, 2 * np.pi, 3)
    return sum(w * np.sin(f * x + p) for w, f, p in zip((0.5, 0.3, 0.2), freq, phase, strict=True))


def draw_sky(
    scene: Scene, palette: Palette, rng: np.random.Generator, size: tuple[int, int]
) -> Image.Image:
    """The sky over the whole canvas of `size` (width, height), with soft clouds."""
    sky = np.repeat(gradient(palette.sky_top, palette.sky_low, 0.0, scene.horizon), GRID_W, axis=1)
    count = int(rng.integers(2, 4))
    spots = rng.uniform(0, 1, (count, 4))
    if scene.clouds:
        y = ((np.arange(GRID_H) + 0.5) / GRID_H)[:, None]
        x = ((np.arange(GRID_W) + 0.5) / GRID_W)[None, :]
        cover = np.zeros((GRID_H, GRID_W), np.float32)
        for index, (a, b, c, d) in enumerate(spots):
            # Spread over the width, one cloud in each part.
            cx, cy = (index + 0.15 + 0.7 * a) / count, (0.16 + 0.36 * b) * scene.horizon
            half_w, half_h = 0.07 + 0.06 * c, 0.035 + 0.02 * d
            for dx, dy, r in ((0, 0, 1.0), (-0.55, 0.25, 0.65), (0.6, 0.2, 0.7)):
                rx, ry = half_w * r, half_h * r * 1.25
                r2 = ((x - cx - dx * half_w) / rx) ** 2 + ((y - cy - dy * half_h) / ry) ** 2
                cover = np.maximum(cover, np.exp(-r2 * np.sqrt(r2)))
        alpha = (0.85 * cover)[..., None].astype(np.float32)
        sky = sky * (1 - alpha) + np.asarray(palette.cloud, np.float32) * alpha
    # No background leaves sky visible this far below the horizon.
    return enlarge(sky, size, 0.0, scene.horizon + 0.1)


def lowered(outline: list[float], top: int) -> list[float]:
    """The flat x, y list with `top` taken off every y."""
    return [v - top if i % 2 else v for i, v in enumerate(outline)]


def fill_below(image: Image.Image, ridge: np.ndarray, fill: RGB | Image.Image) -> None:
    """Fill everything below a ridge line.

    ridge: (n,) heights as fractions of the picture from the top, evenly spread over the width.
    fill: a colour, or a picture of the canvas's size.
    """
    w, h = image.size
    xs = np.linspace(0, w, len(ridge))
    line = np.stack([xs, ridge * h], 1).ravel().tolist()
    outline = [*line, w, h, 0, h]
    if isinstance(fill, Image.Image):
        top = max(0, int(ridge.min() * h) - 1)
        # Mode "1": pasting through it is many times faster than through greys.
        mask = Image.new("1", (w, h - top), 0)
        ImageDraw.Draw(mask).polygon(lowered(outline, top), fill=1)
        image.paste(fill.crop((0, top, w, h)), (0, top), mask)
    else:
        ImageDraw.Draw(image).polygon(outline, fill=fill)


def ground_texture(
    top: RGB, low: RGB, start: float, rng: np.random.Generator, size: tuple[int, int], depth: float
) -> Image.Image:
    """A ground gradient from the fraction `start` down, with soft level shading of +-`depth`."""
    grid = np.repeat(gradient(top, low, start, 1.0), GRID_W, axis=1)
    y = ((np.arange(GRID_H) + 0.5) / GRID_H)[:, None]
    x = ((np.arange(GRID_W) + 0.5) / GRID_W)[None, :]
    p = rng.uniform(0, 2 * np.pi, 4)
    # Perspective: the bands are closer together near the horizon.
    z = 1.0 / np.clip(y - start + 0.25, 0.2, None)
    shade = np.sin(7 * z + 2.5 * np.sin(2 * np.pi * x + p[0]) + p[1])
    shade = shade + 0.6 * np.sin(4 * z - 5 * x + p[2])
    return enlarge(grid + (depth * shade)[..., None].astype(np.float32), size, start - 0.02)


def draw_grassland(
    image: Image.Image, scene: Scene, palette: Palette, rng: np.random.Generator
) -> None:
    """Two ranges of hills and a meadow."""
    h0 = scene.horizon
    fill_below(image, h0 - 0.05 + 0.045 * waves(rng, 129, 0.8, 2.2), palette.far)
    fill_below(image, h0 + 0.02 + 0.035 * waves(rng, 129, 0.6, 1.8), palette.near)
    meadow = ground_texture(palette.ground_top, palette.ground_low, h0, rng, image.size, 4.0)
    fill_below(image, h0 + 0.09 + 0.02 * waves(rng, 129, 0.4, 1.2), meadow)


def peaks(
    rng: np.random.Generator, count: int, base: float, tall: float
) -> list[tuple[float, float, float]]:
    """`count` mountains spread over the width: (x, top, half width) as fractions."""
    found = []
    for index in range(count):
        x = (index + float(rng.uniform(0.15, 0.85))) / count
        height = tall * float(rng.uniform(0.55, 1.0))
        found.append((x, base - height, height * float(rng.uniform(0.42, 0.6)) + 0.05))
    return found


def draw_range(
    image: Image.Image,
    mountains: list[tuple[float, float, float]],
    base: float,
    colour: RGB,
    light: RGB,
    mirror: float | None = None,
) -> None:
    """A range of two-sided mountains standing on the height fraction `base`.

    colour, light: the shaded and the lit side. mirror: draw the reflection in a lake whose
    surface begins at this height fraction instead.
    """
    w, h = image.size
    draw = ImageDraw.Draw(image)

    def pixel(x: float, y: float) -> tuple[float, float]:
        return x * w, (y if mirror is None else 2 * mirror - y) * h

    for x, top, half in sorted(mountains, key=lambda m: m[1]):
        left, right, bend = (
            pixel(x - half, base),
            pixel(x + half, base),
            pixel(x + 0.12 * half, base),
        )
        middle = pixel(x + 0.22 * half, 0.5 * (top + base))
        draw.polygon([pixel(x, top), left, right], fill=colour)
        draw.polygon([pixel(x, top), left, bend, middle], fill=light)


def draw_fantasy(
    image: Image.Image, scene: Scene, palette: Palette, rng: np.random.Generator
) -> None:
    """Two ranges of mountains, then a lake or a dark meadow."""
    h0 = scene.horizon
    far = peaks(rng, 4, h0, 0.28)
    near = peaks(rng, 3, h0 + 0.04, 0.2)
    far_colour = mix(palette.far, palette.near, 0.25)
    far_light = mix(palette.far, palette.sky_low, 0.35)
    near_light = mix(palette.near, palette.far, 0.4)
    draw_range(image, far, h0 + 0.02, far_colour, far_light)
    draw_range(image, near, h0 + 0.04, palette.near, near_light)
    shore = h0 + 0.04
    if scene.lake:
        water = enlarge(
            gradient(palette.water_top, palette.water_low, shore, 1.0), image.size, shore
        )
        fill_below(image, np.full(2, shore), water)
        deep = mix(palette.water_top, palette.water_low, 0.4)
        draw_range(
            image,
            near,
            h0 + 0.04,
            mix(palette.near, deep, 0.45),
            mix(near_light, deep, 0.45),
            shore,
        )
    ground = ground_texture(palette.ground_top, palette.ground_low, h0 - 0.03, rng, image.size, 3.0)
    # Without a lake the meadow covers the mountains' feet.
    edge = shore + (0.27 if scene.lake else -0.05)
    bank = edge + 0.03 * waves(rng, 129, 0.5, 1.5)
    fill_below(image, bank, ground)


def draw_beach(
    image: Image.Image, scene: Scene, palette: Palette, rng: np.random.Generator
) -> None:
    """The sea from the horizon down, a line of foam and the sand; a fantasy one has islands."""
    h0 = scene.horizon
    islands = peaks(rng, 3, h0, 0.2)
    if scene.fantasy:
        draw_range(
            image, islands, h0, mix(palette.far, palette.near, 0.3),
            mix(palette.far, palette.sky_low, 0.3),
        )  # fmt: skip
    sea = enlarge(gradient(palette.water_low, palette.water_top, h0, h0 + 0.28), image.size, h0)
    fill_below(image, np.full(2, h0), sea)
    slope = float(rng.uniform(-0.05, 0.05))
    shore = h0 + 0.2 + slope * np.linspace(-1, 1, 129) + 0.025 * waves(rng, 129, 0.5, 1.6)
    foam = mix(palette.water_top, (255, 255, 255), 0.65)
    fill_below(image, shore, foam)
    sand_top, sand_low = palette.ground_top, palette.ground_low
    if scene.fantasy:
        sand_top, sand_low = (
            mix(sand_top, palette.sky_low, 0.5),
            mix(sand_low, palette.sky_low, 0.2),
        )
    fill_below(image, shore + 0.022, mix(sand_top, sand_low, 0.7))
    sand = ground_texture(sand_top, sand_low, h0 + 0.2, rng, image.size, 3.0)
    fill_below(image, shore + 0.05, sand)


GROUNDS = {"grassland": draw_grassland, "fantasy": draw_fantasy, "beach": draw_beach}
