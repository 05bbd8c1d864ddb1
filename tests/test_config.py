"""Config files: every way to get one wrong ends in one sentence that says what and where."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from sgm.config import ConfigError, get_obj_from_str, instantiate_from_config, load_config

TOYS = "sgm.toys_of_test_config"


class Toy:
    TRAINING_ONLY = frozenset({"monitor", "lossconfig"})

    def __init__(self, width: int, *, depth: int = 1, **extra: int) -> None:
        self.width, self.depth, self.extra = width, depth, extra


class Nested:
    def __init__(self, toy_config: dict[str, object]) -> None:
        self.toy = instantiate_from_config(toy_config)


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of this package that exists only here, with two classes and other things."""
    module = ModuleType(TOYS)
    for cls in (Toy, Nested):
        setattr(module, cls.__name__, type(cls.__name__, (cls,), {"__module__": TOYS}))
    module.Foreign = Path
    module.number = 3
    monkeypatch.setitem(sys.modules, TOYS, module)


def test_builds_target_with_params() -> None:
    toy = instantiate_from_config({"target": f"{TOYS}.Toy", "params": {"width": 4, "depth": 2}})
    assert (toy.width, toy.depth, toy.extra) == (4, 2, {})


def test_training_only_keys_are_dropped() -> None:
    params = {"width": 4, "monitor": "val/loss", "lossconfig": {"target": "torch.nn.Identity"}}
    assert instantiate_from_config({"target": f"{TOYS}.Toy", "params": params}).extra == {}


@pytest.mark.parametrize("entry", [{}, {"params": None}, {"params": {}}], ids=str)
def test_params_may_be_absent_or_empty(entry: dict[str, object]) -> None:
    assert isinstance(
        instantiate_from_config({"target": "torch.nn.Identity", **entry}), nn.Identity
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"params": {}}, ["'target'", "params"]),
        ({}, ["'target'", "none"]),
        (None, ["mapping", "None"]),
        ({"target": f"{TOYS}.Toy", "parms": {}}, ["'parms'", "Toy", "params, target"]),
        ({"target": f"{TOYS}.Toy", "params": [4]}, ["Toy", "mapping", "[4]"]),
        # `extra` is a **kwargs parameter: it must not make misspelt keys acceptable.
        (
            {"target": f"{TOYS}.Toy", "params": {"width": 4, "dept": 2}},
            ["unknown key 'dept'", "Toy", "depth, lossconfig, monitor, width"],
        ),
        (
            {"target": f"{TOYS}.Toy", "params": {"width": 4, 7: 2, "x": 1}},
            ["unknown keys 7, 'x'"],
        ),
        ({"target": f"{TOYS}.Toy"}, ["required key 'width'", "Toy", "depth"]),
        ({"target": "torch.nn.Identity", "params": {"a": 1}}, ["'a'", "Identity", "none"]),
        (
            {"target": f"{TOYS}.Nested", "params": {"toy_config": {"target": f"{TOYS}.Toy"}}},
            ["'width'", "Toy"],
        ),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value),
)
def test_entry_errors(config: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        instantiate_from_config(config)
    for word in words:
        assert word in str(caught.value)
    assert_one_sentence(caught.value)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.nn.Linear",
        "sgm",
        "sgmx.config.ConfigError",
        "sgm.nowhere.Thing",
        "sgm.config.Nothing",
        "sgm.",
        "sgm..config.ConfigError",
        f"{TOYS}.number",
        f"{TOYS}.Foreign",
        "sgm.config.Path",
        7,
        None,
    ],
    ids=str,
)
def test_target_errors(target: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get_obj_from_str(target)
    assert repr(target) in str(caught.value)
    assert_one_sentence(caught.value)


def test_target_importable() -> None:
    assert get_obj_from_str("sgm.config.ConfigError") is ConfigError
    assert get_obj_from_str("torch.nn.Identity") is torch.nn.Identity


def test_load_gives_plain_containers(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("size: 8\nlevels: [1, 2]\nmodel:\n  width: ${size}\n  eps: 1e-6\n")
    config = load_config(path)
    assert config == {"size": 8, "levels": [1, 2], "model": {"width": 8, "eps": 1e-6}}
    assert type(config) is dict and type(config["levels"]) is list and type(config["model"]) is dict
    path.write_text("")
    assert load_config(str(path)) == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["No such file"]),
        (b"a: [1, 2\nb: 3\n", ["YAML", "line 2"]),
        (b"a: 1\na: 2\n", ["YAML", "duplicate"]),
        (b"- 1\n- 2\n", ["mapping"]),
        (b"3\n", ["cannot be"]),
        (b"a: ${b}\n", ["b"]),
        (b"\xff\xfe\xfa", ["Config file"]),
        (b"a: \x00", ["Config file"]),
        (b"1: 2\n", ["mapping"]),
    ],
    ids=str,
)
def test_load_errors(tmp_path: Path, content: bytes | None, words: list[str]) -> None:
    path = tmp_path / "broken.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)
    assert_one_sentence(caught.value)


def test_load_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="directory"):
        load_config(tmp_path)


def assert_one_sentence(error: ConfigError) -> None:
    text = str(error)
    assert "\n" not in text and text.endswith(".") and not text.endswith("..")
