"""`rollwave simulate`: what a rollout would take, on a virtual clock.

Not here: the simulation (`actors.simulation`), its picture (`simulation_figure`).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..actors.simulation.simulation import Simulated, SimulationSettings
from ..actors.simulation.simulation import simulate as run
from ..actors.simulation.sources import Source, latency_source
from ..actors.simulation.sweep import knee
from ..engine.disk import Disk
from ..engine.errors import ConfigError, storage_error
from . import options
from .interrupt import keeping
from .output import Output, to_json
from .progress import progress_view


def simulate(
    sessions: Annotated[int, typer.Option(min=1, help="Episodes to play in all.")] = 10_000,
    turns: Annotated[
        int, typer.Option(min=0, help="Turns of each episode; 0 = as measured, or 10.")
    ] = 0,
    latency: Annotated[
        str,
        typer.Option(
            metavar="FILE|NAME",
            help="Of a completion: `constant?seconds=0.02`, `uniform?low=0.5&high=1.5`, "
            "`lognormal?median=0.8&sigma=1`, a preset, or a file of `inspect --latencies`.",
        ),
    ] = "answers",
    step_latency: Annotated[
        str,
        typer.Option(
            metavar="FILE|NAME", help="Of an environment step; as measured, or none, if not given."
        ),
    ] = "",
    faults: Annotated[
        str, typer.Option(metavar="PLAN", help="A fault plan: a TOML file, or a preset's name.")
    ] = "",
    concurrency: Annotated[
        int, typer.Option(min=0, help="Live sessions at most; 0 = as measured, or 1024.")
    ] = 0,
    batch: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Requests that a replica serves at once; 0 = without bound. 256, or 0 "
            "for measured latencies.",
        ),
    ] = None,
    replicas: Annotated[
        str, typer.Option(help="Inference servers; several numbers by comma are compared.")
    ] = "1",
    turn_seconds: options.TurnSeconds = 120.0,
    episode_seconds: options.EpisodeSeconds = 3600.0,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every event as a line of JSON.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write simulation.json and simulation.png.")
    ] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Simulate a rollout on a virtual clock: the real engine, with latencies in place of a model.

    It says how long a rollout would take, what it would wait for, and how many inference
    servers are worth it. The same seed gives the same events.
    """
    source = latency_source(latency, step=step_latency, turns=turns)
    measured = source.measured
    plan = _plan(faults)
    settings = [
        SimulationSettings(
            sessions=sessions,
            latencies=source.latencies,
            concurrency=concurrency or (measured.concurrency if measured else 0) or 1024,
            replicas=number,
            batch=batch if batch is not None else 0 if measured else 256,
            seed=seed,
            turn_seconds=turn_seconds,
            episode_seconds=episode_seconds,
            faults=plan,
        )
        for number in _numbers(replicas)
    ]
    output = Output(json=json)
    if measured and not measured.concurrency and not concurrency:
        output.warn(
            f"{latency} does not say at which concurrency it was measured; simulated with "
            f"{settings[0].concurrency}"
        )
    results: list[Simulated] = []
    with keeping(lambda: "a simulation keeps nothing; a trace ends where it was"):
        for each in settings:
            title = f"simulate, replicas: {each.replicas}"
            with progress_view(title, output.live) as view:
                path = trace if not results else None
                results.append(run(each, trace=path, watch=view.update))
    _show(results, source, output)
    values = _values(results, source, latency)
    if out is not None:
        _write(out, results, values)
        output.text(f"figure in {out / 'simulation.png'}, figures in {out / 'simulation.json'}")
    output.result(values)


def _plan(name: str) -> Any:
    if not name:
        return None
    from ..actors.simulation.fault_plan import find_plan

    return find_plan(name)


def _numbers(text: str) -> list[int]:
    """Read `1,2,4,8`: rising numbers above 0."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1 or numbers != sorted(set(numbers)):
        raise ConfigError(f"--replicas takes rising numbers like 1,2,4,8, not {text!r}")
    return numbers


def _show(results: list[Simulated], source: Source, output: Output) -> None:
    first = results[0]
    output.heading(
        f"{first.sessions:,} episodes, {first.concurrency:,} at once, batch "
        f"{first.batch or 'without bound'}"
    )
    output.text(f"latencies {source.origin}")
    output.table(
        (
            "replicas",
            "seconds",
            "turns/s",
            "batch fill",
            "waiting",
            "lower bound",
            "efficiency",
            "lock-step",
            "CPU s",
        ),
        [
            (
                result.replicas,
                result.wall_seconds,
                result.turns_per_second,
                f"{result.batch_fill:.1%}" if result.batch_fill is not None else None,
                result.waiting_mean,
                result.lower_bound_seconds,
                f"{result.efficiency:.1%}",
                result.lock_step_seconds,
                result.cpu_seconds,
            )
            for result in results
        ],
    )
    output.table(
        ("queue", "capacity", "peak", "peak waiting for room"),
        [
            (name, queue.capacity or "none", queue.peak, queue.peak_waiting)
            for name, queue in first.queues.items()
        ],
    )
    outcomes = {**first.outcomes, **{f"fault: {kind}": n for kind, n in first.faults.items()}}
    output.table(("outcome", "episodes"), list(outcomes.items()))
    if first.struck:
        output.table(("injected", "times"), sorted(first.struck.items()))
    if first.lock_step_seconds and first.wall_seconds:
        output.text(
            f"Lock-step waves of the same draws take {first.lock_step_seconds:,.1f} s, "
            f"{first.lock_step_seconds / first.wall_seconds:.2f} times as long."
        )
    output.text(knee(results)[1])
    output.text(f"digest {first.digest} of {first.events:,} events")


def _values(results: list[Simulated], source: Source, latency: str) -> dict[str, Any]:
    figures = [_figures(result) for result in results]
    best, advice = knee(results)
    return {
        **figures[0],
        "latency": latency,
        "origin": source.origin,
        "advice": advice,
        "worthwhile_replicas": best,
        "sweep": figures if len(figures) > 1 else [],
    }


def _figures(result: Simulated) -> dict[str, Any]:
    figures = asdict(result)
    del figures["timeline"]
    return figures


def _write(out: Path, results: list[Simulated], values: dict[str, Any]) -> None:
    from .simulation_figure import draw_simulation

    timeline = [asdict(point) for point in results[0].timeline]
    try:
        out.mkdir(parents=True, exist_ok=True)
        data = (to_json({**values, "timeline": timeline}) + "\n").encode()
        Disk().replace(out / "simulation.json", data)
        draw_simulation(results, out / "simulation.png")
    except OSError as error:
        raise storage_error(error, out) from error
