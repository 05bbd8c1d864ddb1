"""Lays out a public set of edits as the rows of a batch: PIE-Bench and MagicBrush.

python -m tools.layout_edits pie_bench COPY EDITS
python -m tools.layout_edits magicbrush COPY EDITS

COPY is a local copy as it is published, which is only read; EDITS a new folder with `edits.jsonl`,
the masks, and for MagicBrush the reference pictures (`--against EDITS/references`).
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sgm.cli.program import start
from sgm.errors import UserError
from sgm.io.files import check_input_file, write_atomically
from sgm.io.imageio import open_picture

logger = logging.getLogger(__name__)
Row = dict[str, str]


def pie_bench(copy: Path, edits: Path) -> Iterator[Row]:
    """PIE-Bench (Ju et al., 2023): `mapping_file.json`, and pictures in `annotation_images`.

    A mask is a list of starts and lengths, counted along the rows of its picture. The published
    evaluation also marks the outermost pixels, against errors of annotation; an edit does not.
    """
    for key, entry in _read(copy / "mapping_file.json").items():
        picture = copy / "annotation_images" / entry["image_path"]
        check_input_file(picture)
        with Image.open(picture) as image:
            width, height = image.size
        marked = np.zeros(height * width, dtype=bool)
        runs = entry["mask"]
        for begin, length in zip(runs[::2], runs[1::2], strict=True):
            marked[begin : begin + length] = True
        yield {
            "init_img": str(picture.absolute()),
            "mask_path": _saved_mask(marked.reshape(height, width), edits, f"{key}.png"),
            "prompt": _plain(entry["editing_prompt"]),
            "picture_prompt": _plain(entry["original_prompt"]),
            "output": f"{key}.png",
        }


def magicbrush(copy: Path, edits: Path) -> Iterator[Row]:
    """MagicBrush (Zhang et al., 2023): `edit_turns.json` and pictures in `images/<id>`. Prompts are
    the captions of `global_descriptions.json` where there are any, else the instructions.

    A mask is a picture that is transparent where it is edited.
    """
    path = copy / "global_descriptions.json"
    captions = _read(path) if path.is_file() else {}
    for turn in _read(copy / "edit_turns.json"):
        number = turn["input"].partition("-")[0]
        folder, texts = copy / "images" / number, captions.get(number, {})
        mask = open_picture(folder / turn["mask"])
        if not mask.has_transparency_data:
            raise UserError(f"Mask {folder / turn['mask']} has no transparency; expected some.")
        alpha = np.asarray(mask.convert("RGBA"))[..., 3]
        reference = edits / "references" / turn["output"]
        reference.parent.mkdir(parents=True, exist_ok=True)
        check_input_file(folder / turn["output"])
        shutil.copyfile(folder / turn["output"], reference)
        yield {
            "init_img": str((folder / turn["input"]).absolute()),
            "mask_path": _saved_mask(alpha < 128, edits, turn["mask"]),
            "prompt": texts.get(turn["output"], turn["instruction"]),
            "picture_prompt": texts.get(turn["input"], ""),
            "output": turn["output"],
        }


LAYOUTS: dict[str, Callable[[Path, Path], Iterator[Row]]] = {
    "pie_bench": pie_bench,
    "magicbrush": magicbrush,
}


def _read(path: Path) -> dict | list:
    """The content of a JSON file."""
    check_input_file(path)
    return json.loads(path.read_text(encoding="utf-8"))


def _plain(prompt: str) -> str:
    """A prompt without the brackets around the words that an edit is about."""
    return prompt.replace("[", "").replace("]", "")


def _saved_mask(marked: np.ndarray, edits: Path, name: str) -> str:
    """Write a mask, bool [H, W], as a picture; its path from the rows' folder."""
    path = edits / "masks" / name
    write_atomically(path, lambda file: Image.fromarray(marked).save(file, format="PNG"))
    return path.relative_to(edits).as_posix()


def main(argv: Sequence[str] | None = None) -> int:
    """Lay out a set; prints the path of the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("layout", choices=sorted(LAYOUTS), help="which set COPY is")
    parser.add_argument("copy", metavar="COPY", type=Path, help="folder of the set")
    parser.add_argument("edits", metavar="EDITS", type=Path, help="folder to make")
    values = parser.parse_args(argv)
    rows = list(LAYOUTS[values.layout](values.copy, values.edits))
    path = values.edits / "edits.jsonl"
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    write_atomically(path, lambda file: file.write(text.encode()))
    logger.info("%d rows.", len(rows))
    print(path)
    return 0


if __name__ == "__main__":
    start("layout_edits", main)
