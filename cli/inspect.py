"""`rollwave inspect DIR`: read a run: its waves, their trajectories, one episode turn by turn.

Not here: how a run is read (`run`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ..engine.codec import unpack_floats, unpack_tokens
from ..engine.trajectory import Outcome, Trajectory
from .output import Output
from .run import Run

OUTCOME_STYLES: Final = {"success": "green", "failure": "red", "fault": "bold red"}


def inspect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")],
    wave: Annotated[
        int | None, typer.Option("--wave", min=0, help="List the trajectories of this wave.")
    ] = None,
    trajectory: Annotated[
        str, typer.Option("--trajectory", metavar="ID", help="Show this one turn by turn.")
    ] = "",
    outcome: Annotated[
        Outcome | None, typer.Option("--outcome", help="List only those that ended so.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="List at most this many trajectories.")
    ] = 50,
    latencies: Annotated[
        Path | None,
        typer.Option(
            "--latencies", metavar="FILE", help="Write how long turns took, for `simulate`."
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Read a run: its waves and outcomes, the trajectories of a wave, one turn by turn."""
    output = Output(json=json_)
    run = Run(directory)
    if latencies is not None:
        _write_latencies(run, wave, latencies, output)
    elif trajectory:
        _show_trajectory(run.find(trajectory, wave), output)
    elif wave is not None or outcome is not None:
        _show_wave(run, wave, outcome, limit, output)
    else:
        _show_run(run, output)


def _write_latencies(run: Run, wave: int | None, path: Path, output: Output) -> None:
    from ..actors.simulation.measured import MeasuredLatencies, write_latencies

    concurrency = run.store.settings.get("concurrency", "")
    numbers = run.numbers if wave is None else [wave]
    measured = MeasuredLatencies.of(
        [trajectory for number in numbers for trajectory in run.read(number)],
        source=str(run.store.path),
        concurrency=int(concurrency) if concurrency.isdecimal() else 0,
    )
    write_latencies(measured, path)
    output.table(
        ("seconds of", "mean", "least", "most"),
        [
            (name, found.mean, found.buckets[0][0], found.buckets[-1][1])
            for name, found in (
                ("a completion", measured.generate),
                ("a step of the environment", measured.step),
                ("an episode outside of its turns", measured.open),
            )
        ],
        title=f"{measured.episodes} episodes, {measured.concurrency or '?'} at once",
    )
    output.text(f"written to {path} (use: rollwave simulate --latency {path})")
    output.result(
        {
            "run": str(run.store.path),
            "latencies": str(path),
            "concurrency": measured.concurrency,
            "episodes": measured.episodes,
            "turns_mean": sum(n * k for n, k in measured.turns) / measured.episodes,
            "generate_mean": measured.generate.mean,
            "step_mean": measured.step.mean,
            "open_mean": measured.open.mean,
        }
    )


def _show_run(run: Run, output: Output) -> None:
    lines = list(run.lines())
    output.heading(f"{run.store.path}, created {run.store.created}")
    if run.store.settings:
        output.table(("setting", "value"), list(run.store.settings.items()))
    output.table(
        (
            "wave",
            "policy",
            "trajectories",
            "in flight",
            *Outcome,
            "success rate",
            "reward",
            "state",
        ),
        [
            (
                line.number,
                line.policy_version,
                line.trajectories,
                line.in_flight,
                *(line.outcomes.get(outcome.value, 0) for outcome in Outcome),
                _percent(line.success_rate),
                line.average_reward,
                "sealed" if line.sealed else "unfinished: run the same command to go on",
            )
            for line in lines
        ],
    )
    if not lines:
        output.text("No wave yet: nothing has been finished in this run.")
    output.result(
        {
            "run": str(run.store.path),
            "created": run.store.created,
            "settings": run.store.settings,
            "waves": lines,
        }
    )


def _show_wave(
    run: Run, wave: int | None, outcome: Outcome | None, limit: int, output: Output
) -> None:
    numbers = run.numbers if wave is None else [wave]
    found = [
        trajectory
        for number in numbers
        for trajectory in run.read(number)
        if outcome is None or trajectory.outcome is outcome
    ]
    shown = found[:limit]
    output.table(
        ("trajectory", "outcome", "reward", "turns", "tokens", "seconds", "what broke"),
        [
            (
                t.id,
                t.outcome.value,
                t.reward,
                len(t.turns),
                t.tokens,
                t.seconds,
                f"{t.fault.kind}: {t.fault.text}" if t.fault else "",
            )
            for t in shown
        ],
        title=f"{len(shown)} of {len(found)} trajectories",
        styles=OUTCOME_STYLES,
    )
    output.result(
        {
            "run": str(run.store.path),
            "matching": len(found),
            "trajectories": [_summary(t) for t in shown],
        }
    )


def _show_trajectory(trajectory: Trajectory, output: Output) -> None:
    t = trajectory
    reward = "no reward" if t.reward is None else f"reward {t.reward:g}"
    output.heading(
        f"{t.id}  {t.env}  {t.outcome}, {reward}, {len(t.turns)} turns, {t.tokens} tokens"
    )
    oldest, newest = t.versions
    versions = f"version {oldest}" if oldest == newest else f"versions {oldest} to {newest}"
    output.text(
        f"policy {t.policy or '-'} {versions}, temperature {t.temperature:g}, seed {t.seed}"
    )
    for message in t.prompt:
        _said(output, message.role, message.text)
    for number, turn in enumerate(t.turns, 1):
        output.heading(f"\nturn {number} of {len(t.turns)}")
        _said(output, "observation", turn.observation)
        _said(output, "completion", turn.completion)
        if turn.format_error:
            output.text("  the completion did not follow the format: no action was taken")
        elif turn.action != turn.completion:
            _said(output, "action", turn.action)
        output.text(
            f"  reward {turn.reward:g}, {turn.end - turn.start} tokens ({turn.finish}), "
            f"written in {turn.generate_seconds * 1e3:.1f} ms, "
            f"answered in {turn.step_seconds * 1e3:.1f} ms"
        )
    if t.final_observation:
        output.heading("\nend")
        _said(output, "observation", t.final_observation)
    if t.truncation:
        output.text(f"  ended by our limit of {t.truncation}")
    if t.fault:
        output.text(f"  fault in turn {t.fault.turn}: {t.fault.kind}: {t.fault.text}")
    output.result({"trajectory": _whole(t)})


def _said(output: Output, who: str, text: str) -> None:
    body = text.strip("\n").replace("\n", "\n" + " " * 15)
    output.text(f"  {who:<11}  {body}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _summary(t: Trajectory) -> dict[str, Any]:
    return {
        "id": t.id,
        "env": t.env,
        "task_id": t.task_id,
        "wave": t.wave,
        "attempt": t.attempt,
        "outcome": t.outcome.value,
        "reward": t.reward,
        "turns": len(t.turns),
        "tokens": t.tokens,
        "sampled_tokens": t.sampled_tokens,
        "versions": t.versions,
        "seconds": t.seconds,
        "fault": t.fault
        and {"kind": t.fault.kind.value, "text": t.fault.text, "turn": t.fault.turn},
    }


def _whole(t: Trajectory) -> dict[str, Any]:
    """Give every field of the record by name, the packed ones as lists."""
    return {
        **{name: _plain(getattr(t, name)) for name in t.__struct_fields__},
        "token_ids": list(unpack_tokens(t.token_ids)),
        "loss_mask": list(t.loss_mask),
        "logprobs": list(unpack_floats(t.logprobs)),
    }


def _plain(value: Any) -> Any:
    """Name the fields of records, which are arrays on the wire, at any depth."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if hasattr(value, "__struct_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    return value
