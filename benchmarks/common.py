"""What every benchmark program writes beside its figures: where, with what, and into which file."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from sgm.io.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def commit() -> str | None:
    """The commit of this checkout, with a mark where files were changed; None without git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def machine() -> dict[str, object]:
    """The machine's processor, cores that this process may use, and memory in bytes."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "processor": _processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
    }


def _processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def plain(value: object, digits: int = 5) -> object:
    """A value for JSON, which knows neither NaN nor infinity: both become null."""
    if isinstance(value, Mapping):
        return {key: plain(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, digits) for item in value]
    if isinstance(value, float):
        return round(value, digits) if math.isfinite(value) else None
    return value


def summary(values: Iterable[float]) -> dict[str, float | int | None]:
    """Mean, median and smallest of the finite values, and how many those are."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return {"mean": None, "median": None, "min": None, "count": 0}
    return {
        "mean": statistics.fmean(finite),
        "median": statistics.median(finite),
        "min": min(finite),
        "count": len(finite),
    }


def cell(value: float | None, digits: int) -> str:
    """A figure of the table; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def write_figures(path: Path, figures: Mapping[str, object]) -> None:
    """Write the figures of a program as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    text = json.dumps(plain(figures), indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def write_results(
    path: Path, figures: Mapping[str, object], describe: Callable[[Mapping[str, object]], str]
) -> None:
    """Write the figures of a program as JSON, then what `describe` makes of them as Markdown beside
    it, and print that and the path. The figures are kept if the description fails.

    Raises:
        UserError: a file cannot be written.
    """
    write_figures(path, figures)
    text = describe(figures)
    write_atomically(path.with_suffix(".md"), lambda file: file.write(f"{text}\n".encode()))
    print(f"{text}\n\n{path}")
