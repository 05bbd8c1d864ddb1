"""What command lines are made of: converters from words to values, and flags of several programs.

The error of a converter is one sentence.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import NoReturn

from sgm.errors import UserError, suggestion
from sgm.words import Prediction, Sampler, Spacing

TRUE_WORDS, FALSE_WORDS = ("true", "yes", "1"), ("false", "no", "0")


def braces(names: Iterable[object]) -> str:
    """`{a,b,c}` for the help text."""
    return "{" + ",".join(str(name) for name in names) + "}"


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """A converter that accepts the given words only."""

    def convert(text: str) -> str:
        if text not in names:
            known = f"{', '.join(names)}{suggestion(text, names)}"
            raise argparse.ArgumentTypeError(f"{text!r} is not known; choose one of {known}")
        return text

    return convert


def member(kind: type[StrEnum]) -> Callable[[str], StrEnum]:
    """A converter from a word to a member of an enum."""
    check = one_of([str(name) for name in kind])
    return lambda text: kind(check(text))


def _parsed(kind: Callable[[str], float], text: str) -> float:
    """A number, or NaN, which fails every comparison."""
    try:
        return kind(text)
    except ValueError:
        return math.nan


def whole(low: int, high: int) -> Callable[[str], int]:
    """A converter for whole numbers from low to high, both included."""

    def convert(text: str) -> int:
        value = _parsed(int, text)
        if not low <= value <= high:
            sentence = f"got {text!r}; give a whole number from {low} to {high}"
            raise argparse.ArgumentTypeError(sentence)
        return int(value)

    return convert


def number(low: float, high: float, above_low: bool = False) -> Callable[[str], float]:
    """A converter for finite numbers from low (or only above it) to high."""

    def convert(text: str) -> float:
        value = _parsed(float, text)
        if not (low < value <= high or (value == low and not above_low)):
            start = f"above {low:g} and" if above_low else f"from {low:g}"
            raise argparse.ArgumentTypeError(f"got {text!r}; give a number {start} up to {high:g}")
        return value

    return convert


def only(allowed: float, reason: str) -> Callable[[str], float]:
    """A converter for a published option that has one meaningful value."""

    def convert(text: str) -> float:
        if _parsed(float, text) != allowed:
            sentence = f"got {text!r} but {reason}; leave it out or give {allowed:g}"
            raise argparse.ArgumentTypeError(sentence)
        return allowed

    return convert


def weighted(text: str) -> tuple[str, float]:
    """A converter for a path that may end in a colon and a finite number; without one it is 1."""
    path, colon, last = text.rpartition(":")
    try:
        value = float(last)
    except ValueError:
        return text, 1.0  # a colon of the path's own
    if not colon:
        return text, 1.0
    if not path or not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"got {text!r}; give FILE or FILE:WEIGHT")
    return path, value


def truth(text: str) -> bool:
    """true/false, yes/no, 1/0 in any case (published: any word, also False, meant true)."""
    word = text.lower()
    if word not in TRUE_WORDS + FALSE_WORDS:
        raise argparse.ArgumentTypeError(f"got {text!r}; give true or false, or no value for true")
    return word in TRUE_WORDS


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are a `UserError` of one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        text = message.removeprefix("argument ").rstrip(".")
        # Converters below say what to do; argparse's own messages do not.
        ending = "" if ";" in text else "; see --help"
        raise UserError(f"{text}{ending}.")


def parsed(
    parser: argparse.ArgumentParser, argv: Sequence[str], values: argparse.Namespace | None = None
) -> argparse.Namespace:
    """The values of a command line; UserError on an unknown option (with the nearest known one) or
    a value outside its range. `values` hold where the command line says nothing, in place of the
    parser's defaults."""
    values, rest = parser.parse_known_args(argv, values)
    if rest:
        came = next((word for word in rest if word.startswith("-")), rest[0]).partition("=")[0]
        kind = "option" if came.startswith("-") else "word"
        known = [flag for action in parser._actions for flag in action.option_strings]
        raise UserError(f"Unknown {kind} {came!r}{suggestion(came, known)}; see --help.")
    return values


def add(
    group: argparse._ArgumentGroup,
    flag: str,
    text: str,
    kind: Callable[[str], object] = str,
    default: object = None,
) -> None:
    """Add an option.

    Args:
        flag: its name and what stands for its value, such as `--seed N`.
        text: the help; where it does not name the default, that is put at its end.
        kind: the converter of its word.
    """
    name, metavar = flag.split()
    if default not in (None, "") and "%(default)s" not in text:
        text = f"{text} (default: %(default)s)"
    group.add_argument(name, metavar=metavar, type=kind, default=default, help=text)


def add_names(
    group: argparse._ArgumentGroup,
    flag: str,
    kind: type[StrEnum],
    default: StrEnum | None,
    text: str,
) -> None:
    """Add an option that takes one word of an enum; without a default, `text` says what holds."""
    add(group, f"{flag} {braces(kind)}", text, member(kind), default)


def add_folders(group: argparse._ArgumentGroup) -> None:
    """Add `--config_path` and `--weight_path`."""
    add(group, "--config_path FOLDER", "folder of the YAML files", default="configs")
    add(group, "--weight_path FOLDER", "folder of the checkpoints", default="pretrained")


def add_adaptions(group: argparse._ArgumentGroup) -> None:
    """Add `--lora` and `--prediction`: what is merged into a checkpoint, and how it is read."""
    group.add_argument(
        "--lora",
        metavar="FILE[:WEIGHT]",
        action="append",
        type=weighted,
        default=[],
        help="a LoRA to merge, and how much of it (default: 1); may be given several times",
    )
    text = "what the network predicts (default: what the checkpoint says, else epsilon)"
    add_names(group, "--prediction", Prediction, None, text)


def add_sampler(group: argparse._ArgumentGroup) -> None:
    """Add `--sampler` and `--spacing`."""
    text = "how a step is made; euler and lcm are for few-step models"
    add_names(group, "--sampler", Sampler, Sampler.DPMPP2M, text)
    text = "which noise levels are visited; trailing is for few-step models"
    add_names(group, "--spacing", Spacing, Spacing.PUBLISHED, text)
