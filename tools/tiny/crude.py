"""What a person draws before an SDEdit: flat, simple stand-ins for the objects."""

from __future__ import annotations

from PIL import Image

from tools.tiny.layout import RGB, PlacedObject
from tools.tiny.objects import DRAWERS, FRONDS, PALM_TOP, Brush, horse_shapes

# Colours of objects drawn as one flat shape.
FLAT: dict[str, RGB] = {"horse": (140, 84, 48), "sun": (255, 214, 80)}


def crude_palm(brush: Brush) -> None:
    """A brown bar and six green strokes."""
    top_x, top_y = PALM_TOP
    foot, top = brush.at(0.0, 0.0), brush.at(top_x, top_y)
    brush.draw.line([foot, top], fill=(140, 96, 56), width=max(1, round(0.075 * brush.scale)))
    width = max(1, round(0.08 * brush.scale))
    for dx, dy, arch in FRONDS:
        bend = brush.at(top_x + 0.55 * dx, top_y + 0.5 * dy + arch)
        path = [top, bend, brush.at(top_x + dx, top_y + dy)]
        brush.draw.line(path, fill=(52, 140, 60), width=width, joint="curve")


def draw_crude(image: Image.Image, obj: PlacedObject) -> Image.Image:
    """A copy of `image` (RGB) with a flat, crude version of the object painted over it.

    Everything outside `object_box` of the object stays as it was. KeyError for unknown objects.
    """
    large = image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST)
    brush = Brush(large, obj, (1.0, 1.0, 1.0))
    if obj.name == "sun":
        brush.disc(0.0, 0.0, 0.5, 0.5, FLAT["sun"])
    elif obj.name == "palm":
        crude_palm(brush)
    elif obj.name == "horse":
        for part in ("far0", "far1", "tail", "body"):
            brush.shape(horse_shapes()[part], FLAT["horse"])
    else:
        DRAWERS[obj.name](brush, obj.variant)
    # NEAREST up and a 2 x 2 mean down leave untouched pixels exactly as they were.
    return large.reduce(2)
