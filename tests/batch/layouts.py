"""The published layouts of two public sets of edits, in miniature."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 64, 128


def _picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def make_pie_bench(folder: Path) -> None:
    """Two edits: of a box of 10 x 30 pixels, and of the last 5 pixels, by a run that goes on."""
    box = [number for row in range(20, 30) for number in (row * WIDTH + 50, 30)]
    runs = {"000000000000": box, "111000000003": [HEIGHT * WIDTH - 5, 50]}
    entries = {}
    for number, (key, mask) in enumerate(runs.items()):
        image = f"0_random_140/{key}.jpg"
        _picture(folder / "annotation_images" / image, number)
        entries[key] = {
            "image_path": image,
            "original_prompt": "a slanted [mountain] bicycle",
            "editing_prompt": "a slanted [rusty] mountain bicycle",
            "editing_instruction": "make it rusty",
            "editing_type_id": "0",
            "blended_word": "bicycle bicycle",
            "mask": mask,
        }
    (folder / "mapping_file.json").write_text(json.dumps(entries))


def make_magicbrush(folder: Path, captions: bool = True) -> None:
    """Two turns of one picture; masks are transparent where it is edited."""
    names = ["7-input.png", "7-output1.png", "7-output2.png"]
    for number, name in enumerate(names):
        _picture(folder / "images" / "7" / name, number)
    turns = []
    for turn in (1, 2):
        mask = np.full((HEIGHT, WIDTH, 4), 255, dtype=np.uint8)
        mask[20:40, 30 * turn : 30 * turn + 20, 3] = 0
        Image.fromarray(mask).save(folder / "images" / "7" / f"7-mask{turn}.png")
        turns.append(
            {
                "input": names[turn - 1],
                "mask": f"7-mask{turn}.png",
                "output": names[turn],
                "instruction": f"do the {turn}.",
            }
        )
    (folder / "edit_turns.json").write_text(json.dumps(turns))
    if captions:
        texts = {"7": {name: f"caption of {name}" for name in names}}
        (folder / "global_descriptions.json").write_text(json.dumps(texts))
