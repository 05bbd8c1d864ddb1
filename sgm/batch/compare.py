"""Results of a batch against reference pictures: PSNR, SSIM, and LPIPS where it is installed."""

import csv
import io
import logging
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import Tensor

from sgm.batch.results import Line, Results
from sgm.batch.rows import Job
from sgm.cli.inputs import read_inputs
from sgm.io.files import PICTURE_SUFFIXES, write_atomically
from sgm.io.imageio import load_picture, resize_picture, to_bytes
from sgm.metrics import WINDOW, lpips_map, psnr, ssim

logger = logging.getLogger(__name__)

# (picture, reference, bool mask [H, W]) -> figure.
Metric = Callable[[Tensor, Tensor, Tensor], float]
DIGITS = 4


def compare(results: Results, jobs: Sequence[Job], against: Path) -> str:
    """Compare the results of a batch with the pictures of the same names in a folder, whose kind of
    file may be another; write `metrics.csv` (a line for each) and `summary.md`, return the summary.
    """
    metrics: dict[str, Metric] = {"psnr": psnr, "ssim": ssim}
    perceptual = lpips_map()
    if perceptual is None:
        logger.info("LPIPS is left out: the package lpips or its weights are not installed.")
    else:
        metrics["lpips"] = lambda a, b, mask: perceptual(a, b)[mask].mean().item()
    columns = [f"{name}_{part}" for name in metrics for part in ("inside", "outside")]
    rows: list[Line] = []
    for job in jobs:
        path = against / job.output
        named = (path.with_suffix(suffix) for suffix in (path.suffix, *PICTURE_SUFFIXES))
        reference = next((candidate for candidate in named if candidate.is_file()), None)
        if reference is None or not results.is_done(job):
            continue
        mask = read_inputs(job.options).mask
        if mask is None:
            continue
        size = (mask.shape[0], mask.shape[1])
        pictures = [
            to_bytes(resize_picture(load_picture(path), size, str(path))) / 255
            for path in (results.folder / job.output, reference)
        ]
        row: Line = {"row": job.row, "output": job.output}
        for name, metric in metrics.items():
            row[f"{name}_inside"] = _figure(metric, pictures, mask)
            row[f"{name}_outside"] = _figure(metric, pictures, ~mask)
        rows.append(row)
    table = io.StringIO()
    writer = csv.DictWriter(table, ["row", "output", *columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    summary = _summary(rows, columns, len(jobs))
    folder, content = results.folder, table.getvalue().encode()
    write_atomically(folder / "metrics.csv", lambda file: file.write(content))
    write_atomically(folder / "summary.md", lambda file: file.write(summary.encode()))
    return summary


def _figure(metric: Metric, pictures: Sequence[Tensor], mask: Tensor) -> float | None:
    """A metric in a part of two pictures; None where there is nothing to measure."""
    inner = mask[WINDOW // 2 : -(WINDOW // 2), WINDOW // 2 : -(WINDOW // 2)]
    if not inner.any():  # SSIM has no value nearer to the border
        return None
    return round(metric(pictures[0], pictures[1], mask), DIGITS)


def _summary(rows: Sequence[Line], columns: Iterable[str], total: int) -> str:
    """Mean, median and range of every metric as a Markdown table."""
    lines = [
        f"{len(rows)} of {total} results have a reference picture.",
        "",
        "| metric | mean | median | lowest | highest |",
        "|---|---|---|---|---|",
    ]
    for column in columns:
        values = [value for row in rows if isinstance(value := row[column], float)]
        if values:
            found = (statistics.mean(values), statistics.median(values), min(values), max(values))
            cells = " | ".join("inf" if math.isinf(x) else f"{x:.{DIGITS}f}" for x in found)
            lines.append(f"| {column.replace('_', ', ')} | {cells} |")
    return "\n".join(lines) + "\n"
