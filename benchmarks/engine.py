"""What the engine itself costs: sessions, messages, deadlines, records and journal, no model.

    rollwave bench engine --sessions 1024 --turns 5 --latency-ms 20

The backend is scripted (latency only) and the environment answers at once, so what
is left is the engine: every turn crosses two mailboxes as MessagePack, runs under a
deadline and is recorded, and every trajectory is journalled and synced to disk.

`ideal_seconds` is the lower bound for a perfect engine of no cost on the same
backend; CPU is that of the whole process, all threads.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from ..actors.backends.base import Backend
from ..actors.backends.latency import ConstantLatency
from ..actors.backends.scripted import ScriptedBackend
from ..actors.embedding import Engine, EngineSettings, open_engine
from ..actors.policy_source import PolicySource
from ..actors.protocol import Sampling
from ..engine.journal import Journal
from ..engine.trajectory import ChatMessage
from ..envs.base import Environment, EnvSpec, StepResult, Task


class Countdown(Environment):
    """Ends after a fixed number of steps, whatever the action. Its step costs nothing."""

    def __init__(self, turns: int) -> None:
        self._turns = turns
        self._left = 0

    def reset(self, task: Task, seed: int) -> str:
        """Start the count."""
        self._left = self._turns
        return f"{self._left} turns are left."

    def step(self, action: str) -> StepResult:
        """Count one down."""
        self._left -= 1
        done = self._left == 0
        return StepResult(
            f"{self._left} turns are left.", float(done), terminated=done, success=done
        )

    def observation(self) -> str:
        """The count."""
        return f"{self._left} turns are left."

    def available_actions(self) -> Sequence[str]:
        """One is as good as another."""
        return ("go",)


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """The keys of `rollwave bench engine --json`."""

    sessions: int
    turns: int
    """Turns played in all."""
    seconds: float
    ideal_seconds: float
    efficiency: float
    """ideal_seconds / seconds."""
    turns_per_second: float
    cpu_microseconds_per_turn: float
    peak_rss_mib: float
    rss_kib_per_session: float
    """Growth of the resident set while all sessions are live, for each session."""


def bench_engine(
    *,
    sessions: int,
    turns: int,
    latency_ms: float,
    per_request_ms: float = 0.0,
    batch: int = 0,
    journalled: bool = True,
    server: str = "",
    seed: int = 0,
) -> EngineFigures:
    """Play `sessions` episodes of `turns` turns, all at once, and measure.

    Args:
        sessions: live sessions; each plays one episode.
        turns: turns of an episode.
        latency_ms: time of one request, or of one batch, in milliseconds.
        per_request_ms: what each request adds to its batch.
        batch: most requests in a batch; 0 = each request on its own.
        journalled: keep the records on disk, as a real run does.
        server: address of an OpenAI-compatible server to ask over HTTP, such as
            `stub_server`, in place of the scripted backend; the latency is then its own.
        seed: root of all seeds.
    """
    spec = EnvSpec(
        id="countdown-v1",
        make=lambda: Countdown(turns),
        splits={"test": range(sessions)},
        prompt=(ChatMessage("system", "Count down."),),
        action_format="raw",
        turn_limit=turns,
    )
    latency = ConstantLatency(latency_ms / 1e3, per_request_ms / 1e3)

    def make(_version: int, _path: str) -> Backend:
        if server:
            from ..actors.backends.openai import OpenAIBackend  # httpx would count as memory

            return OpenAIBackend(server)
        return ScriptedBackend(latency, batch, answer=lambda _: "go", takes_tokens=False)

    source = PolicySource(kind="model", name="scripted", make_backend=make)

    async def run(path: Path) -> tuple[float, float, float]:
        settings = EngineSettings(concurrency=sessions, seed=seed)
        async with open_engine(source, settings=settings) as engine:
            tasks = engine.use(spec).tasks("test")
            if not journalled:
                return await _measure(engine, tasks, None)
            async with await Journal.open(path) as journal:
                return await _measure(engine, tasks, journal)

    with tempfile.TemporaryDirectory() as directory:
        seconds, cpu, growth = trio.run(run, Path(directory) / "bench.journal")
    played = sessions * turns
    ideal = latency.ideal_seconds(sessions, turns, batch)
    return EngineFigures(
        sessions=sessions,
        turns=played,
        seconds=seconds,
        ideal_seconds=ideal,
        efficiency=ideal / seconds,
        turns_per_second=played / seconds,
        cpu_microseconds_per_turn=cpu / played * 1e6,
        peak_rss_mib=_peak_rss_mib(),
        rss_kib_per_session=growth / sessions / 1024,
    )


async def _measure(
    engine: Engine, tasks: Sequence[Task], journal: Journal | None
) -> tuple[float, float, float]:
    before = rss_bytes()
    live = before
    count = 0
    started, cpu = time.perf_counter(), time.process_time()
    async with engine.rollout(tasks, sampling=Sampling(max_tokens=4), journal=journal) as rollout:
        async for trajectory in rollout:
            if count == 0:
                live = rss_bytes()  # the first has ended: all the others are live
            count += 1
            if not trajectory.success:
                raise RuntimeError(f"an episode ended as {trajectory.outcome}: {trajectory.fault}")
    seconds, used = time.perf_counter() - started, time.process_time() - cpu
    if count != len(tasks):
        raise RuntimeError(f"{count} of {len(tasks)} episodes came back")
    return seconds, used, live - before


def rss_bytes() -> int:
    """Resident set of this process now; the peak where /proc is not to be had."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError:
        return int(_peak_rss_mib() * 2**20)
    return pages * resource.getpagesize()


def _peak_rss_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
