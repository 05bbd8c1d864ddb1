"""Rules of the house, read from the syntax trees: who may import whom, sizes, annotations.

The picture of the layers stands in the README's architecture section.
"""

import ast
import functools
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from sgm.io.checkpoint import build_model
from tests.conftest import ROOT, tiny_weights

MAX_FILE, MAX_FUNCTION = 350, 60
SOURCES = ("sgm", "tools", "benchmarks")
PROGRAMS = ("run.py", "convert_weights.py")
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".cfg", ".sh", ".ipynb", ".json", ""}
# Absolute paths of somebody's machine; `[...]` keeps the pattern from matching itself.
MACHINE_PATH = re.compile(r"(?<![\w.{}~$/-])/(?:work|root|home|Users|mnt|media)/[\w.]")

# The layer of a module: the first row whose pattern matches its dotted name.
LAYERS: dict[str, str] = {
    r"sgm\.app\b.*": "app",
    r"sgm\.batch\b.*": "batch",
    r"sgm\.cli\b.*": "cli",
    r"sgm\.inference\b.*": "inference",
    r"sgm\.profiling\b.*": "profiling",
    r"sgm\.models\b.*": "models",
    r"sgm\.modules\b.*": "modules",
    r"sgm\.sparse\.backends\.torch_ref": "sparse data",  # the contract, of which all may speak
    r"sgm\.sparse\.backends\b.*": "sparse.backends",
    r"sgm\.sparse\.ops": "sparse.ops",
    r"sgm\.sparse\.(state|network)": "sparse.state",
    r"sgm\.sparse\.layers": "sparse.layers",
    r"sgm\.sparse\.rules\b.*": "sparse.rules",  # the only ones that know networks
    r"sgm\.sparse(\.(sparsify|swap))?": "sparse",
    r"sgm\.sparse\..*": "sparse data",  # masks, active sets, norms: tensors in, tensors out
    r"sgm\.io\b.*": "io",
    r"sgm\.edit(or|ed)": "api",
    r"sgm\.diffusers": "diffusers",
    r"sgm": "top",  # loads nothing until it is called
    r"sgm(\.\w+)?": "base",  # names, files, pictures, configurations, devices
}
SPARSE = {"sparse data", "sparse.ops", "sparse.state", "sparse.layers", "sparse"}
# What a layer may import besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    "base": set(),
    "io": {"base"},
    "sparse data": set(),
    "sparse.backends": {"sparse data"},
    "sparse.ops": {"sparse.backends", "sparse data"},
    "sparse.state": {"sparse.ops", "sparse data"},
    "sparse.layers": {"sparse.state", "sparse.ops", "sparse data"},
    "sparse": SPARSE,
    "sparse.rules": {"modules"} | SPARSE,
    "modules": {"base"},
    "models": {"modules", "base"},
    "inference": {"models", "modules", "base", "io", "sparse.rules"} | SPARSE,
    "profiling": {"inference", "models", "modules", "base"} | SPARSE,
    "cli": {"inference", "profiling", "io", "base", "sparse data", "sparse"},
    "app": {"top", "cli", "inference", "io", "base", "sparse data"},
    "batch": {"cli", "inference", "io", "base"},
    "api": {"inference", "io", "base"},
    "diffusers": {"inference", "io", "base"} | SPARSE,  # of their pipelines
    "top": {"api"},
}
# Signatures that may take `**name`: every keyword is kept as data, or all are handed on to one that
# names them, so none can be swallowed.
KEYWORD_DATA = {
    ("sgm/sparse/network.py", "put"),
    ("sgm/sparse/network.py", "update"),
    ("sgm/sparse/network.py", "forward"),
    ("sgm/sparse/network.py", "_dense"),
    ("sgm/sparse/network.py", "_record"),
    ("sgm/sparse/network.py", "run_pass"),
    ("sgm/sparse/layers.py", "_record"),
    # Layers are called as diffusers calls its own.
    ("sgm/sparse/rules/diffusers.py", "forward"),
    ("sgm/sparse/rules/diffusers.py", "run_pass"),
    ("sgm/sparse/rules/diffusers.py", "_record"),
    ("sgm/__init__.py", "load"),
    ("sgm/editor.py", "inpaint"),
    ("sgm/editor.py", "sdedit"),
    ("sgm/editor.py", "session"),
    ("sgm/edited.py", "save"),
}
# Imported name -> distribution, where the two differ.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}
# Installed by hand, if at all: each is asked for with `find_spec` or inside `try`.
# `diffusers` has requirements of its own (`requirements-diffusers.txt`), and so have `gradio` (the
# page, `requirements-app.txt`) and `playwright` (its tests and pictures).
OPTIONAL = {"triton", "sige", "diffusers", "ray", "lpips", "gradio", "playwright"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def source_files() -> list[Path]:
    """Every Python file of the product: not the tests."""
    files = [path for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))]
    return files + [ROOT / name for name in PROGRAMS if (ROOT / name).is_file()]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    """`sgm/sparse/ops.py` -> `sgm.sparse.ops`; a package goes by its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, Function))


@functools.cache
def modules() -> dict[str, Path]:
    """Our own modules by dotted name."""
    return {module_name(path): path for path in source_files()}


def imports(path: Path) -> list[tuple[int, str]]:
    """Line and dotted name of everything a file imports, down to our modules."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno} imports relatively"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.append((node.lineno, inner if inner in modules() else node.module))
    return found


def layer(module: str) -> str:
    return next(name for pattern, name in LAYERS.items() if re.fullmatch(pattern, module))


def test_the_layers_are_told_apart() -> None:
    assert layer("sgm.modules.diffusionmodules.sige_openaimodel") == "modules"
    assert layer("sgm.modules.diffusionmodules.model") == "modules"
    assert layer("sgm.sparse.masks") == "sparse data" and layer("sgm.specs") == "base"
    assert set(LAYERS.values()) == set(MAY_IMPORT)


def test_imports_go_one_way() -> None:
    wrong = []
    for path in source_files():
        name = module_name(path)
        for line, imported in imports(path):
            top = imported.partition(".")[0]
            if top == "tests" or (name.startswith("sgm") and top in ("tools", "benchmarks", "run")):
                wrong.append(f"{relative(path)}:{line} imports {imported}")
            elif name.startswith("sgm") and top == "sgm":
                here, there = layer(name), layer(imported)
                if here != there and there not in MAY_IMPORT[here]:
                    wrong.append(f"{relative(path)}:{line} {here} imports {there} ({imported})")
    assert not wrong, "\n".join(wrong)


@functools.cache
def defined(path: Path) -> set[str]:
    """Names that a module gives, apart from those that it imports."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def test_every_name_is_imported_from_where_it_is_defined() -> None:
    """One door to a name; only packages (`__init__.py`) hand on what they import."""
    doors = {name: path for name, path in modules().items() if path.name != "__init__.py"}
    tests = (ROOT / "tests").rglob("*.py")
    wrong = [
        f"{relative(path)}:{node.lineno} imports {alias.name} from {node.module}"
        for path in [*source_files(), *tests]
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and node.module in doors
        for alias in node.names
        if alias.name not in defined(doors[node.module])
    ]
    assert not wrong, "\n".join(wrong)


def test_the_programs_hand_over_at_once() -> None:
    for name in PROGRAMS:
        if (ROOT / name).is_file():
            ours = [imported for _, imported in imports(ROOT / name) if imported.startswith("sgm")]
            assert {layer(imported) for imported in ours} <= {"cli", "io", "base"}, name


def first_line(node: Function) -> int:
    """Where a function is counted from. A Triton kernel's arguments are pointers and numbers that
    no object can hold together, one a line, and are described one by one: counted is its body."""
    kernel = any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    return node.body[1].lineno if kernel and ast.get_docstring(node) else node.lineno


def test_no_file_and_no_function_is_too_long() -> None:
    wrong = []
    for path in source_files():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE:
            wrong.append(f"{relative(path)} has {lines} lines, at most {MAX_FILE}")
        for node in functions(path):
            length = (node.end_lineno or node.lineno) - first_line(node) + 1
            if length > MAX_FUNCTION:
                wrong.append(f"{relative(path)}:{node.lineno} {node.name} has {length} lines")
    assert not wrong, "\n".join(wrong)


def test_every_function_is_annotated() -> None:
    wrong = []
    for path in source_files():
        methods = {
            child
            for node in ast.walk(tree(path))
            if isinstance(node, ast.ClassDef)
            for child in node.body
        }
        for node in functions(path):
            given = node.args.posonlyargs + node.args.args
            static = any(
                isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list
            )
            if node in methods and not static:
                given = given[1:]  # self or cls
            extra = [a for a in (node.args.vararg, node.args.kwarg) if a is not None]
            bare = [a.arg for a in given + node.args.kwonlyargs + extra if a.annotation is None]
            if bare or node.returns is None:
                wrong.append(f"{relative(path)}:{node.lineno} {node.name} {bare or 'returns'}")
    assert not wrong, "\n".join(wrong)


def test_every_module_says_what_it_is_for() -> None:
    files = [path for path in source_files() if path.read_text(encoding="utf-8").strip()]
    assert [relative(path) for path in files if not ast.get_docstring(tree(path))] == []


def test_no_signature_swallows_keywords() -> None:
    wrong = [
        f"{relative(path)}:{node.lineno} {node.name}"
        for path in source_files()
        if path.is_relative_to(ROOT / "sgm")
        for node in functions(path)
        if node.args.kwarg is not None and (relative(path), node.name) not in KEYWORD_DATA
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_command_line_writes_to_stdout() -> None:
    wrong = []
    for path in source_files():
        if not path.is_relative_to(ROOT / "sgm") or relative(path) == "sgm/cli/report.py":
            continue
        for node in ast.walk(tree(path)):
            printed = isinstance(node, ast.Name) and node.id == "print"
            if printed or (isinstance(node, ast.Attribute) and node.attr == "stdout"):
                wrong.append(f"{relative(path)}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


def test_no_file_names_a_machine() -> None:
    wrong = []
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") and part != ".ci" for part in parts)
        if hidden or not path.is_file() or path.suffix not in TEXT or parts[0] == "outputs":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if MACHINE_PATH.search(line):
                wrong.append(f"{relative(path)}:{number} {line.strip()}")
    assert not wrong, "\n".join(wrong)


def test_requirements_are_what_is_imported() -> None:
    ours = {*SOURCES, "run", "convert_weights", "tests"}
    used = set()
    for path in source_files():
        tops = {imported.partition(".")[0] for _, imported in imports(path)}
        used |= tops - ours - set(sys.stdlib_module_names) - OPTIONAL
    needed = {DISTRIBUTIONS.get(name, name) for name in used}
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = {re.split(r"[<>=; ]", line)[0] for line in lines if line and not line.startswith("#")}
    assert listed == needed
    for name in listed:
        importlib.metadata.version(name)  # an unknown name raises


ENGINE_ALONE = """
import sys

for name in ("triton", "sige", "diffusers", "PIL", "safetensors", "yaml"):
    sys.modules[name] = None  # importing it now raises ImportError

import sgm.sparse

ours = {name for name in sys.modules if name.partition(".")[0] == "sgm"}
assert all(name == "sgm" or name.startswith("sgm.sparse") for name in ours), ours
assert not any(name.startswith("sgm.sparse.rules.") for name in ours), ours
"""


def test_the_engine_loads_torch_and_no_other_module_of_ours() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENGINE_ALONE], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


DENSE_RUN = """
import sys

for name in ("triton", "sige", "torchvision", "transformers", "open_clip", "diffusers"):
    sys.modules[name] = None  # importing it now raises ImportError

from sgm.cli.main import main

code = main(sys.argv[1:])
loaded = [name for name in sys.modules if "sige_" in name or "backends.triton" in name]
assert not loaded, loaded
assert "torch._dynamo" not in sys.modules  # PyTorch's compiler, which takes a second to import
sys.exit(code)
"""


def test_a_dense_run_needs_no_sparse_package(tmp_path: Path) -> None:
    model = build_model(ROOT / "configs" / "tiny-original.yaml")
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = {name: tensor.half() for name, tensor in tiny_weights(shapes).items()}
    save_file(weights, tmp_path / "tiny_base.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    mask = np.zeros((64, 64), dtype=bool)
    mask[20:40, 30:50] = True
    np.save(tmp_path / "mask.npy", mask)
    words = ["--model", "tiny", "--prompt", "a horse", "--steps", "2", "--device", "cpu"]
    for flag, name in {
        "--init_img": "picture.png",
        "--mask_path": "mask.npy",
        "--weight_path": ".",
        "--output_path": "result.png",
    }.items():
        words += [flag, str(tmp_path / name)]
    words += ["--config_path", str(ROOT / "configs")]
    command = [sys.executable, "-c", DENSE_RUN, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "result.png")
    with Image.open(tmp_path / "result.png") as picture:
        assert picture.size == (64, 64) and picture.mode == "RGB"


@pytest.mark.parametrize(
    ("line", "found"),
    [("cd /{}/me/x", True), ("at tools/tiny/{}/x", False), ("https://a.b/{}/x", False)],
)
def test_the_pattern_of_machine_paths(line: str, found: bool) -> None:
    assert bool(MACHINE_PATH.search(line.format("home"))) is found
