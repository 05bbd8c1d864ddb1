"""The benchmark of loading, with the tiny network: its checkpoint, its measurements, its goals."""

import copy
import gzip
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import load, load_tasks
from benchmarks.memory import CLEAR
from benchmarks.synthetic import BLOCK, published_entries, write_checkpoint
from sgm.errors import UserError
from sgm.io.convert import Entry
from sgm.io.weights_file import DTYPES
from tests.conftest import ROOT, golden_file

MB = 2**20
linux = pytest.mark.skipif(not CLEAR.exists(), reason="peak memory is read from Linux's /proc")


def test_the_checkpoint_has_the_tensors_of_the_published_file() -> None:
    path = golden_file("checkpoint_sd_xl_base_1.0.json.gz")
    published = json.loads(gzip.decompress(path.read_bytes()))
    expected = {n: (DTYPES[e["dtype"]], tuple(e["shape"])) for n, e in published.items()}
    entries = published_entries(ROOT / "configs" / "original.yaml")
    assert len(entries) == 2515
    assert {entry.name: (entry.dtype, entry.shape) for entry in entries} == expected


def test_random_weights_suit_a_network(tmp_path: Path) -> None:
    entries = [
        Entry("ids", torch.int64, (1, 77)),
        Entry("linear.weight", torch.float16, (800, BLOCK // 800 + 500)),  # more than one block
        Entry("norm.weight", torch.float16, (1000,)),
        Entry("norm.bias", torch.float16, (1000,)),
        Entry("scale", torch.float16, ()),
    ]
    path = tmp_path / "random.safetensors"
    size = write_checkpoint(path, entries)
    assert path.stat().st_size == size
    found = load_file(path)
    assert {name: tuple(t.shape) for name, t in found.items()} == {e.name: e.shape for e in entries}
    assert torch.equal(found["ids"], torch.arange(77)[None])
    inputs = entries[1].shape[1]
    assert found["linear.weight"].float().std().item() == pytest.approx(inputs**-0.5, rel=1e-2)
    assert len(found["linear.weight"].unique(dim=0)) == 800  # no row comes twice
    assert found["norm.weight"].float().mean().item() == pytest.approx(1, abs=0.01)
    assert found["norm.bias"].abs().max() < 0.2
    again = tmp_path / "again.safetensors"
    write_checkpoint(again, entries)
    assert again.read_bytes() == path.read_bytes()


# Run in a process of its own, as the benchmark's tasks are: what other tests left behind may be
# given back while a `Watch` looks, and hides as much of the peak.
PEAKS = """
import json, sys
from pathlib import Path
import torch
from benchmarks.memory import Watch
from sgm.io.weights_file import open_weights
with Watch() as own:
    block = torch.ones(int(sys.argv[2]), dtype=torch.uint8)
    del block
with Watch() as mapped, open_weights(Path(sys.argv[1])) as file:
    assert file.get_tensor("x").max() == 0  # a sum would widen it first
print(json.dumps([own.figures(), mapped.figures()]))
"""


@linux
def test_peaks_are_apart_for_own_memory_and_mapped_files(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"x": torch.zeros(64 * MB, dtype=torch.uint8)}, path)
    command = [sys.executable, "-c", PEAKS, str(path), str(64 * MB)]
    own, mapped = json.loads(subprocess.check_output(command, cwd=ROOT))
    # The allocator may hand out pages that were there before, hence from 56 MB.
    for watch in (own, mapped):
        assert 56 * MB <= watch["peak_resident"] < 80 * MB
        assert watch["peak_process"] > watch["peak_resident"]
    assert 56 * MB <= own["peak_anonymous"] < 80 * MB and mapped["peak_anonymous"] < 16 * MB


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the program writes, once for all tests."""
    if not CLEAR.exists():
        pytest.skip("peak memory is read from Linux's /proc")
    folder = tmp_path_factory.mktemp("load")
    path = folder / "new" / "load.json"
    argv = ["--quick", "--repeats", "1", "--folder", str(folder), "--output", str(path)]
    assert load.main(argv) == 0
    assert [item.name for item in folder.iterdir()] == ["new"]  # the checkpoints are gone
    return json.loads(path.read_text())


def test_the_program_measures_every_part(figures: dict[str, object]) -> None:
    assert list(figures["load"]["precisions"]) == ["fp16", "bf16", "fp32"]
    weights = [row["weights"] for row in figures["load"]["precisions"].values()]
    assert weights[0] == weights[1] and weights[2] == 2 * weights[0]
    assert figures["convert"]["bytes"] > weights[2]
    rows = figures["run"]["stages"]
    assert [(row["file"], row["stage"]) for row in rows] == [
        (file, stage) for file in ("published", "converted") for stage in load.STAGES
    ]
    assert all(row["finite"] and row["deviation"] > 0 for row in rows)
    assert figures["run"]["equal_weights"] and figures["run"]["equal_results"]
    for key in ("machine", "versions", "checkpoint", "goals"):
        assert key in figures
    assert all("commit" in figures[part] for part in load.PARTS)


def test_a_part_alone_keeps_the_others(figures: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "load.json"
    path.write_text(json.dumps(figures | {"convert": {"above_largest": 2e9}}))
    argv = ["--quick", "--folder", str(tmp_path), "--output", str(path), "--parts", "convert"]
    assert load.main(argv) == 0
    again = json.loads(path.read_text())
    assert again["load"] == figures["load"] and again["run"] == figures["run"]
    assert again["convert"]["bytes"] == figures["convert"]["bytes"]
    assert again["goals"] == load.goals(again) and len(again["goals"]) == 5
    path.write_text('{"benchmark": "another"}')
    with pytest.raises(UserError, match="no figures to keep"):
        load.main(argv)
    path.unlink()
    assert load.main(argv) == 0 and len(json.loads(path.read_text())["goals"]) == 1


def test_equal_means_every_bit() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert load_tasks.fingerprint([x]) == load_tasks.fingerprint(
        [x.to(memory_format=torch.channels_last)]
    )
    y = x.clone()
    y[0, 0, 0, 0] = torch.nextafter(y[0, 0, 0, 0], torch.tensor(9.0))
    others = ([y], [x.half()], [x.reshape(2, 3, 16)], [x, x])
    assert load_tasks.fingerprint([x]) not in [load_tasks.fingerprint(other) for other in others]


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("load: resident", lambda f: f["load"]["precisions"]["fp32"].update(of_weights=1.2)),
        ("load: at most", lambda f: f["load"]["cold"].update(of_read=2.1)),
        ("convert", lambda f: f["convert"].update(above_largest=2e9)),
        ("run: finite", lambda f: f["run"]["stages"][0].update(finite=False)),
        ("run: finite", lambda f: f["run"]["stages"][-1].update(peak_process=25e9)),
        ("run: equal", lambda f: f["run"].update(equal_results=False)),
        ("run: equal", lambda f: f["run"].update(equal_weights=False)),
    ],
)
def test_a_goal_can_be_missed(part: str, change: object, figures: dict[str, object]) -> None:
    changed = copy.deepcopy(figures) | {"quick": False}
    for row in changed["load"]["precisions"].values():
        row["of_weights"] = 1.0
    changed["load"]["cold"]["of_read"] = 1.0
    assert set(load.goals(changed).values()) == {True}
    change(changed)
    missed = [name for name, met in load.goals(changed).items() if not met]
    assert len(missed) == 1 and missed[0].startswith(part)
    changed["goals"] = load.goals(changed)
    assert f"MISSED: {missed[0]}" in load.tables(changed)


def test_a_measurement_of_its_own_process(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    found = load.subprocess_measure("env")("read", file=str(path), cold=True)
    assert list(found) == ["seconds"] and found["seconds"] > 0
    with pytest.raises(UserError, match=r"read .* ended with 1"):
        load.subprocess_measure("false")("read", file=str(path), cold=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--repeats", "0"], "at least 1"),
        (["--latent", "64"], "like 64x128, not 64"),
        (["--latent", "8x8", "12x8"], "not 12x8"),
        (["--folder", "absent"], "is not a folder"),
    ],
)
def test_options_out_of_range(words: list[str], expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=expected):
        load.main([*words, "--quick", "--output", str(tmp_path / "load.json")])


def test_too_little_room_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(100, 90, 10))
    output = tmp_path / "load.json"
    with pytest.raises(UserError, match="name another --folder"):
        load.main(["--quick", "--folder", str(tmp_path), "--output", str(output)])
    assert list(tmp_path.iterdir()) == []
