"""Peak memory of this process, apart for what it owns and for what is only mapped from files.

Linux keeps both: `RssAnon` is memory that must be there, `VmRSS` has in addition the pages of
mapped files, which the system may drop at any time and read again. Only the peak of the latter is
kept by the system (`VmHWM`, set back through `clear_refs`); that of the former is sampled.
"""

from __future__ import annotations

import gc
import threading
from pathlib import Path

from sgm.errors import UserError

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PERIOD = 0.002  # seconds between samples; the largest tensor takes longer than that to fill


def status() -> dict[str, int]:
    """Memory of this process in bytes: `RssAnon`, `VmRSS`, `VmHWM`.

    Raises:
        UserError: the system does not say (it is not Linux).
    """
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return {name: int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "VmRSS", "VmHWM")}
    except (OSError, KeyError) as error:
        raise UserError("Peak memory is read from Linux's /proc; run this on Linux.") from error


class Watch:
    """Peaks between entering and leaving a `with` block, over what there was before, in bytes.

    Attributes:
        anonymous: memory that the process owns.
        resident: this and the pages of mapped files.
        process: the whole process at its largest, libraries and all, mapped files included.
    """

    def __enter__(self) -> Watch:
        gc.collect()  # garbage that is freed later would hide as much that is taken
        CLEAR.write_text("5", encoding="ascii")  # sets VmHWM to what is resident now
        before = status()
        self._anonymous, self._resident = before["RssAnon"], before["VmRSS"]
        self.anonymous = self.resident = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self.process = status()["VmHWM"]
        self.resident = self.process - self._resident

    def figures(self) -> dict[str, int]:
        """All peaks, for JSON."""
        return {
            "peak_anonymous": self.anonymous,
            "peak_resident": self.resident,
            "peak_process": self.process,
        }

    def _look(self) -> None:
        self.anonymous = max(self.anonymous, status()["RssAnon"] - self._anonymous)

    def _sample(self) -> None:
        while not self._stop.wait(PERIOD):
            self._look()
