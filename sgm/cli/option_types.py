"""Converters from a word of the command line to a value; errors are one sentence."""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import NoReturn

from sgm.errors import UserError, suggestion

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
    parser: argparse.ArgumentParser,
    argv: Sequence[str],
    values: argparse.Namespace | None = None,
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
