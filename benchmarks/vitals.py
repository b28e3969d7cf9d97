"""What a process holds at one moment: memory, descriptors, threads, children, tasks, objects.

Read from /proc and the garbage collector: nothing is asked of those who are watched, so
nobody can forget to count himself.

Invariant: taking a sample leaves nothing open and keeps nothing.

Not here: what is too much (`trend`).
"""

from __future__ import annotations

import gc
import os
import resource
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from ..engine.mailbox import MailboxStatistics

RSS: Final = "memory, MiB"
CHILD_RSS: Final = "memory of children, MiB"
FDS: Final = "file descriptors"
THREADS: Final = "threads"
CHILDREN: Final = "child processes"
TASKS: Final = "tasks"
QUEUED: Final = "messages queued"
OBJECTS: Final = "objects"

_OWN: Final = "rollwave"
_PACKAGES: Final = (_OWN, "trio", "_asyncio", "threading", "subprocess", "socket")
"""Objects of their classes are counted one by one: a leak is then told by name."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look."""

    time: float
    """Seconds since the start."""
    values: Mapping[str, float]
    """Levels by name: those above, and `Class objects` for each class of ours and of trio."""
    peaks: Mapping[str, int] = field(default_factory=dict)
    """Largest size that each mailbox has had so far, by actor."""


class History:
    """All samples of a run, packed: what looks for leaks should not grow itself."""

    def __init__(self) -> None:
        self.times = array("d")
        self.levels: dict[str, array[float]] = {}
        """By name, one for each sample; 0 where the sample had none."""

    def add(self, sample: Sample) -> None:
        """Take a sample."""
        for name in sample.values.keys() - self.levels.keys():
            self.levels[name] = array("d", bytes(8 * len(self.times)))
        self.times.append(sample.time)
        for name, level in self.levels.items():
            level.append(sample.values.get(name, 0.0))


def take(
    time: float,
    mailboxes: Mapping[str, MailboxStatistics] | None = None,
    *,
    objects: bool = True,
) -> Sample:
    """Look now. Under trio its tasks are counted, elsewhere they are 0.

    Args:
        time: noted in the sample.
        mailboxes: those that live, by actor.
        objects: count them, which takes some 50 ms; else they are 0.
    """
    mailboxes = mailboxes or {}
    children = _children()
    values: dict[str, float] = {
        RSS: _rss_mib("self"),
        CHILD_RSS: sum(_rss_mib(child) for child in children),
        # The listing itself has one descriptor open.
        FDS: _entries("/proc/self/fd") - 1,
        THREADS: _entries("/proc/self/task"),
        CHILDREN: len(children),
        TASKS: _tasks(),
        QUEUED: sum(mailbox.size + mailbox.waiting for mailbox in mailboxes.values()),
    }
    total, by_class = _objects() if objects else (0, Counter())
    values[OBJECTS] = total
    values |= {f"{name} objects": count for name, count in by_class.items()}
    return Sample(time, values, {name: m.peak_size for name, m in mailboxes.items()})


def _objects() -> tuple[int, Counter[str]]:
    """All objects that the collector tracks, and those of our classes by class."""
    gc.collect()  # what is left is held by somebody
    objects = gc.get_objects()
    classes = Counter(map(type, objects))
    named: Counter[str] = Counter()
    for kind, count in classes.items():
        package = str(kind.__module__).partition(".")[0]
        if package in _PACKAGES:
            prefix = "" if package == _OWN else f"{package.strip('_')} "
            named[prefix + kind.__qualname__] += count
    return len(objects), named


def _tasks() -> int:
    try:
        return trio.lowlevel.current_statistics().tasks_living
    except RuntimeError:
        return 0


def _children() -> list[str]:
    """Ids of the direct children, zombies too: those are children nobody waited for."""
    own = str(os.getpid())
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            stat = (process / "stat").read_text("utf-8", "replace")
        except OSError:
            continue  # it has ended meanwhile
        # `pid (name) state parent ...`, where the name may hold anything.
        if stat.rpartition(")")[2].split()[1] == own:
            found.append(process.name)
    return found


def _entries(directory: str) -> int:
    return sum(1 for _ in Path(directory).iterdir())


def _rss_mib(process: str) -> float:
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text("ascii").split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * resource.getpagesize() / 2**20
