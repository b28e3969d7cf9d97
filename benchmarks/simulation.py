"""Does a simulation predict a real run? Predicted against real wall-clock, in one process.

    python -m rollwave.benchmarks.simulation

For each backend two real runs are made, with different seeds. The latencies of the first
are written to a file, as `rollwave inspect DIR --latencies` does, and simulated at the
same concurrency. The prediction is compared with the run that was measured, and with the
other one, which the file knows nothing of. The bar: within 15 %.

* `stub server, heavy tail`: HTTP to the stub of `stub_server`, log-normal latencies that
  do not depend on load;
* `vLLM`, `transformers`: a tiny Llama made on the spot plays the maze; its latencies
  depend on what else is in the batch, and on the machine.

Not here: the simulation (`actors.simulation`), and what the engine costs (`engine`).
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from ..actors.backends.openai import OpenAIBackend
from ..actors.embedding import EngineSettings, open_engine
from ..actors.policy_source import BackendName, PolicySource, policy_source
from ..actors.protocol import Sampling
from ..actors.simulation.measured import MeasuredLatencies, write_latencies
from ..actors.simulation.simulation import SimulationSettings, simulate
from ..actors.simulation.sources import latency_source
from ..actors.simulation.world import world
from ..cli.output import Output
from ..engine.journal import Journal
from ..engine.trajectory import Trajectory
from ..envs.base import EnvSpec
from ..envs.registry import resolve
from .report import Spread, write
from .stub_server import stub_server

BAR: Final = 0.15
MAZE: Final = "maze-grid-v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One kind of backend, and what it is asked to do."""

    name: str
    open: Callable[[int], Any]
    """Gives, for a seed, a context manager of (policy source, environment)."""
    sessions: int
    concurrency: int
    max_tokens: int = 4


@dataclass(frozen=True, slots=True)
class Prediction:
    """One real run, what was predicted for it, and for the next."""

    real: float
    other: float
    """The run with another seed."""
    predicted: float

    @property
    def error(self) -> float:
        """Of the prediction for the run that was measured, signed."""
        return self.predicted / self.real - 1.0

    @property
    def held_out(self) -> float:
        """Of the prediction for the run that was not, signed."""
        return self.predicted / self.other - 1.0


def predict(workload: Workload, seed: int, folder: Path) -> Prediction:
    """Make both runs, and simulate the first from its file of latencies."""
    file = folder / "latencies.json"
    seconds: list[float] = []
    for number in (0, 1):
        with workload.open(2 * seed + number) as (source, spec):
            trajectories, wall = trio.run(_play, workload, source, spec, 2 * seed + number, folder)
        seconds.append(wall)
        if number == 0:
            measured = MeasuredLatencies.of(
                trajectories, source=workload.name, concurrency=workload.concurrency
            )
            write_latencies(measured, file)
    settings = SimulationSettings(
        sessions=workload.sessions,
        latencies=latency_source(str(file)).latencies,
        concurrency=workload.concurrency,
        batch=0,
        seed=seed,
    )
    return Prediction(seconds[0], seconds[1], simulate(settings).wall_seconds)


async def _play(
    workload: Workload, source: PolicySource, spec: EnvSpec, seed: int, folder: Path
) -> tuple[list[Trajectory], float]:
    """Play it for real, with a journal; a few episodes first warm the backend up."""
    settings = EngineSettings(concurrency=workload.concurrency, seed=seed)
    path = folder / f"journal-{seed}"
    async with (
        await Journal.open(path) as journal,
        open_engine(source, settings=settings) as engine,
    ):
        tasks = engine.use(spec).numbered(range(workload.sessions))
        sampling = Sampling(temperature=1.0, max_tokens=workload.max_tokens)
        async for _ in engine.rollout(tasks[: workload.concurrency], wave=1, sampling=sampling):
            pass
        began = time.perf_counter()
        rollout = engine.rollout(tasks, sampling=sampling, journal=journal)
        trajectories = [trajectory async for trajectory in rollout]
        seconds = time.perf_counter() - began
    faults = [t.fault for t in trajectories if t.fault is not None]
    if faults:
        raise RuntimeError(f"{len(faults)} episodes of {workload.name} faulted: {faults[0]}")
    path.unlink()
    return trajectories, seconds


def workloads(folder: Path) -> Iterator[Workload]:
    """What can run here."""

    @contextmanager
    def stub(seed: int) -> Iterator[tuple[PolicySource, EnvSpec]]:
        with stub_server(40.0, sigma=1.0, seed=seed) as url:
            source = PolicySource(
                kind="model", name="stub", make_backend=lambda _v, _p: OpenAIBackend(url)
            )
            yield source, world(1024, lambda _: 8, 8)

    yield Workload(name="stub server, heavy tail", open=stub, sessions=1024, concurrency=64)
    backends: tuple[tuple[BackendName, int], ...] = (("vllm", 600), ("transformers", 320))
    for backend, sessions in backends:
        if importlib.util.find_spec(backend) is not None:
            yield Workload(
                name=f"{backend}, tiny Llama",
                open=_model(backend, folder),
                sessions=sessions,
                concurrency=32,
            )


def _model(backend: BackendName, folder: Path) -> Callable[[int], Any]:
    spec = resolve(MAZE)

    @contextmanager
    def opened(_seed: int) -> Iterator[tuple[PolicySource, EnvSpec]]:
        path = folder / "tiny"
        if not path.exists():
            from ..learners.model.tiny import make_tiny_model

            make_tiny_model(path, vocabulary=spec.vocabulary, context=512)
        yield policy_source(str(path), backend=backend, batch=32, kv_cache_gib=0.5), spec

    return opened


def main() -> None:
    """Measure, print one table, write one JSON file."""
    parser = argparse.ArgumentParser(description="Simulated against real wall-clock.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="backends whose name has this in it")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/simulation.json"))
    options = parser.parse_args()
    found: dict[str, list[Prediction]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = [w for w in workloads(folder) if options.only in w.name]
        for round_ in range(options.rounds):
            for workload in chosen:
                found.setdefault(workload.name, []).append(predict(workload, round_, folder))
    report(found, options.out)


def report(found: dict[str, list[Prediction]], out: Path) -> None:
    """Print the table and write the file."""
    Output().table(
        ("backend", "real, s", "predicted, s", "error", "error, other run", f"bar {BAR:.0%}"),
        [
            (
                name,
                str(Spread.of([p.real for p in predictions])),
                str(Spread.of([p.predicted for p in predictions])),
                _percent([p.error for p in predictions]),
                _percent([p.held_out for p in predictions]),
                "met" if all(abs(p.error) <= BAR for p in predictions) else "missed",
            )
            for name, predictions in found.items()
        ],
    )
    write(
        out,
        {
            "bar": BAR,
            "backends": {
                name: [
                    {
                        "real_seconds": p.real,
                        "other_seconds": p.other,
                        "predicted_seconds": p.predicted,
                        "error": p.error,
                        "held_out_error": p.held_out,
                    }
                    for p in predictions
                ]
                for name, predictions in found.items()
            },
        },
    )


def _percent(values: Sequence[float]) -> str:
    spread = Spread.of(values)
    return f"{spread.median:+.1%} ({spread.least:+.1%} to {spread.most:+.1%})"


if __name__ == "__main__":
    main()
