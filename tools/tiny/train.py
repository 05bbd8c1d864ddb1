"""`python -m tools.tiny.train all --minutes N` trains the tiny family, from where it was."""

import argparse
import logging
from pathlib import Path

import torch

from tools.tiny import judge
from tools.tiny.export import NETWORKS, export
from tools.tiny.family import CPU, GPU, Family


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
    everything.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")

    part = stages.add_parser("export", help="write a file from the states as they are")
    part.add_argument("--part", choices=tuple(NETWORKS), default="base")

    for stage in (everything, part):
        stage.add_argument(
            "--work",
            type=Path,
            default=Path("tools/tiny/work"),
            help="folder of the training states",
        )
        stage.add_argument(
            "--folder", type=Path, default=Path("pretrained"), help="folder of the files to write"
        )
        stage.add_argument("--note", default="", help="added to the metadata (device, time)")

    judging = stages.add_parser("judge", help="train the judge of what stands in a picture")
    judging.add_argument("--scenes", type=int, default=2400)
    judging.add_argument("--epochs", type=int, default=8)
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
    else:
        torch.manual_seed(0)
        scale = GPU if args.device.startswith("cuda") else CPU
        family = Family(args.work, args.minutes, args.device, scale, args.sitting, args.start)
        done = family.train(args.folder, args.note)
        logging.info("done" if done else "to be continued: give the command again")


if __name__ == "__main__":
    main()
