"""`python -m tools.tiny.train STAGE`: trains the tiny model family; every stage resumes."""

import argparse
import logging

import torch

from tools.tiny import autoencoder, export, latents, refiner, unet


def build_parser() -> argparse.ArgumentParser:
    """The command line: one sub-command a stage, in the order in which they run."""
    parser = argparse.ArgumentParser(prog="python -m tools.tiny.train", description=__doc__)
    parser.add_argument("--config", default="configs/tiny-original.yaml", help="what to build")
    parser.add_argument("--work", default="tools/tiny/work", help="folder of the checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    stages = parser.add_subparsers(dest="stage", required=True)

    vae = stages.add_parser("vae", help="train the autoencoder, or with its encoder frozen")
    vae.add_argument("--steps", type=int, default=2400)
    vae.add_argument("--lr", type=float, default=2e-3)
    vae.add_argument("--focus", type=float, default=0.7, help="share of crops around objects")
    vae.add_argument("--freeze_encoder", action="store_true", help="go on with the decoder alone")

    latents = stages.add_parser("latents", help="encode the scenes that the UNet trains on")
    latents.add_argument("--scenes", type=int, default=2600)

    unet = stages.add_parser("unet", help="train the UNet and its text towers")
    unet.add_argument("--steps", type=int, default=4000)
    unet.add_argument("--lr", type=float, default=1e-3)
    refiner = stages.add_parser("refiner", help="train the refiner, taught by the exported base")
    refiner.add_argument("--steps", type=int, default=400)
    refiner.add_argument("--lr", type=float, default=1e-3)
    refiner.add_argument("--text_dropout", type=float, default=0.2, help="share without a prompt")
    refiner.add_argument("--stop", type=int, help="end at this step, early in the schedule")
    refiner.add_argument("--base", default="pretrained/tiny_base.safetensors")
    refiner.add_argument("--refiner_config", default="configs/tiny-refiner.yaml")

    for stage in (vae, unet, refiner):
        stage.add_argument(
            "--cycle_start", type=int, default=0, help="step at which the learning rate starts anew"
        )

    export = stages.add_parser("export", help="write the weights as one checkpoint")
    export.add_argument("--part", choices=("base", "refiner"), default="base")
    export.add_argument("--folder", default="pretrained", help="gets tiny_<part>.safetensors")
    export.add_argument("--note", default="", help="added to the metadata (device, time)")
    return parser


def main() -> None:
    """Parse and run one stage."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    if args.stage == "vae":
        autoencoder.train(args)
    elif args.stage == "latents":
        latents.make_latents(args)
    elif args.stage == "unet":
        unet.train(args)
    elif args.stage == "refiner":
        refiner.train(args)
    else:
        export.export(args)


if __name__ == "__main__":
    main()
