"""Many live sessions in one process: their memory, and how fast they can be cancelled.

    python -m rollwave.benchmarks.sessions --sessions 10000

Every session is in the middle of its first turn, waiting for a completion that does
not come: its actor, mailbox, task, deadline, episode and waiting request are all there.
The environment's own state is a counter. Each measurement is a fresh process.

Not here: speed (`engine`, `throughput`).
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import trio

from ..actors.backends.latency import ConstantLatency
from ..actors.backends.scripted import ScriptedBackend
from ..actors.embedding import Engine, EngineSettings, open_engine
from ..actors.policy_source import PolicySource
from ..actors.protocol import DescribeInference, InferenceStatus
from ..cli.output import Output
from ..envs.base import EnvSpec
from .engine import Countdown, rss_bytes
from .report import Spread, write

BAR_KIB: Final = 20.0
BAR_SECONDS: Final = 5.0
_NEVER: Final = 3600.0


@dataclass(frozen=True, slots=True)
class SessionFigures:
    """One measurement."""

    sessions: int
    kib_per_session: float
    """Growth of the resident set from an idle engine to all sessions waiting."""
    start_seconds: float
    """From the first admission until all wait."""
    cancel_seconds: float
    """From the wish to stop until the engine has closed behind the last of them."""


def measure(sessions: int) -> SessionFigures:
    """Start that many sessions, wait until all are live, cancel them."""
    spec = EnvSpec(
        id="countdown-v1",
        make=lambda: Countdown(2),
        splits={"test": range(sessions)},
        action_format="raw",
    )

    def make(_version: int, _path: str) -> ScriptedBackend:
        return ScriptedBackend(ConstantLatency(_NEVER), takes_tokens=False)

    source = PolicySource(kind="model", name="scripted", make_backend=make)

    async def run() -> SessionFigures:
        settings = EngineSettings(concurrency=sessions, turn_seconds=2 * _NEVER)
        async with open_engine(source, settings=settings) as engine:
            tasks = engine.use(spec).tasks("test")
            gc.collect()
            before, started = rss_bytes(), time.perf_counter()
            async with trio.open_nursery() as nursery, engine.rollout(tasks) as rollout:
                nursery.start_soon(rollout.__anext__)  # never gets one: it is cancelled
                while await _waiting(engine) < sessions:  # noqa: ASYNC110 (a status is polled)
                    await trio.sleep(0.01)
                live = time.perf_counter()
                growth = rss_bytes() - before
                nursery.cancel_scope.cancel()
        ended = time.perf_counter()
        return SessionFigures(sessions, growth / sessions / 1024, live - started, ended - live)

    return trio.run(run)


async def _waiting(engine: Engine) -> int:
    """Requests that wait for a completion: one for each session that is in its turn."""
    assert engine.inference is not None  # a model acts in this benchmark
    status = await engine.inference.ask(DescribeInference(), InferenceStatus, timeout=60.0)
    return status.waiting


def main() -> int:
    """Measure in fresh processes, print the table, write one JSON; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description="Memory and cancellation of live sessions.")
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/sessions.json"))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        gc.set_threshold(50_000, 20, 50)  # as the `rollwave` command does, and for its reason
        print(json.dumps(asdict(measure(options.sessions))))
        return 0
    command = [sys.executable, "-m", "rollwave.benchmarks.sessions", "--one"]
    command += [f"--sessions={options.sessions}"]
    runs = [
        SessionFigures(**json.loads(subprocess.check_output(command, text=True).splitlines()[-1]))
        for _ in range(options.repeats)
    ]
    memory = Spread.of([run.kib_per_session for run in runs])
    start = Spread.of([run.start_seconds for run in runs])
    cancel = Spread.of([run.cancel_seconds for run in runs])
    met = memory.median <= BAR_KIB and cancel.median < BAR_SECONDS
    output = Output()
    output.table(
        [f"{options.sessions:,} live sessions", "median (least to most)", "bar"],
        [
            ["KiB each", str(memory), f"at most {BAR_KIB:g}"],
            ["seconds to start all", str(start), None],
            ["seconds to cancel all", str(cancel), f"under {BAR_SECONDS:g}"],
        ],
    )
    output.text(f"bars: {'met' if met else 'MISSED'}")
    figures = {
        "sessions": options.sessions,
        "kib_per_session": asdict(memory),
        "start_seconds": asdict(start),
        "cancel_seconds": asdict(cancel),
        "met": met,
    }
    write(options.out, figures)
    output.text(f"written to {options.out}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
