"""What worker processes of the training make: the same as one process, whenever they are ended."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sgm.config import instantiate_from_config, load_config
from sgm.modules.encoders.tokenizer import tokenize
from tests.conftest import ROOT
from tests.tools.tiny_shards import write_random_shard
from tools.tiny import autoencoder, latents, speed, train, unet, workers
from tools.tiny.checkpoints import Ema, TrainingState, read, write
from tools.tiny.course import adam, descend
from tools.tiny.family import LAYOUTS
from tools.tiny.latents import CONFIG, LatentScenes
from tools.tiny.masks import WHOLE, drawn_masks
from tools.tiny.practice import GRID, practise
from tools.tiny.unet import (
    CLOSE,
    HALF,
    KNOWN_WEIGHT,
    REGION_WEIGHT,
    UNPADDED,
    Batches,
    drawn_rows,
)

SCENES = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LatentScenes:
    """Random latents of scenes in two files, between which others are lacking."""
    folder = tmp_path_factory.mktemp("work") / "latents"
    for first in (0, 2 * SCENES):
        write_random_shard(folder / f"{first:06d}.safetensors", SCENES, seed=first)
    return LatentScenes(folder)


@pytest.fixture(scope="module")
def pool():
    pool = workers.start(2)
    yield pool
    workers.abandon(pool)


def test_batches_of_workers_are_those_of_this_process(data: LatentScenes, pool) -> None:
    """In their order, with the size of the part of the course, and from any step on."""
    ahead, here = Batches(data, 2, pool), Batches(data, 2)
    for step in range(7, 13):
        made, asked = ahead(step, 0.0), here(step, 0.0)
        assert made.z.shape[2:] == (HALF if step % 2 else CLOSE)
        for name in ("z", "absence", "weights", "tokens", "kept", "concat"):
            assert torch.equal(getattr(made, name), getattr(asked, name)), name
        for name, value in made.sizes.items():
            assert torch.equal(value, asked.sizes[name])
    ahead, here = (autoencoder.DecoderBatches(data, 1, one) for one in (pool, None))
    for step in range(3):
        torch.manual_seed(step)
        made = ahead(step, 0.0)
        torch.manual_seed(step)
        assert all(map(torch.equal, made, here(step, 0.0)))


def test_signals_to_the_workers_do_not_stop_the_training(pool) -> None:
    """Those of a terminal or of `timeout` reach them too; the training ends after its step."""
    for number in (signal.SIGTERM, signal.SIGINT):
        assert pool.submit(signal.raise_signal, number).result() is None


def test_a_batch_shows_the_scenes_that_its_captions_describe(data: LatentScenes) -> None:
    step, size = 4, CLOSE
    batch, rng = Batches(data)(step, 0.0), np.random.default_rng([17, step])
    rows = drawn_rows(step, data.seeds, len(batch.z))
    rng.random(len(rows))
    masks = drawn_masks(rng, len(rows))
    assert set(masks) >= {WHOLE, 0, 1}
    tensors = [read(path)[0] for path in latents.shards(data.folder)]
    for index, row in enumerate(rows):
        part, place = divmod(row, SCENES)
        seed, mask = int(2 * SCENES * part + place), int(masks[index])
        seen = practise(seed, size, rng, None if mask < 0 else mask)
        top, left, bottom, right = seen.window
        there = (..., slice(top, bottom), slice(left, right))
        expected = tensors[part]["latents"][place][there].float()
        assert torch.equal(batch.z[index], expected)
        masked = torch.full((1, *size), float(mask == WHOLE))
        beside = tensors[0]["grey"][there] if mask == WHOLE else expected
        if mask >= 0:
            masked = tensors[part]["masks"][place, mask][there][None].float()
            beside = tensors[part]["masked"][place, mask][there]
        assert torch.equal(batch.concat[index], torch.cat([masked, beside.float()]))
        assert batch.sizes["crop_coords_top_left"][index].tolist() == [8 * top, 8 * left]
        weights = torch.ones(1, *size)
        top, left, bottom, right = seen.region
        weights[:, top:bottom, left:right] = REGION_WEIGHT
        weights = torch.where(masked > 0, weights, KNOWN_WEIGHT * weights)
        assert not batch.absence[index][:, masked[0] == 0].any()
        torch.testing.assert_close(batch.weights[index], weights / weights.mean())
        assert torch.equal(batch.tokens[index], tokenize([seen.text], UNPADDED)[0])
    assert batch.sizes["original_size_as_tuple"].unique().tolist() == [1024]
    assert batch.sizes["target_size_as_tuple"].unique(dim=0).tolist() == [[192, 192]]
    assert batch.z.is_contiguous(memory_format=torch.channels_last)


def test_tokens_are_told_as_their_captions_are() -> None:
    conditioner = instantiate_from_config(load_config(CONFIG)["model"]).conditioner
    texts = ["a horse on a grassland", ""]
    numbers = {key: torch.ones(2, 2) for key in conditioner.input_keys if key != "txt"}
    told = conditioner({"txt": texts} | numbers)
    same = conditioner({"txt": tokenize(texts, UNPADDED)} | numbers)
    assert all(torch.equal(told[name], same[name]) for name in told)


class Odd(nn.Module):
    """A layer whose gradient is laid out otherwise than its parameter, along an axis of one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 1, 100))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[10, 2, 100] -> [2, 10, 1]"""
        return torch.bmm(x.transpose(0, 1), self.weight.transpose(1, 2))


def test_moments_and_gradients_lie_as_their_parameters_do(tmp_path: Path) -> None:
    """The fused optimiser of a GPU refuses others."""
    convolutions = nn.Sequential(nn.Conv2d(4, 6, 1), nn.Conv2d(6, 1, 3))
    module = nn.ModuleList([convolutions.to(memory_format=torch.channels_last), Odd()])
    parameters = list(module.parameters())
    x, y = torch.randn(2, 4, 5, 5), torch.randn(10, 2, 100)
    module[1](y).sum().backward()
    assert module[1].weight.grad.stride() != module[1].weight.stride()
    for _ in range(2):  # the second time as it was saved
        optimizer = adam(parameters, 0.1)
        state = TrainingState(tmp_path / "s.safetensors", module, optimizer, Ema(module, 0.9))
        state.resume()
        for _ in range(2):
            loss = module[0](x).square().mean() + module[1](y).square().mean()
            descend(loss, parameters, optimizer)
        for parameter in parameters:
            moments = optimizer.state[parameter]
            for tensor in (parameter.grad, moments["exp_avg"], moments["exp_avg_sq"]):
                assert tensor is not None and tensor.stride() == parameter.stride()
        state.save()


def latents_command(work: Path, scenes: int) -> list[str]:
    words = f"--minutes 1 --workers 2 --scenes {scenes} --device cpu --work {work}".split()
    start = ["--start", str(work / "start.safetensors")]
    program = "from tools.tiny import latents, train; latents.SHARD = 3; train.main()"
    return [sys.executable, "-c", program, "latents", *words, *start]


def test_latents_made_by_workers_that_are_killed_and_go_on(tmp_path: Path) -> None:
    """Each file is whole, and the same as one process makes it, whatever was killed when."""
    torch.manual_seed(0)
    vae = autoencoder.build(str(ROOT / CONFIG)).eval()
    tensors = {f"first_stage_model.{k}": v for k, v in vae.state_dict().items()}
    spent = {"autoencoder_steps": "1", "autoencoder_seconds": "1"}
    write(tmp_path / "start.safetensors", tensors, spent)
    folder = tmp_path / "latents"
    first = subprocess.Popen(latents_command(tmp_path, 60), cwd=ROOT, start_new_session=True)
    latest = time.monotonic() + 60
    while not latents.shards(folder) and time.monotonic() < latest:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGTERM)  # as `timeout` does: the workers get it too
    assert first.wait(10) == -signal.SIGTERM
    time.sleep(1)  # the workers see the end of their parent
    made = {path: path.read_bytes() for path in latents.shards(folder)}
    assert made and len(made) < 20
    time.sleep(4)
    assert latents.shards(folder) == list(made)
    kept, *others = made
    for path in others:
        path.unlink()
    written = kept.stat().st_mtime_ns
    subprocess.run(latents_command(tmp_path, 9), cwd=ROOT, check=True, timeout=120)
    assert [path.stem for path in latents.shards(folder)] == ["000000", "000003", "000006"]
    assert kept.stat().st_mtime_ns == written
    for path in latents.shards(folder):
        assert path.read_bytes() == made.get(path, path.read_bytes())
        latents.make_shard(tmp_path / path.name, vae, 3)
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_the_speed_of_a_device_is_said(data: LatentScenes, monkeypatch, caplog) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(speed, "WARM", 0)
    monkeypatch.setattr(speed, "MEASURED", 1)
    monkeypatch.setattr(speed, "AHEAD", 1)
    monkeypatch.setattr(unet, "BATCH", {CLOSE: 1, HALF: 1, GRID: 1})
    monkeypatch.setattr(train.logging, "basicConfig", lambda **_: None)
    caplog.set_level(logging.INFO)
    base = str(ROOT / "pretrained/tiny_base.safetensors")
    if not Path(base).exists():
        pytest.skip("the shipped weights are not here")
    work = str(data.folder.parent)
    argv = ["train", "speed", "--work", work, "--start", base, "--device", "cpu", "--factor", "2"]
    monkeypatch.setattr(sys, "argv", argv)
    train.main()
    assert [record.args[:3] for record in caplog.records] == [
        (*size, 2) for _ in LAYOUTS for size in (CLOSE, HALF, GRID)
    ]
