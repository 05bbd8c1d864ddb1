"""`python -m tools.tiny.train all --minutes N` trains the tiny family, from where it was."""

import argparse
import logging
import os
from dataclasses import replace
from pathlib import Path

import torch

from tools.tiny import judge
from tools.tiny.export import NETWORKS, export
from tools.tiny.family import LAYOUTS, Family, Scale, make_latents, scale_of
from tools.tiny.speed import say_speed


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.tiny.train", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    stages = parser.add_subparsers(dest="stage", required=True)

    everything = stages.add_parser("all", help="autoencoder, latents, UNet, refiner, files")
    everything.add_argument(
        "--minutes", type=float, required=True, help="minutes of training in all, over all sittings"
    )
    everything.add_argument(
        "--sitting", type=float, help="minutes after which to stop, with the states saved"
    )
    everything.add_argument(
        "--start", type=Path, help="a base to go on from; its latents stay what they are"
    )
    made = stages.add_parser("latents", help="make latents of scenes beforehand, on many cores")
    made.add_argument("--minutes", type=float, required=True, help="minutes after which to stop")
    made.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    made.add_argument("--scenes", type=int, default=14_000, help="of which to make them, at most")

    speed = stages.add_parser("speed", help="say how fast steps and batches are, and train nothing")
    for stage in (everything, speed):
        stage.add_argument("--factor", type=int, help="batches are as many times a CPU's")
        stage.add_argument("--workers", type=int, help="processes that make batches; 0 for none")
        stage.add_argument(
            "--graphs",
            action=argparse.BooleanOptionalAction,
            help="CUDA graphs of the steps; by default on a GPU",
        )
    everything.add_argument("--layout", choices=tuple(LAYOUTS), help="of the maps in memory")

    for stage in (made, speed):
        stage.add_argument("--start", type=Path, default=Path("pretrained/tiny_base.safetensors"))

    part = stages.add_parser("export", help="write a file from the states as they are")
    part.add_argument("--part", choices=tuple(NETWORKS), default="base")

    for stage in (everything, made, speed):
        stage.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for stage in (everything, made, speed, part):
        stage.add_argument(
            "--work",
            type=Path,
            default=Path("tools/tiny/work"),
            help="folder of the training states",
        )
    for stage in (everything, part):
        stage.add_argument(
            "--folder", type=Path, default=Path("pretrained"), help="folder of the files to write"
        )
        stage.add_argument("--note", default="", help="added to the metadata (device, time)")

    judging = stages.add_parser("judge", help="train the judge of what stands in a picture")
    judging.add_argument("--scenes", type=int, default=2400)
    judging.add_argument("--epochs", type=int, default=10)
    return parser


def main() -> None:
    """Parse and run."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    if args.stage == "judge":
        judge.train(args.scenes, args.epochs)
    elif args.stage == "export":
        logging.info("wrote %s", export(args.work, args.part, args.folder, args.note))
    elif args.stage == "latents":
        make_latents(args.work, args.start, args.device, args.scenes, args.workers, args.minutes)
    elif args.stage == "speed":
        torch.manual_seed(0)
        say_speed(args.work, args.start, args.device, scale_for(args))
    else:
        torch.manual_seed(0)
        scale = scale_for(args)
        family = Family(args.work, args.minutes, args.device, scale, args.sitting, args.start)
        done = family.train(args.folder, args.note)
        logging.info("done" if done else "to be continued: give the command again")


def scale_for(args: argparse.Namespace) -> Scale:
    """The scale of a device, with what the command line has in place of it."""
    given = {name: getattr(args, name, None) for name in ("factor", "workers", "graphs", "layout")}
    scale = replace(scale_of(args.device), **{k: v for k, v in given.items() if v is not None})
    if scale.graphs and not args.device.startswith("cuda"):
        build_parser().error(f"--graphs needs a GPU; the device is {args.device}: leave it out")
    return scale


if __name__ == "__main__":
    main()
