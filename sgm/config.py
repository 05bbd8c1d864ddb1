"""YAML files to objects: a `target` class and its `params`.

The layout is that of the published files (generative-models, `configs/inference/*.yaml`).

Nothing is swallowed: a key that no constructor reads is an error that names it. Keys which only
matter in training are listed by the class they were published for, in `TRAINING_ONLY`, and dropped.
"""

import importlib
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sgm.errors import UserError

PACKAGE = "sgm"
# Published files name this one class of torch (the loss of a first stage that is not trained).
FOREIGN_TARGETS = frozenset({"torch.nn.Identity"})
ENTRY_KEYS = ("target", "params")
EXTENDS = "extends"
# Bytes of a file, and how often it may refer to something else. The files here have 3000 and none.
# (libyaml overflows the stack on a file of 50,000 opening brackets.)
MAX_BYTES = 20_000
MAX_REFERENCES = 16


class ConfigError(UserError):
    """A configuration file or entry that cannot be used; the message is one sentence."""


def load_config(path: str | Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping at the top level of a YAML file, interpolations resolved; empty for an empty
    file.

    A file may name another of its folder under `extends`, and then holds only what differs;
    `children` are the files that extend it, so that none is its own ancestor.

    Raises:
        ConfigError: the file cannot be read, is not YAML, is too large, holds no mapping or
            refers to a value that is not there.
    """
    path = Path(path)
    try:
        _check_bounds(path)
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except ConfigError:
        raise
    # Values that contradict their tags and endless nesting end in many types of error.
    except Exception as error:
        raise ConfigError(f"Config file {path} {_unreadable(error)}.") from error
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise ConfigError(f"Config file {path} must hold a mapping of names at its top level.")
    parent = config.pop(EXTENDS, None)
    if parent is None:
        return config
    children = (*children, path)
    usable = isinstance(parent, str) and Path(parent).name == parent
    if not usable or parent in {child.name for child in children}:
        raise ConfigError(
            f"Config file {path} extends {parent!r}; expected another file of the same folder, "
            "which does not extend this one."
        )
    base = OmegaConf.create(load_config(path.parent / parent, children))
    return OmegaConf.to_container(OmegaConf.merge(base, OmegaConf.create(config)), resolve=True)


def _unreadable(error: Exception) -> str:
    """Why a file is no configuration, as the end of a sentence; lines are counted from 1."""
    first = _first_line(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"is not valid YAML: {error.problem} in line {error.problem_mark.line + 1}"
    if isinstance(error, yaml.YAMLError):
        return f"is not valid YAML: {first}"
    if isinstance(error, UnicodeDecodeError):
        return "is not text in UTF-8"
    if isinstance(error, OSError):
        # omegaconf raises a bare OSError for a file that holds a number, so strerror may be None.
        return f"cannot be read: {error.strerror or first}"
    if isinstance(error, OmegaConfBaseException):
        return f"cannot be used: {first}"
    return f"cannot be used ({type(error).__name__}: {first})"


def _check_bounds(path: Path) -> None:
    """ConfigError for a file that could unfold to far more than it says: n aliases or
    interpolations, each of which repeats one that repeats another, make up to 3^(n / 3) copies."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ConfigError(f"Config file {path} has more than {MAX_BYTES} bytes; it is no config.")
    references = content.count(b"${")
    if content.count(b"*") + references > MAX_REFERENCES:  # some of these are no aliases
        tokens = yaml.scan(content, Loader=yaml.SafeLoader)
        references += sum(isinstance(token, yaml.AliasToken) for token in tokens)
    if references > MAX_REFERENCES:
        raise ConfigError(
            f"Config file {path} holds {references} aliases and interpolations, and at most "
            f"{MAX_REFERENCES} are read; write the values out."
        )


def get_obj_from_str(target: str) -> type:
    """Import the class that a dotted path names: `<module>.<class>` with a module of this package,
    or `torch.nn.Identity`. ConfigError if it leads elsewhere, cannot be imported, or names no
    class."""
    if not isinstance(target, str):
        raise ConfigError(f"Config target must be an import path as text, not {target!r}.")
    if not target.startswith(f"{PACKAGE}.") and target not in FOREIGN_TARGETS:
        allowed = _listed([f"{PACKAGE}.*", *FOREIGN_TARGETS])
        raise ConfigError(f"Config target {target!r} is not allowed; allowed targets: {allowed}.")
    module_name, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        reason = _first_line(error)
        raise ConfigError(f"Config target {target!r} cannot be imported: {reason}.") from error
    if not isinstance(found, type):
        kind = type(found).__name__
        raise ConfigError(f"Config target {target!r} must name a class, but it is a {kind}.")
    # A class that a module of ours merely imported is as foreign as one named directly.
    if target not in FOREIGN_TARGETS and not found.__module__.startswith(f"{PACKAGE}."):
        raise ConfigError(f"Config target {target!r} is a class of {found.__module__}, not ours.")
    return found


def instantiate_from_config(config: Mapping[str, Any]) -> Any:
    """Build the object that a `{target, params}` entry describes: a class as for
    `get_obj_from_str`, and the keyword arguments of its constructor.

    Raises:
        ConfigError: no target, a target that cannot be used, a key (of the entry or of its
            params) that is not known, a required key that is missing, or a value that the class
            cannot use.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"Config entry must be a mapping with a target, not {config!r}.")
    if "target" not in config:
        raise ConfigError(f"Config entry lacks the key 'target'; its keys: {_listed(config)}.")
    target = config["target"]
    unknown = [key for key in config if key not in ENTRY_KEYS]
    _refuse_keys(f"entry for {target} has", "unknown", unknown, ENTRY_KEYS)
    # `params:` with nothing after it is None in YAML and means the same as no params.
    params = {} if config.get("params") is None else config["params"]
    if not isinstance(params, Mapping):
        raise ConfigError(f"Config params of {target} must be a mapping, not {params!r}.")
    cls = get_obj_from_str(target)
    training_only: frozenset[str] = getattr(cls, "TRAINING_ONLY", frozenset())
    # Only parameters with a name count: `**kwargs` would accept every misspelt key.
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = [p for p in inspect.signature(cls).parameters.values() if p.kind in named]
    known = training_only | {p.name for p in parameters}
    unknown = [key for key in params if key not in known]
    _refuse_keys(f"params of {target} have", "unknown", unknown, known)
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    missing = [name for name in required if name not in params]
    _refuse_keys(f"params of {target} lack", "required", missing, known)
    try:
        return cls(**{key: value for key, value in params.items() if key not in training_only})
    except ConfigError:
        raise
    # A value of a wrong type fails somewhere inside, in many ways.
    except Exception as error:
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise ConfigError(f"Config params of {target} cannot be used ({reason}).") from error


def _refuse_keys(where: str, kind: str, keys: list[Any], known: Iterable[str]) -> None:
    """ConfigError if there are any of these keys."""
    if keys:
        found = f"{kind} key{'s' if len(keys) > 1 else ''} {', '.join(map(repr, keys))}"
        raise ConfigError(f"Config {where} the {found}; known keys: {_listed(known)}.")


def _listed(keys: Iterable[Any]) -> str:
    """Keys in alphabetical order for a message."""
    return ", ".join(sorted(str(key) for key in keys)) or "none"


def _first_line(error: BaseException) -> str:
    """The first line of an exception's text, without a final full stop."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
