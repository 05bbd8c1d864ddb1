"""Results of a batch: pictures, and `results.jsonl` with one line for each.

A picture is written first and then its line, so that a line means a whole picture. Lines are added
at the end of the file; what a killed batch left of one is taken away by the next, and at the end
the file is written anew in the order of the rows.
"""

import fcntl
import json
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgm.batch.rows import Job
from sgm.errors import UserError
from sgm.io.files import write_atomically

logger = logging.getLogger(__name__)

NAME = "results.jsonl"
Line = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The result of a job, or its error."""

    job: Job
    picture: bytes | None  # the file's content; None if the job failed
    figures: Line  # seconds by stage, edited share, changed outside; or the error

    @property
    def line(self) -> Line:
        """The line of `results.jsonl`."""
        job = self.job
        head = {"row": job.row, "output": job.output, "seed": job.options.sampling.seed}
        return {**head, "fingerprint": job.fingerprint, **self.figures}


class Results(AbstractContextManager["Results"]):
    """The output folder of a batch, locked against other batches while it runs.

    Raises:
        UserError: another batch writes there, or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(f"Folder {folder} cannot be written: {error.strerror}.") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise UserError(
                f"Another batch writes to {folder}; wait for it, or name another --output."
            ) from error
        for path in folder.rglob(".*.tmp"):  # of a batch that was killed
            path.unlink()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._lines = {str(line["output"]): line for line in self._read()}

    def __exit__(self, *raised: object) -> None:
        os.close(self._file)
        os.close(self._lock)

    def _read(self) -> list[Line]:
        """The lines that are there; an unfinished last one is taken away."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        os.ftruncate(self._file, whole)
        try:
            lines = [json.loads(line) for line in content[:whole].splitlines()]
            if all("output" in line for line in lines):
                return lines
        except (ValueError, TypeError):
            pass
        raise UserError(f"{self.path} holds other things than results; name another --output.")

    def is_done(self, job: Job) -> bool:
        """Whether a job's picture is there, made as it would be made now."""
        line = self._lines.get(job.output, {})
        done = line.get("fingerprint") == job.fingerprint and "error" not in line
        return done and (self.folder / job.output).is_file()

    def add(self, outcome: Outcome) -> None:
        """Write the result or the error of a job; UserError if it cannot be written, and nothing of
        it is left behind then."""
        picture = outcome.picture
        if picture is not None:
            write_atomically(self.folder / outcome.job.output, lambda file: file.write(picture))
        data, size = _encoded(outcome.line), os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            os.ftruncate(self._file, size)
            raise UserError(
                f"{self.path} cannot be written: {error.strerror}; what is done is kept, and the "
                "batch goes on from there when it is started again."
            ) from error
        self._lines[outcome.job.output] = outcome.line

    def finish(self, jobs: Iterable[Job], bad: Mapping[int, str]) -> list[Line]:
        """Write the lines anew in the order of the rows, with a sentence on each that was left out;
        return them."""
        lines = [self._lines[job.output] for job in jobs if job.output in self._lines]
        lines += [{"row": row, "output": "", "error": sentence} for row, sentence in bad.items()]
        lines.sort(key=lambda line: line["row"])
        write_atomically(self.path, lambda file: file.write(b"".join(map(_encoded, lines))))
        return lines


def _encoded(line: Line) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"
