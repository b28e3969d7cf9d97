"""What this machine has: cores, memory, disk, open files, GPUs.

Containers are taken at their word: where a control group allows less than the
hardware has, the smaller figure counts.

Not here: what follows from the figures (`doctor`).
"""

from __future__ import annotations

import math
import os
import platform
import resource
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

GIB: Final = 2**30
CGROUP: Final = Path("/sys/fs/cgroup")
NVIDIA_SMI_SECONDS: Final = 20.0
"""A driver in trouble answers nvidia-smi after minutes, or never."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The figures of one machine. Sizes in GiB; 0 where the system does not say."""

    python: str
    platform: str
    cores: float
    """Cores this process may use; a fraction where a container has a quota."""
    memory_gib: float
    disk_free_gib: float
    """On the file system of the current directory."""
    open_files: int
    """Soft limit of file descriptors (`ulimit -n`)."""
    gpus: tuple[str, ...] = ()
    """Name and memory of each NVIDIA GPU that the driver lists."""


def this_machine() -> Machine:
    """Read the figures of the machine we run on."""
    return Machine(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        cores=cores(),
        memory_gib=round(memory_bytes() / GIB, 1),
        disk_free_gib=round(shutil.disk_usage(Path.cwd()).free / GIB, 1),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        gpus=gpus(),
    )


def cores(cgroup: Path = CGROUP) -> float:
    """Count the cores this process may use."""
    try:
        usable = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # not Linux
        usable = float(os.cpu_count() or 1)
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        usable = min(usable, int(quota) / int(period))
    return round(usable, 2)


def memory_bytes(cgroup: Path = CGROUP) -> int:
    """Give the memory this process may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read(cgroup / "memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def gpus() -> tuple[str, ...]:
    """List the NVIDIA GPUs, as the driver's own tool names them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(  # noqa: S603 (a fixed command line)
            query, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def describe(machine: Machine) -> str:
    """Write the machine in one line, as benchmarks and reports head their tables."""
    cores = int(machine.cores) if math.floor(machine.cores) == machine.cores else machine.cores
    parts = [
        machine.platform,
        f"{cores} cores",
        f"{machine.memory_gib:.0f} GiB",
        f"Python {machine.python}",
    ]
    return ", ".join([*parts, *(machine.gpus or ("no GPU",))])
