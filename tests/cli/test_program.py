"""How programs end when they are stopped, the disk is full, or the memory too little."""

import ast
import errno
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgm.cli import main as cli
from sgm.cli import report
from sgm.cli.program import memory_scope, run_program
from sgm.errors import UserError
from sgm.io import files, imageio
from sgm.words import RunType
from tests.conftest import ROOT
from tests.test_house import source_files

ENOUGH = 120  # seconds after which a process counts as stuck


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "init.png")
    np.save(folder / "mask.npy", np.eye(64, 128, dtype=bool))
    return folder


# --- stopped -----------------------------------------------------------------------------------

RUN = ["run.py", "--model", "tiny", "--prompt", "x", "--device", "cpu", "--steps", "1000"]
RUN += ["--run_type", "sige", "--preset", "fast", "--init_img", "init.png"]
EDIT = [*RUN, "--mask_path", "mask.npy", "--output_path", "out/a.png", "--json", "out/a.json"]
# A conversion that rests after its first tensor, with a part of the file written.
SLOW = """
import sys, time
import convert_weights
from sgm.io import convert
from sgm.cli.program import start

def slowly(*arguments):
    for number, entry in enumerate(converted(*arguments)):
        if number == 1:
            sys.stderr.write("halfway")
            sys.stderr.flush()
            time.sleep(1000)
        yield entry

converted, convert._converted = convert._converted, slowly
start("convert_weights.py", convert_weights.main)
"""
# The same with any file, without the imports of a real program.
WRITING = """
import sys, time
from pathlib import Path
from sgm.io import files
from sgm.cli.program import start

def write(file):
    file.write(b"half")
    file.flush()
    sys.stderr.write("halfway")
    sys.stderr.flush()
    time.sleep(1000)

start("writer", lambda: files.write_atomically(Path("out/a.png"), write))
"""
CONVERT = ["-c", SLOW, str(ROOT / "pretrained" / "tiny_base.safetensors"), "out/a.safetensors"]
# What runs, a pattern of what it has said on stderr when it is stopped, and by which signal.
STOPPED = {
    "importing": (["-X", "importtime", *EDIT], r"\| +torch\.", signal.SIGINT),
    "sampling": (EDIT, r"sampling: ", signal.SIGINT),
    "recording": ([*RUN, "--refresh", "1", "--record", "out"], r" [1-9]\d*/1000", signal.SIGINT),
    "converting": (CONVERT, "halfway", signal.SIGINT),
    "writing": (["-c", WRITING], "halfway", signal.SIGINT),
    "terminated": (["-c", WRITING], "halfway", signal.SIGTERM),
}


@pytest.fixture(scope="module")
def stopped(folder: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """All of them at once, each in a folder of its own; as starting takes most of the time."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    running = {}
    for name, (words, _, _) in STOPPED.items():
        own = folder / name
        own.mkdir()
        for file in ("init.png", "mask.npy"):
            (own / file).write_bytes((folder / file).read_bytes())
        given = [str(ROOT / word) if word == "run.py" else word for word in words]
        running[name] = subprocess.Popen(
            [sys.executable, *given],
            cwd=own,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    yield running
    for process in running.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", STOPPED)
def test_a_stopped_program_leaves_nothing(
    name: str, stopped: dict[str, subprocess.Popen[bytes]], folder: Path
) -> None:
    _, moment, number = STOPPED[name]
    process = stopped[name]
    assert process.stderr is not None
    said = b""
    while not re.search(moment, said.decode(errors="replace")):
        more = os.read(process.stderr.fileno(), 4096)
        assert more, said.decode()[-2000:]
        said += more
    process.send_signal(number)
    out, err = process.communicate(timeout=ENOUGH)
    assert process.returncode == 128 + number and not out
    assert err.decode().endswith(": interrupted\n") and "Traceback" not in err.decode()
    left = {path.relative_to(folder / name).as_posix() for path in (folder / name).rglob("*")}
    assert left - {"out"} == {"init.png", "mask.npy"}  # `out` was made before it was written in


def test_every_program_starts_by_the_seam() -> None:
    """All but the training of the tiny model, whose checkpoints are there to be interrupted."""
    for path in source_files():
        text = path.read_text(encoding="utf-8")
        if 'if __name__ == "__main__"' in text and path.name != "train.py":
            last = ast.parse(text).body[-1]
            assert isinstance(last, ast.If) and "start('" in ast.unparse(last), path


def test_what_is_unfinished_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "part"
    with files.unfinished(path.unlink):
        path.touch()
        files.remove_unfinished()
        assert not path.exists()
        path.touch()
    assert path.exists()
    with pytest.raises(KeyboardInterrupt), files.unfinished(path.unlink):
        raise KeyboardInterrupt
    assert not path.exists()
    files.remove_unfinished()  # of nothing


# --- full disks --------------------------------------------------------------------------------


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system's limit on the size of a file stands for a disk that fills up."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def last_words(main: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """What a program that is refused something says at last."""
    assert run_program("p", lambda: main() and 0) == 2
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert not out and last.startswith("p: ") and last.endswith(".") and last.count(". ") == 0
    return last


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "bmp", "tif", "json"])
def test_a_file_that_outgrows_the_disk(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"before")
    noise = Image.effect_noise((256, 256), 80).convert("RGB")
    with largest_file(10_000):
        if kind == "json":
            figures = {str(number): 0 for number in range(2000)}
            line = last_words(lambda: report.publish(figures, "", str(path)), capsys)
        else:
            line = last_words(lambda: imageio.save_picture(noise, path), capsys)
    assert f"{path} cannot be written: " in line
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_a_recording_that_outgrows_the_disk(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("recording.json", "notes.txt"):  # a recording that is to be replaced
        (tmp_path / name).touch()
    words = [*RUN[1:-1], str(folder / "init.png"), "--steps", "2", "--record", str(tmp_path)]
    words += ["--config_path", str(ROOT / "configs"), "--weight_path", str(ROOT / "pretrained")]
    with largest_file(100_000):
        line = last_words(lambda: cli.main(words), capsys)
    assert "Recording" in line and "cannot be written: " in line and "File too large" in line
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_no_space_left_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "figures.json")

    line = last_words(main, capsys)
    assert line == "p: The system says for figures.json: No space left on device."


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_stdout_that_is_full() -> None:
    code = "import sys\nfrom sgm.cli import report\nfrom sgm.cli.program import start\n"
    code += "start('p', lambda: report.publish({}, 'x' * 9, '-') or 0)"
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (2, "p: The system says: No space left on device.\n")


def test_what_is_no_ordinary_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for check in (files.check_writable, lambda path: files.write_atomically(path, print)):
        with pytest.raises(UserError, match="is no ordinary file"):
            check(pipe)
    assert pipe.is_fifo()


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    files.write_atomically(tmp_path / "link", lambda file: file.write(b"x"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "file").read_bytes() == b"x"
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["file"]


def test_a_size_that_a_format_cannot_hold(tmp_path: Path) -> None:
    # In the words of Pillow, which of version 10 are of a number.
    reason = r"a\.webp cannot be written: .*(16383|encoding error 5)"
    with pytest.raises(UserError, match=reason):
        imageio.save_picture(Image.new("RGB", (16384, 1)), tmp_path / "a.webp")
    assert not list(tmp_path.iterdir())


# --- too little memory -------------------------------------------------------------------------

# As PyTorch words it on a GPU, where no test runs.
OF_A_GPU = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB of "
    "which 13.25 MiB is free. Process 1 has 79.13 GiB memory in use."
)


def of_numpy() -> None:
    np.zeros(10**14)


def of_torch() -> None:
    torch.empty(10**13)


def of_python() -> None:
    bytearray(2**60)


def of_a_gpu() -> None:
    raise torch.OutOfMemoryError(OF_A_GPU)


def of_the_system() -> None:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def taken_for_damage() -> None:
    try:
        of_numpy()
    except MemoryError as error:
        raise UserError("The file is damaged.") from error


@pytest.mark.parametrize(
    ("fail", "needed"),
    [
        (of_numpy, r" \(728. TiB more were needed\)"),
        (of_torch, r" \(38,146,972.66 MiB more were needed\)"),
        (of_python, ""),
        (of_a_gpu, r" \(20.00 MiB more were needed, 13.25 MiB were free\)"),
        (of_the_system, ""),
        (taken_for_damage, r" \(728. TiB more were needed\)"),
    ],
)
def test_memory_that_runs_out(fail: Callable[[], None], needed: str) -> None:
    expected = rf"^The memory of cpu is not enough{needed}; use less\.$"
    with (
        pytest.raises(UserError, match=expected),
        memory_scope("it all", "or not"),
        memory_scope("cpu", "use less"),
    ):
        fail()


def test_other_errors_are_not_taken_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_scope("cpu", "use less"):
        raise RuntimeError("shapes differ")
    line = last_words(of_python, capsys)
    assert (
        line
        == "p: The memory of this machine is not enough; close other programs, or ask for less."
    )


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ([], "a smaller --H and --W or --precision bf16"),
        (["--precision", "bf16"], "a smaller --H and --W"),
        (
            ["--run_type", "sige", "--mode", "profile_unet"],
            "a smaller --H and --W or --precision bf16 or --macs_only",
        ),
        (
            ["--run_type", "sige"],
            f"a smaller --H and --W or --precision bf16 or --run_type {RunType.ORIGINAL}",
        ),
        (
            [*RUN[9:13], "--recording", "r", "--recording_memory", "host"],
            "a smaller --H and --W or --precision bf16 or --recording_memory disk",
        ),
    ],
)
def test_the_flags_that_take_less_memory(words: list[str], advice: str, folder: Path) -> None:
    argv = ["--prompt", "x", "--model", "tiny", "--device", "cpu", *words]
    argv += ["--config_path", str(ROOT / "configs"), "--weight_path", str(ROOT / "pretrained")]
    argv += ["--init_img", str(folder / "init.png"), "--mask_path", str(folder / "mask.npy")]
    assert cli.less_memory(cli.parse(argv)) == advice
