"""The commands of docs/batch.md, run as they stand but small."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sgm.batch import __main__ as batch
from sgm.batch.rows import OWN_NAMES, RUN_NAMES
from tests.batch.layouts import make_magicbrush, make_pie_bench
from tests.conftest import ROOT
from tests.test_readme import blocks
from tools import layout_edits

PAGE = (ROOT / "docs" / "batch.md").read_text(encoding="utf-8")
SMALL = ["--H", "64", "--W", "128", "--steps", "2", "--device", "cpu", "--threads", "1"]
PROGRAMS = {"sgm.batch": batch.main, "tools.layout_edits": layout_edits.main}
# Beginnings of commands that are not run, and why.
NOT_RUN = {
    "pip install": "downloads",
    "ray start": "starts what does not end by itself",
    "python -m sgm.batch edits.jsonl --output results --ray auto": "needs a cluster",
}


def lines() -> list[str]:
    return [line for block in blocks("shell", PAGE) for line in block.splitlines()]


def test_every_command_is_run_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    [rows] = blocks("json", PAGE)
    (tmp_path / "edits.jsonl").write_text(rows, encoding="utf-8")
    make_pie_bench(tmp_path / "PIE-Bench")
    make_magicbrush(tmp_path / "MagicBrush")
    ran, left = [], set(NOT_RUN)
    for line in lines():
        reason = next((start for start in NOT_RUN if line.startswith(start)), None)
        left.discard(reason)
        if reason or ("--ray" in line and importlib.util.find_spec("ray") is None):
            continue
        python, flag, module, *words = shlex.split(line)
        assert (python, flag) == ("python", "-m"), line
        small = SMALL if module == "sgm.batch" else []
        assert PROGRAMS[module]([*words, *small]) == 0, line
        ran.append(line)
    assert not left, "a reason for nothing"
    assert len(ran) >= 8
    assert len(list((tmp_path / "results").glob("*.png"))) == 5
    assert "5 of 5 results" in (tmp_path / "results" / "summary.md").read_text()
    assert (tmp_path / "results" / "landscape.png").is_file()
    assert "2 of 2 results" in (tmp_path / "brush-results" / "summary.md").read_text()


def test_the_table_has_every_name_of_a_row() -> None:
    rows = re.findall(r"^\| (`.*?) \|", PAGE, flags=re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert names == {*RUN_NAMES, *OWN_NAMES} - {"ddim_steps"}


def test_the_installed_command_hands_over() -> None:
    code = "import sys; sys.argv[1:] = ['batch', '--help']; "
    code += "sys.argv[0] = 'sdxl-sige'; from sgm.cli.main import run; run()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "EDITS" in done.stdout and not done.stderr
