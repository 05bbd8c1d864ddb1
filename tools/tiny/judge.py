"""The judge: which object stands in a region of a picture, as a person would say at a glance.

A small network that is trained on rendered scenes, and on broken objects, which are "nothing": an
object that ends halfway, has two fronts or is a mere blur does not count. One that is a little
soft or crooked does, stands a little beside the region, or has a haze around it, as edits do: such
renders are among those that it is trained on. `python -m tools.tiny.train judge` makes
`judge.safetensors`; its accuracy on renders that it has not seen stands in the file's metadata.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn

from tools.tiny.captions import NOUNS
from tools.tiny.checkpoints import read, write
from tools.tiny.scenes import SIZE, object_box, render, sample_scene, without

logger = logging.getLogger(__name__)

Box = tuple[int, int, int, int]  # top, left, bottom, right in pixels, ends exclusive

WEIGHTS = Path(__file__).with_name("judge.safetensors")
NOTHING = len(NOUNS)  # the class after those of the objects
SIDE = 64  # pixels of what it sees
CONTEXT = 1.5  # times the region's longer side
REACH = 16  # pixels: latents are sampled that far around a mask, so an object may stand there too
BREAKS = ("doubled", "cut above", "cut beside", "blurred")
BEND = 0.08  # of half a view, the deviation of the strongest bending
SOFT = 2.0  # pixels of a view, the widest blur
TRAIN_SEED, TEST_SEED = 40_000_000, 50_000_000  # apart from all seeds of the tiny model


class Judge(nn.Module):
    """Pictures of regions [B, 4, 64, 64] (RGB in [-1, 1], and 1 inside of the region) to logits
    [B, 8]: the objects in the order of `NOUNS`, then nothing."""

    def __init__(self) -> None:
        super().__init__()
        widths = (4, 16, 32, 64, 96)
        layers: list[nn.Module] = []
        for last, width in pairwise(widths):
            layers += [nn.Conv2d(last, width, 3, 2, 1), nn.GroupNorm(8, width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, 1, 1), nn.GroupNorm(8, width), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classes = nn.Linear(widths[-1] * (SIDE // 16) ** 2, NOTHING + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.features(x).flatten(1))


def view(picture: Image.Image, box: Box) -> Tensor:
    """What the judge sees of a region: a square around it, [4, 64, 64]."""
    top, left, bottom, right = box
    half = CONTEXT * max(bottom - top, right - left) / 2
    y, x = (top + bottom) / 2, (left + right) / 2
    margin = int(2 * half) + 1  # beyond the picture its edge goes on
    pixels = np.pad(np.asarray(picture), ((margin,) * 2, (margin,) * 2, (0, 0)), mode="edge")
    square = (x - half + margin, y - half + margin, x + half + margin, y + half + margin)
    seen = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX, box=square)
    inside = np.zeros((SIDE, SIDE), np.float32)
    rows, columns = (
        [round((n - centre + half) * SIDE / (2 * half)) for n in ends]
        for ends, centre in (((top, bottom), y), ((left, right), x))
    )
    inside[rows[0] : rows[1], columns[0] : columns[1]] = 1
    colours = torch.from_numpy(np.array(seen)).permute(2, 0, 1).float() / 127.5 - 1
    return torch.cat([colours, torch.from_numpy(inside)[None]])


def marked(box: Box, rng: np.random.Generator) -> Box:
    """A region in which somebody asked for an object that has this box: what is painted into a
    region need not fill it, and may stand over its border."""
    share = rng.uniform(-0.2, 0.45, 4)
    height, width = box[2] - box[0], box[3] - box[1]
    return enlarged(box, share * (height, width, height, width), SIZE)


def enlarged(box: Box, by: Sequence[float], size: tuple[int, int]) -> Box:
    """A box with as many whole pixels more at each of its sides, or fewer below 0, within a picture
    of (height, width)."""
    (top, left, bottom, right), grown = box, [int(n) for n in by]
    return (
        max(0, top - grown[0]),
        max(0, left - grown[1]),
        min(size[0], bottom + grown[2]),
        min(size[1], right + grown[3]),
    )


def broken(
    with_it: np.ndarray, without_it: np.ndarray, name: str, box: Box, rng: np.random.Generator
) -> np.ndarray:
    """The picture, uint8 [H, W, 3], with what a poor model makes of the object."""
    top, left, bottom, right = box
    part, empty = with_it[top:bottom, left:right], without_it[top:bottom, left:right]
    h, w = part.shape[:2]
    # A sun is round, and only a horse has a front and a back that matter.
    kind = str(rng.choice(["blurred"] if name == "sun" else list(BREAKS)))
    if kind == "doubled" and name == "horse":
        facing = part if rng.random() < 0.5 else part[:, ::-1]
        half = facing[:, w // 2 :]
        part = np.concatenate([half[:, ::-1], half], axis=1)[:, :w]
    elif kind in ("cut above", "doubled"):
        cut = int(h * rng.uniform(0.45, 0.7))
        part = np.concatenate([empty[:cut], part[cut:]])
    elif kind == "cut beside":
        cut = int(w * rng.uniform(0.45, 0.6))
        part = np.concatenate([empty[:, :cut], part[:, cut:]], axis=1)
    else:
        part = np.asarray(blurred(Image.fromarray(part), 0.25 * min(h, w) + 3))
    result = with_it.copy()
    result[top:bottom, left : left + part.shape[1]] = part
    return result


def blurred(picture: Image.Image, radius: float) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(radius))


def hazed(
    picture: Image.Image, empty: Image.Image, box: Box, rng: np.random.Generator
) -> Image.Image:
    """A picture as an edit may leave a region of it: softer, of other colours, and with a little of
    what was there before (`empty`) shining through. So the border of a region says nothing of what
    is in it."""
    pixels = np.asarray(picture).astype(np.float32)
    changed = np.asarray(blurred(picture, float(rng.uniform(0, 3)))).astype(np.float32)
    changed += (np.asarray(empty) - changed) * rng.uniform(0, 0.3) + rng.normal(0, 6, 3)
    inside = np.zeros(pixels.shape[:2], np.uint8)
    inside[box[0] : box[2], box[1] : box[3]] = 255
    weight = np.asarray(blurred(Image.fromarray(inside), float(rng.uniform(0, 4))))[..., None] / 255
    return Image.fromarray((pixels + (changed - pixels) * weight).clip(0, 255).astype(np.uint8))


def examples(seed: int) -> list[tuple[Tensor, int]]:
    """Views of one scene and their classes: an object, the same place without it, and it broken."""
    rng = np.random.default_rng([17, seed])
    name = NOUNS[seed % len(NOUNS)]
    while True:
        scene = sample_scene(rng)
        found = [index for index, obj in enumerate(scene.objects) if obj.name == name]
        if found:
            break
    index = found[0]
    box = object_box(scene.objects[index], *SIZE)
    picture, rest = render(scene, *SIZE), without(scene, index)
    empty = render(rest, *SIZE)
    made = broken(np.asarray(picture), np.asarray(empty), name, box, rng)
    seen = [(picture, NOUNS.index(name)), (Image.fromarray(made), NOTHING)]
    if not any(overlap(object_box(obj, *SIZE), box) > 0.1 for obj in rest.objects):
        seen.append((empty, NOTHING))
    views = []
    for image, label in seen:
        region = marked(box, rng)
        if rng.random() < 0.7:
            image = hazed(image, empty, region, rng)
        views.append((view(image, region), label))
    return views


def overlap(a: Box, b: Box) -> float:
    """The share of b that a covers."""
    height = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    width = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return height * width / ((b[2] - b[0]) * (b[3] - b[1]))


def collect(first: int, scenes: int) -> tuple[Tensor, Tensor]:
    """Views uint8-like float16 [N, 4, 64, 64] and classes [N] of `scenes` scenes."""
    found = [example for seed in range(first, first + scenes) for example in examples(seed)]
    views = torch.stack([seen for seen, _ in found]).half()
    return views, torch.tensor([label for _, label in found])


def varied(views: Tensor) -> Tensor:
    """Views a little crooked and soft, with other colours and brightness, some mirrored, all with a
    little noise: as those of a small network look."""
    count = len(views)
    seen = softened(bent(views[:, :3]))
    gain = 1 + 0.15 * torch.randn(count, 1, 1, 1)
    shift = 0.1 * torch.randn(count, 3, 1, 1)
    colours = seen * gain + shift + 0.04 * torch.randn(count, 3, SIDE, SIDE)
    mixed = torch.cat([colours, views[:, 3:]], dim=1)
    return torch.where(torch.rand(count, 1, 1, 1) < 0.5, mixed, mixed.flip(3))


def bent(pictures: Tensor) -> Tensor:
    """Pictures [N, 3, 64, 64] whose pixels are moved smoothly, each by its own field."""
    size, count = int(torch.randint(3, 7, ())), len(pictures)
    field = BEND * torch.rand(count, 1, 1, 1) * torch.randn(count, 2, size, size)
    field = F.interpolate(field, (SIDE, SIDE), mode="bicubic", align_corners=True)
    still = torch.eye(2, 3).expand(count, 2, 3)
    grid = F.affine_grid(still, (count, 3, SIDE, SIDE), align_corners=False)
    moved = grid + field.permute(0, 2, 3, 1)
    return F.grid_sample(pictures, moved, padding_mode="reflection", align_corners=False)


def softened(pictures: Tensor) -> Tensor:
    """Pictures [N, 3, 64, 64] with a blur of up to `SOFT` pixels, the same for all of them."""
    sigma, reach = max(0.05, SOFT * float(torch.rand(()))), int(3 * SOFT)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    for _ in range(2):  # along the rows, then along the columns
        padded = F.pad(pictures, (reach, reach, 0, 0), mode="replicate")
        pictures = F.conv2d(padded, kernel, groups=3).transpose(2, 3)
    return pictures


@torch.inference_mode()
def accuracy(judge: Judge, views: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of right answers on views: of all, and by class."""
    said = torch.cat([judge(part.float()).argmax(1) for part in views.split(256)])
    right = (said == labels).float()
    result = {"all": right.mean().item()}
    for index, name in enumerate((*NOUNS, "nothing")):
        result[name] = right[labels == index].mean().item()
    return result


def train(scenes: int, epochs: int, seed: int = 0) -> None:
    """Train a judge and write it, with its accuracy on scenes that it has not seen."""
    torch.manual_seed(seed)
    views, labels = collect(TRAIN_SEED, scenes)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    size, step = 64, 0
    total = epochs * (len(views) // size)
    for epoch in range(epochs):
        for rows in torch.randperm(len(views)).split(size)[: len(views) // size]:
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * (1 - step / total)
            loss = F.cross_entropy(judge(varied(views[rows].float())), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
        logger.info("judge epoch %d of %d, loss %.3f", epoch + 1, epochs, loss.item())
    shares = accuracy(judge.eval(), *collect(TEST_SEED, 700))
    logger.info("judge, accuracy on held-out renders: %s", shares)
    metadata = {"made_by": "python -m tools.tiny.train judge", "scenes": str(scenes)}
    metadata |= {f"held_out_accuracy_{name}": f"{value:.3f}" for name, value in shares.items()}
    write(WEIGHTS, {k: v.half() for k, v in judge.state_dict().items()}, metadata)


def load_judge() -> Judge:
    """The shipped judge."""
    judge = Judge()
    judge.load_state_dict({k: v.float() for k, v in read(WEIGHTS)[0].items()})
    return judge.eval().requires_grad_(False)


@torch.inference_mode()
def object_in(judge: Judge, picture: Image.Image, box: Box) -> str:
    """The name of the object in and around a region of a picture (RGB), or "nothing"."""
    reached = enlarged(box, [REACH] * 4, (picture.height, picture.width))
    answer = int(judge(view(picture, reached)[None]).argmax())
    return (*NOUNS, "nothing")[answer]
