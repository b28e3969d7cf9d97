"""What the worker processes of one environment may use.

Invariant: every limit is finite, and holds for one environment in one engine.

Not here: who enforces them (`host`, `process`, and `main` in the child).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...engine.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """Limits of an environment that runs in worker processes (`EnvSpec.workers`)."""

    workers: int = 0
    """Processes at most; 0 = one for each core that this process may use. While one is
    being replaced its successor runs beside it."""
    sessions_per_worker: int = 1024
    """Live sessions in one process at most; beyond, a session waits until one has ended."""
    step_seconds: float = 60.0
    """Deadline of one call (make, reset, step, ...), from when the world begins it: the
    process is then killed. Keep it below the session's own `turn_seconds`."""
    memory_mib: int = 4096
    """A process with more resident memory takes no new session and ends with its last one.
    At twice as much the operating system refuses it memory, or it is killed."""
    episodes_per_worker: int = 100_000
    """Sessions opened in one process before a fresh one takes over."""
    niceness: int = 5
    """Added to the process's nice value: worlds make way for the engine and the learner."""
    start_seconds: float = 60.0
    """Deadline for starting a process and importing the environment."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the key."""
        if self.workers < 0:
            raise ConfigError(f"workers must be 0 (one a core) or more, not {self.workers}")
        for key in ("sessions_per_worker", "memory_mib", "episodes_per_worker"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} must be at least 1, not {getattr(self, key)}")
        if not 0 <= self.niceness <= 19:
            raise ConfigError(f"niceness must be 0 to 19, not {self.niceness}")
        for key in ("step_seconds", "start_seconds"):
            if not 0 < getattr(self, key) < math.inf:
                raise ConfigError(
                    f"{key} must be above 0 and finite, not {getattr(self, key)}: a stuck "
                    "world is only ended by its deadline"
                )

    @property
    def hard_mib(self) -> int:
        """Memory that the operating system refuses to go beyond."""
        return 2 * self.memory_mib
