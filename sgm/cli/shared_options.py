"""Flags that several programs share: the files of a model, and its sampler."""

import argparse
from enum import StrEnum

from sgm.cli.option_types import braces, member, weighted
from sgm.words import Prediction, Sampler, Spacing


def add_names(
    group: argparse._ArgumentGroup,
    flag: str,
    kind: type[StrEnum],
    default: StrEnum | None,
    text: str,
) -> None:
    """Add an option that takes one word of an enum; without a default, `text` says what holds."""
    text = text if default is None else f"{text} (default: %(default)s)"
    names, convert = braces(kind), member(kind)
    group.add_argument(flag, metavar=names, type=convert, default=default, help=text)


def add_folders(group: argparse._ArgumentGroup) -> None:
    """Add `--config_path` and `--weight_path`."""
    text = "folder of the {} (default: %(default)s)"
    for flag, default, content in (
        ("--config_path", "configs", "YAML files"),
        ("--weight_path", "pretrained", "checkpoints"),
    ):
        group.add_argument(flag, metavar="FOLDER", default=default, help=text.format(content))


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
