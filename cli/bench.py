"""`rollwave bench`: measure the engine itself, without a model.

Not here: the measurement (`benchmarks.engine`) and comparisons with others
(`python -m rollwave.benchmarks.throughput`).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from . import options
from .output import Output

app = typer.Typer(help="Measure the engine itself.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Measure the engine itself."""


@app.command()
def engine(
    sessions: Annotated[int, typer.Option(min=1, help="Live sessions, all at once.")] = 1024,
    turns: Annotated[int, typer.Option(min=1, help="Turns of each episode.")] = 5,
    latency_ms: Annotated[
        float, typer.Option(min=0.0, help="Time of one request, or of one batch.")
    ] = 20.0,
    per_request_ms: Annotated[
        float, typer.Option(min=0.0, help="What each request adds to its batch.")
    ] = 0.0,
    batch: Annotated[
        int, typer.Option(min=0, help="Most requests in a batch; 0 = each on its own.")
    ] = 0,
    server: Annotated[
        str, typer.Option(help="Ask this OpenAI-compatible server over HTTP instead.")
    ] = "",
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Play sessions against a backend that only waits, and measure what the engine adds.

    JSON keys: sessions, turns, seconds, ideal_seconds, efficiency, turns_per_second,
    cpu_microseconds_per_turn, peak_rss_mib, rss_kib_per_session.
    """
    from ..benchmarks.engine import bench_engine

    figures = bench_engine(
        sessions=sessions,
        turns=turns,
        latency_ms=latency_ms,
        per_request_ms=per_request_ms,
        batch=batch,
        server=server,
        seed=seed,
    )
    output = Output(json=json)
    output.table(
        [
            "sessions",
            "turns",
            "seconds",
            "ideal",
            "efficiency",
            "turns/s",
            "CPU µs/turn",
            "RSS MiB",
        ],
        [
            [
                figures.sessions,
                figures.turns,
                figures.seconds,
                figures.ideal_seconds,
                f"{figures.efficiency:.1%}",
                figures.turns_per_second,
                figures.cpu_microseconds_per_turn,
                figures.peak_rss_mib,
            ]
        ],
    )
    output.result(asdict(figures))
