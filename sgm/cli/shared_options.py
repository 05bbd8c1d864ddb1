"""Flags that several programs share: the files of a model, and its sampler."""

import argparse
from enum import StrEnum

from sgm.cli.option_types import braces, member, weighted
from sgm.words import Prediction, Sampler, Spacing


def add_names(
    group: argparse._ArgumentGroup, flag: str, kind: type[StrEnum], default: StrEnum, text: str
) -> None:
    """Add an option that takes one word of an enum."""
    group.add_argument(
        flag,
        metavar=braces(kind),
        type=member(kind),
        default=default,
        help=f"{text} (default: %(default)s)",
    )


def add_folders(group: argparse._ArgumentGroup) -> None:
    """Add `--config_path` and `--weight_path`."""
    for flag, folder, content in (
        ("--config_path", "configs", "YAML files"),
        ("--weight_path", "pretrained", "checkpoints"),
    ):
        group.add_argument(
            flag,
            metavar="FOLDER",
            default=folder,
            help=f"folder of the {content} (default: %(default)s)",
        )


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
    group.add_argument(
        "--prediction",
        metavar=braces(Prediction),
        type=member(Prediction),
        help="what the network predicts (default: what the checkpoint says, else epsilon)",
    )


def add_sampler(group: argparse._ArgumentGroup) -> None:
    """Add `--sampler` and `--spacing`."""
    text = "how a step is made; euler and lcm are for few-step models"
    add_names(group, "--sampler", Sampler, Sampler.DPMPP2M, text)
    text = "which noise levels are visited; trailing is for few-step models"
    add_names(group, "--spacing", Spacing, Spacing.PUBLISHED, text)
