"""The program `python -m sgm.app`, also `sdxl-sige app` and `make app`."""

import argparse
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sgm.app.options import read_options
from sgm.cli.program import start
from sgm.errors import UserError
from sgm.io.files import unfinished

if TYPE_CHECKING:
    from sgm.app.studio import Studio

logger = logging.getLogger("sgm.app")

MAX_FILE = 64 * 2**20  # bytes of an upload
SHARE = 0.5  # of the free memory, for recordings


def main(argv: Sequence[str] | None = None) -> int:
    """Load the model and serve the page until the program is stopped.

    Args:
        argv: words after the program's name; None takes those of the process.

    Raises:
        UserError: bad options or files, no gradio, or a port that is taken; one sentence.
    """
    values = read_options(sys.argv[1:] if argv is None else argv)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("The page needs gradio; run `pip install -r requirements-app.txt`.")
    logger.info("Loading the %s model ...", values.model)
    studio = load_studio(values)
    # Uploads and results lie in a folder of this process alone, and go with it.
    folder = tempfile.mkdtemp(prefix="sdxl-sige-")
    with unfinished(lambda: shutil.rmtree(folder, ignore_errors=True)):
        os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = folder
        serve(studio, values)
    return 0


def load_studio(values: argparse.Namespace) -> "Studio":
    """The model of a command line, ready for a page.

    Raises:
        UserError: a file is missing or does not fit.
    """
    # Imported here, so that bad options are refused at once.
    import sgm
    from sgm.app.studio import Studio
    from sgm.inference.choose_store import free_memory
    from sgm.specs import MODELS, RecordingSettings, SamplingParams
    from sgm.words import RecordingMemory

    loaded = sgm.load(
        values.model,
        checkpoint=values.checkpoint,
        vae=values.vae,
        loras=dict(values.lora),
        prediction=values.prediction,
        device=values.device,
        precision=values.precision,
        weight_path=values.weight_path,
        config_path=values.config_path,
        progress=True,
    ).pipeline
    kept = RecordingSettings(precision=values.recording_precision)
    pipeline = loaded.with_recipe(loaded.recipe.with_recordings(kept))
    limit = values.memory and int(values.memory * 1e9)
    if limit is None:
        limit = int(SHARE * free_memory(RecordingMemory.DEVICE, pipeline.networks.device, None))
    own = {"scale": values.scale, "sampler": values.sampler, "spacing": values.spacing}
    params = SamplingParams("", **own, weighted=True)
    height, width = MODELS[values.model].trained_size
    return Studio(pipeline, params, values.model, limit, values.max_pixels or height * width)


def serve(studio: "Studio", values: argparse.Namespace) -> None:
    """Serve the page until the program is stopped.

    Raises:
        UserError: the port is taken.
    """
    from sgm.app.page import Page, launch

    logging.getLogger("httpx").setLevel(logging.WARNING)  # which tells of every request
    address = launch(Page(studio, values.steps), values.port, values.share, MAX_FILE)
    logger.info("The page is at %s (Ctrl-C ends it).", address)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    start("app", main)
