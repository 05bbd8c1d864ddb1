"""Writes the tree of files into docs/architecture.md: `python -m tools.tree`; `--check` compares.

Every line is a file and the first line of its docstring, so that the page says what the files say.
"""

import argparse
import ast
from pathlib import Path

from sgm.cli.program import start

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
START, END = "<!-- tree -->\n", "<!-- /tree -->"
FOLDERS = ("sgm", "tools", "benchmarks")
PROGRAMS = ("run.py", "convert_weights.py")
WIDTH = 34


def first_line(path: Path) -> str:
    """What a file says that it is: its docstring's first sentence or line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0] if text else ""


def lines_of(folder: Path, depth: int) -> list[str]:
    """The files of a folder, and then those of the folders in it."""
    files = sorted(folder.glob("*.py"))
    lines = [
        _line(path.name, depth, first_line(path))
        for path in files
        if path.name != "__init__.py" or first_line(path)
    ]
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        if any(inner.rglob("*.py")) and inner.name != "__pycache__":
            lines += [_line(f"{inner.name}/", depth, ""), *lines_of(inner, depth + 1)]
    return lines


def _line(name: str, depth: int, text: str) -> str:
    return f"{'  ' * depth + name:<{WIDTH}} {text}".rstrip()


def tree() -> str:
    """The block of the page, fenced."""
    lines = [_line(name, 0, first_line(ROOT / name)) for name in PROGRAMS]
    for name in FOLDERS:
        lines += [_line(f"{name}/", 0, ""), *lines_of(ROOT / name, 1)]
    lines.append(_line("tests/", 0, "mirrors sgm/"))
    return "```\n" + "\n".join(lines) + "\n```\n"


def with_tree(page: str) -> str:
    """A page with the tree between its marks."""
    before, _, rest = page.partition(START)
    return before + START + tree() + END + rest.partition(END)[2]


def main() -> int:
    """Write the page, or with `--check` say whether it is as it would be written."""
    parser = argparse.ArgumentParser(prog="python -m tools.tree", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if stale")
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    if not check:
        PAGE.write_text(with_tree(page), encoding="utf-8")
        return 0
    return int(with_tree(page) != page)


if __name__ == "__main__":
    start("tree", main)
