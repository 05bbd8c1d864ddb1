"""What README and docs say of files, flags and commands, held against the repository."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from sgm.cli.options import build_parser, read
from tests.conftest import ROOT
from tools import tree

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
EVERYTHING = "\n".join(PAGES.values())


def section(title: str, page: str = "README.md") -> str:
    """The text below a heading, up to the next one of the same or a higher level."""
    found = re.search(rf"^(#+) {re.escape(title)}$", PAGES[page], flags=re.MULTILINE)
    assert found, f"{page} has no section {title!r}"
    rest = PAGES[page][found.end() :]
    following = re.search(rf"^#{{1,{len(found[1])}}} ", rest, flags=re.MULTILINE)
    return rest[: following.start()] if following else rest


def blocks(language: str, text: str = EVERYTHING) -> list[str]:
    """Fenced code blocks of a language, with the indentation of list items taken off."""
    pattern = rf"^( *)```{language}\n(.*?)^\1```$"
    found = re.findall(pattern, text, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) for indent, body in found]


def commands(program: str) -> list[list[str]]:
    """The words after `python <program>` of every command in a shell block."""
    start = ["python", *program.split()]
    found = []
    for block in blocks("shell"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[: len(start)] == start:
                found.append(words[len(start) :])
    return found


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 300


def test_the_architecture_page_has_the_tree_of_the_files() -> None:
    assert tree.with_tree(PAGES["docs/architecture.md"]) == PAGES["docs/architecture.md"], (
        "run `python -m tools.tree`"
    )


RUNS = commands("run.py")


def test_the_commands_are_found() -> None:
    assert len(RUNS) >= 10
    assert {"sige", "inpainting-sige.png"} <= {word for run in RUNS for word in run}


@pytest.mark.parametrize("words", RUNS, ids=lambda words: " ".join(words)[-60:])
def test_every_command_parses(words: list[str]) -> None:
    values = read(words)
    for name in ("init_img", "edited_img", "mask_path"):
        given = getattr(values, name)
        assert given is None or (ROOT / given).is_file(), given


def known_flags() -> set[str]:
    flags = {flag for action in build_parser()._actions for flag in action.option_strings}
    return {flag for flag in flags if flag.startswith("--")} - {"--help"}


def test_the_table_lists_every_flag_and_no_other() -> None:
    rows = re.findall(r"^\| (`--.*?) \|", section("Flags", "docs/flags.md"), flags=re.MULTILINE)
    listed = {flag for row in rows for flag in re.findall(r"`(--[\w-]+)`", row)}
    assert listed == known_flags()


def test_the_stages_of_training_parse() -> None:
    train = importlib.import_module("tools.tiny.train")
    stages = commands("-m tools.tiny.train")
    named = [train.build_parser().parse_args(words).stage for words in stages]
    assert [name for name, _ in groupby(named)] == ["all", "latents", "speed", "export", "judge"]


# Those of docs/diffusers.md share their names; tests/test_diffusers_session.py runs them.
EXAMPLES = [
    example
    for page, text in PAGES.items()
    if page != "docs/diffusers.md"
    for example in blocks("python", text)
]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_a_python_example_runs_as_it_stands(number: int, tmp_path: Path) -> None:
    for name in ("assets", "configs", "pretrained"):
        (tmp_path / name).symlink_to(ROOT / name)
    example = re.sub(r"steps=\d+", "steps=2", EXAMPLES[number])
    example = example.replace("strength=0.6", "strength=0.9")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


def test_linked_files_of_the_repository_exist() -> None:
    absent = []
    for page, text in PAGES.items():
        folder = (ROOT / page).parent
        links = re.findall(r"\]\((?!https?://|#)([^)#]+)[^)]*\)", text)
        absent += [f"{page}: {link}" for link in links if not (folder / link).exists()]
    assert not absent, absent
