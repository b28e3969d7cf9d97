"""Plays recorded actions through the world again and compares every answer.

Two kinds of record: trajectories as AgentGym publishes them (see `agentgym.playback` for
how each world takes them up), and our own, of a sealed wave or a run.

What counts: each observation the agent saw is one comparison of text with text, the first
included; differences of wording that a world's playback lets pass are counted. A last answer
that is not published is not compared. The reward of an episode is compared once. Published
files rarely have rewards: AgentTraj keeps successful episodes only, so where an item has none,
what solved episodes earn is expected (1; in BabyAI more than half), and the world must have
ended the episode on the last published action (in SciWorld, or on the last but one).

Invariant: a report's counts add up: each observation and each reward that is not equal has
a `Difference`, in the order of the file; one of kind TASK stands for all of its episode.

Not here: reading files (`agentgym.trajectories`, `engine.store`), printing (`cli.replay`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from ..engine.errors import BadDataFile, ConfigError
from ..engine.store import Store
from ..engine.trajectory import Trajectory
from ..engine.wavefile import read_wave
from .agentgym.playback import Playback, action_of, playback
from .agentgym.trajectories import Published, read_trajectories
from .base import Environment, StepResult, Task
from .formats import ActionFormat, get_format
from .registry import resolve

_CLOSE: Final = 1e-6
"""Rewards that differ by less are equal: the sums were taken in another order."""


class DifferenceKind(StrEnum):
    """What differs."""

    TASK = "task"
    """The world has no such task: nothing of the episode was played."""
    FIRST_OBSERVATION = "first observation"
    OBSERVATION = "observation"
    ENDED_EARLY = "ended early"
    """The world had ended the episode before the action that this answers."""
    REWARD = "reward"


@dataclass(frozen=True, slots=True)
class Difference:
    """One answer that is not the recorded one."""

    kind: DifferenceKind
    item: str
    """Item id, or id of the trajectory."""
    turn: int
    """Number of the observation: 0 is the first; for a reward the number of actions."""
    expected: str
    """As recorded."""
    got: str
    """As the world answers now."""


@dataclass(slots=True)
class ReplayReport:
    """What came out."""

    source: str
    trajectories: int = 0
    trajectories_equal: int = 0
    """Those with every observation and the reward equal."""
    observations: int = 0
    observations_equal: int = 0
    observations_reworded: int = 0
    """Of the equal ones, those that are so only as far as the world's playback says."""
    rewards: int = 0
    """Rewards compared: faulted and cancelled trajectories have none."""
    rewards_equal: int = 0
    skipped: int = 0
    """Trajectories without a single action."""
    differences: list[Difference] = field(default_factory=list)

    def kinds(self) -> dict[str, int]:
        """Differences by kind, most frequent first."""
        counts = Counter(difference.kind.value for difference in self.differences)
        return dict(counts.most_common())


@dataclass(frozen=True, slots=True)
class _Recorded:
    """One record, whatever its kind, ready to be compared."""

    id: str
    observations: Sequence[str]
    """Before each action, and after the last one where that is known."""
    actions: Sequence[str | None]
    """None: the format was not met and the world was not asked."""
    errors: Sequence[str]
    """For each action that is None, what the agent was told instead."""
    reward: tuple[float, float] | None
    """The least and the most that is right."""
    same: Callable[[str, str], bool] = str.__eq__
    """Whether an answer is the recorded one."""
    spare: int = 0
    """Actions behind the end that are nothing wrong."""


def replay_file(path: str | Path, env: str | None = None) -> ReplayReport:
    """Replay a file of published trajectories, a sealed wave (`.parquet`) or a run directory.

    Args:
        path: what to replay.
        env: the world to use for all of it; by default each record names its own.

    Raises:
        BadDataFile: the file is missing, damaged or of another form.
        ConfigError: a record's world is unknown here.
        StoreError: the run or wave cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        with Store.open(path, exclusive=False) as store:
            waves = [store.read(info.number) for info in store.waves()]
        records = [trajectory for wave in waves for trajectory in wave.trajectories]
        return replay_trajectories(records, env, source=str(path))
    if path.suffix == ".parquet":
        if not path.is_file():
            raise BadDataFile(f"cannot read {path}: no such file")
        return replay_trajectories(read_wave(path).trajectories, env, source=str(path))
    return replay_published(read_trajectories(path), env, source=str(path))


def replay_published(
    episodes: Iterable[Published], env: str | None = None, *, source: str = ""
) -> ReplayReport:
    """Replay trajectories in AgentTraj's format."""
    report = ReplayReport(source)
    playbacks: dict[str, Playback] = {}
    for episode in episodes:
        name = env or episode.env
        if name not in playbacks:
            playbacks[name] = playback(name)
        world = playbacks[name]
        texts = [seen for seen, _ in episode.turns]
        if episode.final_observation is not None:
            texts.append(episode.final_observation)
        record = _Recorded(
            episode.item_id,
            [world.text(text) for text in texts],
            [action_of(completion) for _, completion in episode.turns],
            [""] * len(episode.turns),
            world.solved if episode.reward is None else (episode.reward, episode.reward),
            world.same,
            world.spare,
        )
        try:
            session, first = world.open(episode)
        except ConfigError as error:
            _count_unplayable(report, record, str(error))
            continue
        _compare(report, record, session, first)
    return report


def replay_trajectories(
    trajectories: Iterable[Trajectory], env: str | None = None, *, source: str = ""
) -> ReplayReport:
    """Replay our own trajectories, faulted ones as far as they went.

    An environment is reset with the seed that it had then.
    """
    report = ReplayReport(source)
    for trajectory in trajectories:
        spec = resolve(env or trajectory.env)
        if not trajectory.turns:
            report.skipped += 1
            continue
        record = _own(trajectory, get_format(spec.action_format))
        session = spec.make()
        try:
            task = Task(spec.id, int(trajectory.task_id.rpartition("_")[2]), trajectory.split)
            first = session.reset(task, trajectory.environment_seed)
        except (ConfigError, ValueError) as error:
            _count_unplayable(report, record, str(error))
            continue
        _compare(report, record, session, first)
    return report


def _own(trajectory: Trajectory, form: ActionFormat) -> _Recorded:
    turns = trajectory.turns
    observations = [turn.observation for turn in turns]
    if trajectory.final_observation or trajectory.outcome.scored:
        observations.append(trajectory.final_observation)
    return _Recorded(
        trajectory.id,
        observations,
        [None if turn.format_error else turn.action for turn in turns],
        [form.parse(turn.completion).error if turn.format_error else "" for turn in turns],
        None if trajectory.reward is None else (trajectory.reward, trajectory.reward),
    )


def _compare(report: ReplayReport, record: _Recorded, session: Environment, first: str) -> None:
    """Play the recorded actions in a session that has just been reset."""
    answers = [first]
    reward, over = 0.0, False
    for action, error in zip(record.actions, record.errors, strict=True):
        if over:
            break
        result = StepResult(error) if action is None else session.step(action)
        answers.append(result.observation)
        reward += result.reward
        over = result.done
    session.close()
    played = len(answers) - 1
    differences = [
        _difference(record, turn, answers[turn] if turn < len(answers) else None)
        for turn, expected in enumerate(record.observations)
        if turn >= len(answers) or not record.same(expected, answers[turn])
    ]
    pairs = zip(record.observations, answers, strict=False)
    literal = sum(expected == answer for expected, answer in pairs)
    report.trajectories += 1
    report.observations += len(record.observations)
    equal = len(record.observations) - len(differences)
    report.observations_equal += equal
    report.observations_reworded += equal - literal
    if record.reward is not None:
        report.rewards += 1
        least, most = record.reward
        if (
            least - _CLOSE <= reward <= most + _CLOSE
            and len(record.actions) - played <= record.spare
        ):
            report.rewards_equal += 1
        else:
            early = f", ended after {played} of {len(record.actions)} actions"
            got = f"{reward:g}{early if played < len(record.actions) else ''}"
            expected = f"{least:g}" if least == most else f"{least:g} to {most:g}"
            differences.append(
                Difference(DifferenceKind.REWARD, record.id, len(record.actions), expected, got)
            )
    report.trajectories_equal += not differences
    report.differences += differences


def _difference(record: _Recorded, turn: int, got: str | None) -> Difference:
    expected = record.observations[turn]
    if got is None:
        text = f"the world had ended the episode before action {turn - 1}"
        return Difference(DifferenceKind.ENDED_EARLY, record.id, turn, expected, text)
    kind = DifferenceKind.OBSERVATION if turn else DifferenceKind.FIRST_OBSERVATION
    return Difference(kind, record.id, turn, expected, got)


def _count_unplayable(report: ReplayReport, record: _Recorded, why: str) -> None:
    report.trajectories += 1
    report.observations += len(record.observations)
    report.rewards += record.reward is not None
    report.differences.append(Difference(DifferenceKind.TASK, record.id, 0, "", why))
