"""What every benchmark writes: figures with their spread, the machine, the commit.

Invariant: a figure is never written without the number of its repeats and its
spread, so that a reader can tell a difference from noise.

Not here: measuring, and what counts as good.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

from ..cli.machine import this_machine


@dataclass(frozen=True, slots=True)
class Spread:
    """Repeats of one figure."""

    median: float
    least: float
    most: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summarise repeats, one at least."""
        return cls(median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        """`median (least to most)`, in three significant digits or more."""
        digits = 0 if abs(self.median) >= 100 else 1 if abs(self.median) >= 10 else 2
        least, most = f"{self.least:,.{digits}f}", f"{self.most:,.{digits}f}"
        return f"{self.median:,.{digits}f} ({least} to {most})"


def commit() -> str:
    """The commit that was measured, `+` where files differ from it; "" outside a checkout."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "--short=12", "HEAD")
    return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def write(path: Path, figures: Mapping[str, Any]) -> None:
    """Write one JSON file: the figures, and what they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "machine": asdict(this_machine()) | {"processor": processor()},
    }
    path.write_text(json.dumps(about | dict(figures), indent=2) + "\n", "utf-8")


def processor() -> str:
    """The processor's name; "" where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ""
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else ""
