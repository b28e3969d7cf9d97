"""Steps a second of every registered environment, in process, on one core.

    python -m rollwave.benchmarks.worlds
    python -m rollwave.benchmarks.worlds babyai-v1 maze-grid-v1?size=9

The expert's episodes are recorded in a process of their own, and then played in fresh ones:
first with nothing cached, then once more. Only the steps are timed; a reset has a column of
its own. Bars are for the first play. An environment whose package is missing is said to be.

Not here: the engine around the worlds (`engine`), and worlds in worker processes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ..cli.output import Output
from ..engine.errors import ConfigError
from ..envs.base import EnvSpec, Task
from ..envs.registry import families, resolve
from .report import Spread, write

BARS: Final[Mapping[str, float]] = {
    "alfworld-v1": 10_000,
    "babyai-v1": 1_500,
    "maze-grid-v1": 50_000,
    "maze-v1": 50_000,
    "sciworld-v1": 80,
    "textcraft-v1": 50_000,
    "wordle-fixed-v1": 50_000,
    "wordle-v1": 50_000,
}
"""Least steps a second; environments that are not here have no bar."""

_RECORD_SECONDS: Final = 20.0
_PROCESSES: Final = 5

Episode = tuple[int, str, list[str]]
"""Task number, split and actions."""


@dataclass(frozen=True, slots=True)
class WorldFigures:
    """One environment."""

    episodes: int
    steps: int
    first: Spread
    """Steps a second with nothing cached, one figure a process."""
    again: Spread
    """Steps a second when the same episodes are played once more."""
    reset_ms: Spread
    """Mean of the first play, one figure a process."""


def record(spec: EnvSpec, episodes: int) -> list[Episode]:
    """Play tasks spread over all splits as the expert does, or round the legal actions."""
    every = [
        task
        for split, members in spec.splits.items()
        for task in _spread(spec, split, members, episodes // len(spec.splits))
    ]
    played: list[Episode] = []
    until = time.monotonic() + _RECORD_SECONDS
    env = spec.make()
    for task in every:
        env.reset(task, 0)
        actions: list[str] = []
        for turn in range(spec.turn_limit):
            action = env.expert()
            if action is None:
                legal = env.available_actions()
                action = legal[turn % len(legal)] if legal else "x"
            actions.append(action)
            if env.step(action).done:
                break
        played.append((task.index, task.split, actions))
        if time.monotonic() > until:
            break
    env.close()
    return played


def _spread(spec: EnvSpec, split: str, members: Any, count: int) -> list[Task]:
    count = max(1, min(count, len(members)))
    return [Task(spec.id, members[n * len(members) // count], split) for n in range(count)]


def play(spec: EnvSpec, episodes: list[Episode]) -> tuple[float, float, int]:
    """Seconds in steps, seconds in resets, and the number of steps."""
    stepping = resetting = 0.0
    steps = 0
    env = spec.make()
    for index, split, actions in episodes:
        began = time.perf_counter()
        env.reset(Task(spec.id, index, split), 0)
        ready = time.perf_counter()
        for action in actions:
            env.step(action)
        stepping += time.perf_counter() - ready
        resetting += ready - began
        steps += len(actions)
    env.close()
    return stepping, resetting, steps


def measure(id: str, episodes: int) -> WorldFigures:
    """Record in one process, play in another.

    Raises:
        ConfigError: the environment cannot be made here.
    """
    recorded = _child("record", id, episodes, "")
    runs = [_child("play", id, episodes, recorded) for _ in range(_PROCESSES)]
    first, again, resets = zip(*(run["figures"] for run in runs), strict=True)
    steps = sum(len(actions) for _, _, actions in recorded)
    return WorldFigures(len(recorded), steps, Spread.of(first), Spread.of(again), Spread.of(resets))


def _child(what: str, id: str, episodes: int, given: Any) -> Any:
    command = [sys.executable, "-m", "rollwave.benchmarks.worlds", id]
    command += [f"--episodes={episodes}", f"--one={what}"]
    run = subprocess.run(
        command, input=json.dumps(given), capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        raise ConfigError(run.stderr.strip().splitlines()[-1] if run.stderr else f"{id} failed")
    return json.loads(run.stdout.splitlines()[-1])


def _one(what: str, id: str, episodes: int) -> int:
    """The work of a child process: JSON in, JSON out."""
    spec = resolve(id)
    given = json.load(sys.stdin)
    if what == "record":
        print(json.dumps(record(spec, episodes)))
        return 0
    spec.make().reset(Task(spec.id, given[0][0], given[0][1]), 0)  # imports and data files
    stepping, resetting, steps = play(spec, given)
    again = play(spec, given)[0]
    figures = (steps / stepping, steps / again, 1e3 * resetting / len(given))
    print(json.dumps({"figures": figures}))
    return 0


def main() -> int:
    """Measure, print the table, write one JSON; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description="Steps a second of every environment.")
    parser.add_argument("ids", nargs="*", help="environment ids; all that are registered")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/worlds.json"))
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return _one(options.one, options.ids[0], options.episodes)
    output = Output()
    rows: list[list[str | None]] = []
    figures: dict[str, Any] = {}
    met = True
    for id in options.ids or [family.id for family in families()]:
        bar = BARS.get(id)
        try:
            found = measure(id, options.episodes)
        except ConfigError as error:
            rows.append([id, "not measured", str(error)[:60], None, None])
            figures[id] = {"error": str(error)}
            continue
        met = met and (bar is None or found.first.median >= bar)
        rows.append(
            [
                id,
                str(found.first),
                str(found.again),
                f"{found.reset_ms.median:.2f}",
                None if bar is None else f"{bar:,.0f}",
            ]
        )
        figures[id] = asdict(found) | {"bar": bar}
    output.table(["environment", "steps/s, first play", "played again", "reset, ms", "bar"], rows)
    output.text(f"bars: {'met' if met else 'MISSED'}")
    write(options.out, {"environments": figures, "met": met})
    output.text(f"written to {options.out}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
