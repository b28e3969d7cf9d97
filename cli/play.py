"""What `rollout` and `evaluate` share: play a wave of tasks into a run directory.

Not here: their options (each in its own file) and the figures (`actors.evaluator`).
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast, get_args

from ..actors.embedding import Engine, EngineSettings, open_engine
from ..actors.evaluator import Evaluation, evaluate, summarise
from ..actors.monitor import Snapshot
from ..actors.policy_source import BackendName, policy_source
from ..actors.protocol import Sampling
from ..actors.turnlog import read_progress
from ..actors.waves import WavePlan, play_wave, require_settings
from ..engine.errors import ConfigError, UnknownEnvironment
from ..engine.store import Store
from ..engine.trajectory import Trajectory
from ..envs.base import EnvSpec, Task
from ..envs.registry import resolve
from .attempts import report_attempts
from .envs import find
from .interrupt import keeping, run
from .output import Output
from .progress import progress_view


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayOptions:
    """The options both commands take, as the user wrote them."""

    env: str
    tasks: str | None
    split: str | None
    limit: int | None
    attempts: int
    policy: str
    backend: BackendName
    model: str
    tokenizer: str
    context: int
    batch: int
    temperature: float
    max_tokens: int
    concurrency: int
    workers: int = 0
    turn_limit: int
    turn_seconds: float
    episode_seconds: float
    seed: int
    out: Path


@dataclass(frozen=True, slots=True)
class Played:
    """What was played, and its figures."""

    resumed: int
    """Episodes that went on in the middle, where a crash had left them."""
    restarted: int
    """Episodes that began anew, because their turns before a crash could not be rebuilt."""
    trajectories: tuple[Trajectory, ...]
    evaluations: list[Evaluation]
    total: Evaluation
    seconds: float
    wave: Path


def choose_tasks(env: str, tasks: str | None, split: str | None, limit: int | None) -> list[Task]:
    """The tasks of one or several environments (comma-separated), by split or by number.

    Raises:
        ConfigError: both or neither can be read; the text says which option is wrong.
    """
    if tasks is not None and split is not None:
        raise ConfigError("give --tasks A:B or --split NAME, not both")
    chosen: list[Task] = []
    for name in filter(None, (part.strip() for part in env.split(","))):
        spec = _playable(name)
        if tasks is None:
            chosen += spec.tasks(split or "test", limit=limit)
        else:
            chosen += spec.numbered(_numbers(tasks))[:limit]
    if not chosen:
        raise ConfigError("no task is left to play: check --env, --tasks, --split and --limit")
    return chosen


def _playable(name: str) -> EnvSpec:
    """The spec of an id or of `module:FAMILY`, which the engine finds again by its id."""
    spec = find(name)
    try:
        return resolve(spec.id)
    except UnknownEnvironment:
        raise ConfigError(f"{name} is one spec, not a family: name its EnvFamily") from None


def _numbers(text: str) -> list[int]:
    """Read `A:B` (B excluded), `A`, or a comma-separated mix of them."""
    numbers: list[int] = []
    for part in text.split(","):
        first, colon, last = part.partition(":")
        try:
            start = int(first)
            stop = int(last) if colon else start + 1
        except ValueError:
            raise ConfigError(
                f"--tasks takes numbers like 0:40 or 3,7,10:20, not {text!r}"
            ) from None
        if start < 0 or stop <= start:
            raise ConfigError(f"--tasks {part!r} is empty: give A:B with 0 <= A < B")
        numbers.extend(range(start, stop))
    return numbers


def play(options: PlayOptions, output: Output, title: str) -> Played:
    """Play the wave, or what is missing of it, and measure it."""
    tasks = choose_tasks(options.env, options.tasks, options.split, options.limit)
    source = policy_source(
        options.policy,
        backend=options.backend,
        context=options.context,
        batch=options.batch,
        model=options.model,
        tokenizer=options.tokenizer,
        seed=options.seed,
    )
    limits = EngineSettings(
        concurrency=options.concurrency,
        seed=options.seed,
        turn_seconds=options.turn_seconds,
        episode_seconds=options.episode_seconds,
        workers=options.workers,
    )
    plan = WavePlan(
        number=0,
        tasks=tasks,
        attempts=options.attempts,
        sampling=Sampling(temperature=options.temperature, max_tokens=options.max_tokens),
        turn_limit=options.turn_limit,
    )
    settings = {
        "command": title.split()[0],
        "env": options.env,
        "tasks": options.tasks or f"{options.split or 'test'}[:{options.limit or ''}]",
        "attempts": str(options.attempts),
        "policy": options.policy,
        "temperature": str(options.temperature),
        "max_tokens": str(options.max_tokens),
        "turn_limit": str(options.turn_limit),
        "seed": str(options.seed),
    }
    started = time.perf_counter()
    # Free to change when a run goes on; what latencies were measured at.
    about = {"concurrency": str(options.concurrency)}
    with Store.open(options.out, settings=settings | about) as store:
        require_settings(store, settings)

        def kept() -> str:
            ended, begun = read_progress(store.journal_path)
            middle = f", and {len(begun)} in the middle" if begun else ""
            return (
                f"{len(ended)} of {len(plan.manifest())} episodes are kept{middle}, in "
                f"{options.out}; the same command again plays the rest"
            )

        async def rollout() -> tuple[tuple[Trajectory, ...], Snapshot]:
            async with open_engine(source, settings=limits) as engine:
                return await _watched(engine, store, plan, output, title)

        with keeping(kept):
            trajectories, last = run(rollout)
        wave = next(info.path for info in store.waves() if info.number == 0)
    return Played(
        last.resumed,
        last.restarted,
        trajectories,
        evaluate(trajectories),
        summarise("all", trajectories),
        time.perf_counter() - started,
        Path(wave),
    )


async def _watched(
    engine: Engine, store: Store, plan: WavePlan, output: Output, title: str
) -> tuple[tuple[Trajectory, ...], Snapshot]:
    """The trajectories, and the last snapshot of playing them."""
    with progress_view(title, output.live) as view:
        wave = await play_wave(engine, store, plan, watch=view.update, stage="playing")
        return wave.trajectories, view.snapshot or Snapshot()


def backend_name(text: str) -> BackendName:
    """Read `--backend`.

    Raises:
        ConfigError: no such backend.
    """
    if text not in get_args(BackendName):
        raise ConfigError(f"--backend is one of {', '.join(get_args(BackendName))}, not {text!r}")
    return cast(BackendName, text)


def report(played: Played, output: Output, *, figures: bool = False) -> None:
    """Print what was played: outcomes always, the evaluation's figures if asked for.

    JSON keys: `episodes`, `outcomes`, `faults`, `success_rate`, `interval`,
    `average_reward`, `average_reward_error`, `average_reward_scored`, `turns`, `turns_mean`,
    `format_errors`, `truncated`, `seconds`, `turns_per_second`, `resumed`, `restarted`, `wave`,
    `environments`; with `figures` also `best_of`.
    """
    rows = played.evaluations + ([played.total] if len(played.evaluations) > 1 else [])
    columns = ["environment", "episodes", "success", "95 % interval", "reward", "turns"]
    columns += ["format errors", "truncated"] if figures else []
    names = [name for name, n in played.total.outcomes.items() if n]
    output.table(
        [*columns, *(["faults"] if figures else names)],
        [
            [
                row.env,
                row.episodes,
                f"{row.success_rate:.1%}",
                f"{row.interval[0]:.1%} to {row.interval[1]:.1%}",
                row.average_reward,
                row.turns_mean,
                *([f"{row.format_errors:.1%}", f"{row.truncated:.1%}"] if figures else []),
                *(
                    [sum(row.faults.values())]
                    if figures
                    else [row.outcomes[name] for name in names]
                ),
            ]
            for row in rows
        ],
    )
    attempts = report_attempts(played.trajectories, output) if figures else None
    total = played.total
    output.text(
        f"{total.turns} turns in {played.seconds:.1f} s; trajectories in {played.wave} "
        f"(look: rollwave inspect {played.wave.parent.parent})"
    )
    if played.resumed:
        output.text(f"{played.resumed} episodes went on in the middle, behind their earlier turns")
    if played.restarted:
        output.warn(
            f"{played.restarted} episodes began anew: they could not be rebuilt from their "
            "earlier turns (the log says why)"
        )
    if total.faults:
        kinds = ", ".join(f"{n} {kind}" for kind, n in total.faults.items())
        output.warn(f"faults: {kinds}; they have no reward and are never learnt from")
    figures_of_all = {k: v for k, v in asdict(total).items() if k not in ("env", "tasks")}
    output.result(
        {
            **figures_of_all,
            "seconds": played.seconds,
            "turns_per_second": total.turns / played.seconds if played.seconds else 0.0,
            "resumed": played.resumed,
            "restarted": played.restarted,
            "wave": str(played.wave),
            **({"best_of": attempts} if figures else {}),
            "environments": {row.env: asdict(row) for row in played.evaluations},
        }
    )
