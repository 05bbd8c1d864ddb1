"""What the README says of files, flags and commands, held against the repository."""

import ast
import importlib
import re
import shlex
from itertools import groupby

import pytest

from sgm.cli.options import build_parser, read
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading, up to the next one of the same or a higher level."""
    found = re.search(rf"^(#+) {re.escape(title)}$", README, flags=re.MULTILINE)
    assert found, f"the README has no section {title!r}"
    rest = README[found.end() :]
    following = re.search(rf"^#{{1,{len(found[1])}}} ", rest, flags=re.MULTILINE)
    return rest[: following.start()] if following else rest


def blocks(language: str, text: str = README) -> list[str]:
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


def tree_paths() -> list[str]:
    """Paths of the architecture tree, two spaces of indentation a level."""
    (tree,) = blocks("", section("Architecture"))
    paths, folders = [], []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders = folders[:depth]
        paths.append("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return paths


def test_the_tree_names_what_there_is() -> None:
    absent = [path for path in tree_paths() if not (ROOT / path).exists()]
    assert not absent, f"the README's tree names {absent}"
    assert len(tree_paths()) == len(set(tree_paths()))


@pytest.mark.parametrize("folder", ["sgm", "benchmarks"])
def test_every_source_file_is_in_the_tree(folder: str) -> None:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py")}
    files = {path for path in files if not path.endswith("__init__.py")}
    missing = sorted(files - set(tree_paths()))
    assert not missing, f"the README's tree lacks {missing}"


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
    rows = re.findall(r"^\| (`--.*?) \|", section("Flags"), flags=re.MULTILINE)
    listed = {flag for row in rows for flag in re.findall(r"`(--[\w-]+)`", row)}
    assert listed == known_flags()


def test_the_stages_of_training_parse() -> None:
    train = importlib.import_module("tools.tiny.train")
    stages = commands("-m tools.tiny.train")
    named = [train.build_parser().parse_args(words).stage for words in stages]
    assert [name for name, _ in groupby(named)] == ["all", "export", "judge"]


@pytest.mark.parametrize("example", blocks("python"), ids=["one", "many"])
def test_a_python_example_is_python_and_its_imports_exist(example: str) -> None:
    for node in ast.walk(ast.parse(example)):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_the_table_of_edits_is_what_the_program_wrote() -> None:
    table = (ROOT / "benchmarks" / "results" / "edit_tiny_base.md").read_text(encoding="utf-8")
    assert table.strip() in README


def test_linked_files_of_the_repository_exist() -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links)
