"""The flags about pictures, masks and seeds: their values, and checks of them together."""

import argparse

from sgm.cli.option_types import braces, one_of, whole
from sgm.errors import UserError
from sgm.photo import Blend, PhotoOptions
from sgm.words import Preset

MAX_RING, MAX_MARGIN, MAX_SEEDS = 256, 4096, 100
MAX_SEED = 2**64 - 1
SYNTAXES = ("plain", "weighted")
AUTO, WHOLE = "auto", "none"


def add_photos(parser: argparse.ArgumentParser) -> None:
    """Add the group of these flags."""
    group = parser.add_argument_group("pictures, masks and seeds in detail")
    text = "pixels outside of the mask in which the edit fades into the picture; 0 is a hard edge "
    text += "(default with --preset fast: 8 at 1024 pixels, in proportion to the picture)"
    group.add_argument("--mask_feather", metavar="N", type=whole(0, MAX_RING), help=text)
    text = "grow the mask or the drawing by this many pixels (default: %(default)s)"
    group.add_argument("--mask_grow", metavar="N", type=whole(0, MAX_RING), default=0, help=text)
    text = "repaint what the mask shows in black"
    group.add_argument("--invert_mask", action="store_true", help=text)
    text = "give the edit the colours and the grain of what is around it (default with --preset "
    text += "fast: yes)"
    group.add_argument("--match_border", action=argparse.BooleanOptionalAction, help=text)
    text = "show the network the edit and N pixels around it, at the size it was trained for; "
    text += f"{AUTO}: only if the picture is larger (default of --preset fast), {WHOLE}: all of it"
    group.add_argument("--padding_mask_crop", metavar="N", type=_margin, help=text)
    text = "several results: 1-6 or 1,7,9 (--seed: one)"
    group.add_argument("--seeds", metavar="LIST", type=_seeds, help=text)
    text = "leave out of a PNG how it was made (prompt, seed, steps, ...)"
    group.add_argument("--no_metadata", action="store_true", help=text)
    group.add_argument("--overwrite", action="store_true", help="replace files that are there")
    text = "plain: as published, 77 tokens; weighted: (word:1.3), and prompts of any length "
    text += "(default: weighted with --preset fast, else plain)"
    names, known = braces(SYNTAXES), one_of(SYNTAXES)
    group.add_argument("--prompt_syntax", metavar=names, type=known, help=text)


def _margin(text: str) -> int | str:
    """A converter for `auto`, `none` or a number of pixels."""
    return text if text in (AUTO, WHOLE) else whole(0, MAX_MARGIN)(text)


def _seeds(text: str) -> tuple[int, ...]:
    """A converter for a list of seeds with ranges; each once, in the order given."""
    one, found = whole(0, MAX_SEED), []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low = one(first.strip())
        high = one(last.strip()) if dash else low
        if high < low or high - low >= MAX_SEEDS:
            raise argparse.ArgumentTypeError(
                f"got {part!r}; give a range of at most {MAX_SEEDS} seeds that rises, such as 1-6"
            )
        found += range(low, high + 1)
    seeds = tuple(dict.fromkeys(found))
    if len(seeds) > MAX_SEEDS:
        raise argparse.ArgumentTypeError(f"got {len(seeds)} seeds; give at most {MAX_SEEDS}")
    return seeds


def photo_options(values: argparse.Namespace) -> PhotoOptions:
    """What the flags of this group mean for a run; `check_together` comes first."""
    fast = values.preset is Preset.FAST
    whole_picture = values.recording is not None or values.record is not None
    crop = values.padding_mask_crop
    if crop is None and fast and not whole_picture:
        crop = AUTO
    crop = None if crop == WHOLE else crop
    asked = values.mask_feather is not None or values.match_border or crop is not None
    match = fast if values.match_border is None else values.match_border
    return PhotoOptions(
        mask_grow=values.mask_grow,
        invert_mask=values.invert_mask,
        blend=Blend(values.mask_feather, match) if fast or asked else None,
        padding_mask_crop=crop,
        seeds=values.seeds or (),
        metadata=not values.no_metadata,
        overwrite=values.overwrite,
    )


def weighted(values: argparse.Namespace) -> bool:
    """Whether prompts are read as `--prompt_syntax weighted` says."""
    return (values.prompt_syntax or SYNTAXES[values.preset is Preset.FAST]) == "weighted"


def check_photos(values: argparse.Namespace) -> None:
    """Raise UserError for flags of this group that others exclude."""
    if values.mode.profiles and values.seeds:
        raise UserError("--seeds makes pictures; leave it out of the profile modes.")
    if values.record is not None and values.seeds:
        raise UserError("--record makes one recording, and --seeds many results; leave one out.")
    if values.recording is not None and isinstance(values.padding_mask_crop, int):
        raise UserError(
            "--padding_mask_crop shows the network another picture than --recording holds; leave "
            "one out."
        )
    if values.mask_path is None and values.invert_mask:
        raise UserError("--invert_mask needs --mask_path; name a mask.")
