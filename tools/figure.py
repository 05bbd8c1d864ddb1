"""One labelled figure of pictures in rows and columns, drawn with Pillow."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sgm.io.imageio import to_picture

PAPER, INK, GREY, FRAME = (250, 249, 246), (32, 34, 38), (106, 110, 118), (206, 204, 198)
OVERLAY = (0.93, 0.26, 0.30)  # colour of a mask, RGB in [0, 1]
MARGIN, GUTTER = 40, 20  # pixels around everything, and between columns
# Heights of the fonts in pixels; a page shows a figure of six columns at a third of its size.
TITLE, HEADING, BODY = 56, 44, 34


@dataclass(frozen=True, eq=False)
class Panel:
    """A picture [3, H, W] in [0, 1] with a title above and a caption of one or two lines below."""

    picture: Tensor
    title: str
    caption: str


@dataclass(frozen=True, eq=False)
class Row:
    """Pictures of one size under a name and an explanation."""

    name: str
    explanation: str
    panels: Sequence[Panel]


def overlay(picture: Tensor, mask: Tensor) -> Tensor:
    """A picture [3, H, W] in [0, 1] with the mask (bool [H, W]) as a translucent area with an
    edge of 2 pixels."""
    colour = picture.new_tensor(OVERLAY)[:, None, None]
    inner = -torch.nn.functional.max_pool2d(-mask[None].float(), 5, stride=1, padding=2)[0]
    edge = mask & (inner < 0.5)
    strength = torch.where(edge, 1.0, 0.45) * mask
    return picture * (1 - strength) + colour * strength


def draw_figure(title: str, rows: Sequence[Row], notes: Sequence[str]) -> Image.Image:
    """Rows below one another on one sheet, the notes at its foot.

    Args:
        title: one line at the top.
        rows: all with pictures of one size and equally many of them.
        notes: each becomes a paragraph, wrapped to the width of the sheet.

    Returns:
        An RGB picture.
    """
    height, width = rows[0].panels[0].picture.shape[1:]
    columns = len(rows[0].panels)
    sheet_width = 2 * MARGIN + columns * width + (columns - 1) * GUTTER
    title_font, heading, body = (ImageFont.load_default(size) for size in (TITLE, HEADING, BODY))
    # A character is about half as wide as it is high.
    lines = [
        line
        for note in notes
        for line in textwrap.wrap(note, int((sheet_width - 2 * MARGIN) / (0.5 * BODY)))
    ]
    row_height = 2 * HEADING + height + 3 * BODY + 64  # three lines of text around a picture
    sheet_height = 2 * MARGIN + TITLE + 30 + len(rows) * row_height + len(lines) * (BODY + 10)
    sheet = Image.new("RGB", (sheet_width, sheet_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, title_font)
    y = MARGIN + TITLE + 30
    for row in rows:
        draw.line((MARGIN, y, sheet_width - MARGIN, y), FRAME, 2)
        draw.text((MARGIN, y + 14), row.name, INK, heading)
        beside = MARGIN + draw.textlength(row.name, heading) + 16
        draw.text((beside, y + 14 + HEADING - BODY), row.explanation, GREY, body)
        for index, panel in enumerate(row.panels):
            x = MARGIN + index * (width + GUTTER)
            _draw_panel(sheet, draw, panel, (x, y + HEADING + 26), body)
        y += row_height
    for line in lines:
        draw.text((MARGIN, y), line, GREY, body)
        y += BODY + 10
    return sheet


def _draw_panel(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    panel: Panel,
    corner: tuple[int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    """A panel with its top left at `corner` (x, y)."""
    x, y = corner
    picture = to_picture(panel.picture)
    draw.text((x, y), panel.title, INK, font)
    top = y + BODY + 10
    draw.rectangle((x - 1, top - 1, x + picture.width, top + picture.height), outline=FRAME)
    sheet.paste(picture, (x, top))
    draw.text((x, top + picture.height + 6), panel.caption, GREY, font, spacing=6)
