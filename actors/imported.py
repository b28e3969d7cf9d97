"""Experts that come from files: which of their trajectories a campaign clones.

    files ─▶ read (`learners.exchange`) ─▶ of this environment? ─▶ solved? ─▶ which task?
          ─▶ of the experts' split? ─▶ played again, where that is needed ─▶ wave 0

Rules: what is of another environment, did not succeed, or is of a task outside the experts'
split is left out and counted; so is every task of the dev and test splits (`evaluation`), since
published files hold such tasks as a matter of course, and a file of thousands is no reason to
ask its owner to cut it by hand. A record that names no task is kept: it can be cloned, but
neither explored nor compared with, and whether it is of an evaluation task nobody can tell;
`assumed` counts these.

Invariants: a trajectory of an evaluation task is never among the experts; experts are text,
whatever tokens a file has: they are tokenised by the model that learns from them; what was read
is kept or left out under one reason, and if nothing is kept, that is an error that says why.

Not here: reading formats (`learners.exchange`), when files are read (`stages`), and what a run
says of them (`expert_files`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..engine.errors import ConfigError
from ..engine.trajectory import ChatMessage, FinishReason, Outcome, Trajectory, Turn
from ..envs.base import EnvSpec, Task
from ..envs.formats import get_format
from .config import CampaignConfig
from .dispatcher import trajectory_id
from .expert_files import Record, Source, digest

if TYPE_CHECKING:
    from .arena import Curriculum


@dataclass(frozen=True, slots=True)
class Imported:
    """The experts of a campaign, and how they came to be."""

    trajectories: tuple[Trajectory, ...]
    record: Record


class GivenUp(Exception):
    """Ends a reading that nobody waits for; nobody sees it either."""


def read_experts(
    config: CampaignConfig, tasks: Curriculum, given_up: Callable[[], bool] = lambda: False
) -> Imported:
    """Read the experts of `experts.path`. Blocks.

    Args:
        given_up: asked between trajectories.

    Raises:
        BadDataFile: a file is missing, damaged, or in no known format.
        ConfigError: nothing of the files can be cloned, or the model lacks their words.
        MissingDependency: a format, or playing again, needs what is not installed.
        EnvironmentLost: the server on which they are played again is gone.
    """
    from ..learners.exchange import Reading, Tally, detect

    tally, chosen = Tally(), _Chosen(config, tasks)
    sources = []
    for path in map(Path, config.experts.paths):
        form = detect(path)  # refuses what is none of ours, before all of it is hashed
        sources.append(Source(str(path), digest(path)))
        # The split is ours to say, and the file's own name for the world decides.
        for trajectory in form.read(path, Reading(split=""), tally):
            if given_up():
                raise GivenUp
            chosen.take(trajectory)
    left_out = tally.left_out + chosen.left_out
    assumed = Counter({"reward": tally.assumed["reward"]}) + chosen.assumed
    record = Record(sources, tally.read, len(chosen.kept), dict(left_out), dict(assumed))
    if not chosen.kept:
        raise ConfigError(_nothing(config, tasks.spec, record, chosen.names))
    _require_words(config, tasks.spec, chosen.kept)
    return Imported(tuple(chosen.kept), record)


class _Chosen:
    """Trajectories while they are chosen, one after the other."""

    def __init__(self, config: CampaignConfig, tasks: Curriculum) -> None:
        self.kept: list[Trajectory] = []
        self.left_out: Counter[str] = Counter()
        self.assumed: Counter[str] = Counter()
        self.names: Counter[str] = Counter()
        """Other worlds' names, as the files have them."""
        self._config = config
        self._spec = spec = tasks.spec
        self._form = get_format(spec.action_format)
        self._splits = {n: split for split, members in spec.splits.items() for n in members}
        self._evaluated = {config.evaluate.dev_split, config.evaluate.test_split}
        self._replay = config.experts.replay or config.learner.compares
        self._one_each = config.learner.exploration != "tasks"
        self._ranks: dict[str, int] = {}
        self._attempts: Counter[str] = Counter()
        if self._replay and spec.needs is not None:
            spec.needs()

    def take(self, trajectory: Trajectory) -> None:
        """Keep a trajectory, or count why not."""
        if reason := self._unfit(trajectory):
            self.left_out[reason] += 1

    def _unfit(self, found: Trajectory) -> str:
        from ..envs.agentgym.identity import own_text, same_world, task_index

        spec, section = self._spec, self._config.experts
        unnamed = found.env == "unknown"
        if not (unnamed or same_world(found.env, spec.id)):
            self.names[found.env] += 1
            return "other_environment"
        if not found.success:
            return "no_success"
        if not found.turns:
            return "no_turns"
        index = task_index(spec.id, found.task_id, found.turns[0].observation)
        split = self._splits.get(index, "") if index is not None else ""
        if split in self._evaluated:
            return "evaluation"
        if split and split != section.split:
            return "other_split"
        task = Task(spec.id, index, split) if index is not None and split else None
        if task is None and self._replay:
            return "no_task"
        # Not a number of ours: it must not look like one.
        name = task.id if task is not None else f"record_{len(self._ranks)}"
        if self._one_each and self._attempts[name]:
            return "same_task"
        rank = self._ranks.get(name, len(self._ranks))
        if section.tasks and rank >= section.first + section.tasks:
            return "over_tasks"
        made = self._text(found, [own_text(spec.id, turn.observation) for turn in found.turns])
        if task is not None and self._replay:
            replayed = self._replayed(made, task)
            if replayed is None:
                return "not_replayed"
            made = replayed
        self._ranks[name] = rank
        if rank < section.first:
            return "over_tasks"
        attempt = self._attempts[name]
        self._attempts[name] += 1
        id_ = trajectory_id(0, name, attempt)
        self.kept.append(
            msgspec.structs.replace(made, id=id_, task_id=name, split=split, attempt=attempt)
        )
        self.assumed["env"] += unnamed
        self.assumed["task"] += task is None
        return ""

    def _text(self, found: Trajectory, seen: Iterable[str]) -> Trajectory:
        """The episode as words alone, without tokens, times and places of another run."""
        turns = tuple(self._turn(text, turn) for text, turn in zip(seen, found.turns, strict=True))
        return Trajectory(
            id="",
            env=self._spec.id,
            task_id="",
            split="",
            wave=0,
            attempt=0,
            seed=0,
            outcome=Outcome.SUCCESS,
            reward=found.reward,
            terminated=True,
            prompt=found.prompt,
            turns=turns,
            final_observation=found.final_observation,
            policy="expert",
        )

    def _turn(self, seen: str, turn: Turn) -> Turn:
        action = self._form.parse(turn.completion).action
        return Turn(
            seen,
            turn.completion,
            action or "",
            turn.reward,
            finish=FinishReason.SCRIPTED,
            format_error=action is None,
        )

    def _replayed(self, expert: Trajectory, task: Task) -> Trajectory | None:
        from ..envs.rehearsal import SEED, rehearse

        horizon = self._config.rollout.horizon
        limit = horizon[-1] if horizon else self._config.environment.turn_limit
        found = rehearse(self._spec, task, expert.turns, turn_limit=limit)
        if found is None:
            return None
        turns, final = found
        return msgspec.structs.replace(
            expert,
            prompt=self._spec.prompt,
            turns=turns,
            final_observation=final,
            reward=sum(turn.reward for turn in turns),
            environment_seed=SEED,
        )


def _require_words(config: CampaignConfig, spec: EnvSpec, kept: Iterable[Trajectory]) -> None:
    """Refuse experts whose words the model does not have.

    Raises:
        ConfigError: a model of whole words lacks some; the text counts them.
    """
    from ..learners.model.tiny import closed_vocabulary

    tiny = config.model.tiny is not None
    known = frozenset(spec.vocabulary) if tiny else closed_vocabulary(config.model.path)
    if known is None or (tiny and not known):
        return  # it can spell; or it cannot be made, which is told where it is made
    said = [text for t in kept for text in _texts(t)]
    missing = sorted({word for text in said for word in text.split()} - known)
    if missing:
        shown = ", ".join(map(repr, missing[:5]))
        raise ConfigError(
            f"the model knows {len(known)} whole words, and the experts of experts.path use "
            f"{len(missing)} others, such as {shown}: give a model that can spell (model.path), or "
            f"experts in the words of {spec.id}"
        )


def _texts(trajectory: Trajectory) -> list[str]:
    talk: list[ChatMessage] = list(trajectory.prompt)
    turns = trajectory.turns
    return [m.text for m in talk] + [
        t for turn in turns for t in (turn.observation, turn.completion)
    ]


def _nothing(
    config: CampaignConfig, spec: EnvSpec, record: Record, names: Mapping[str, int]
) -> str:
    """Say why no expert is left, and what to do about the most frequent reason."""
    where = ", ".join(source.path for source in record.sources)
    counts = Counter(record.left_out)
    if not counts:
        return f"{where}: there is no trajectory in it to learn from"
    why = ", ".join(f"{n} {reason}" for reason, n in counts.most_common())
    worlds = ", ".join(sorted(names)[:5])
    evaluate = config.evaluate
    fixes = {
        "other_environment": f"they are of {worlds}; set environment.id to that world, or say that "
        f"they are of this one: rollwave data convert FILE OUT --to store --env '{spec.id}'",
        "evaluation": f"their tasks are in {evaluate.dev_split!r} and {evaluate.test_split!r}, "
        "which evaluate (evaluate.dev_split, evaluate.test_split) and are never learned from: "
        "bring experts at other tasks, or evaluate on other splits",
        "other_split": f"their tasks are outside the split {config.experts.split!r}: set "
        "experts.split",
        "no_success": "only successes are cloned (reward 1, or success in the file)",
        "over_tasks": "lower experts.first",
        "not_replayed": f"their actions do not solve these tasks in {spec.id}, so nothing can be "
        "compared with them; they can be cloned (learner.algorithm = 'agent_evol', "
        "experts.replay = false)",
        "no_task": "they name no task that could be played again; they can be cloned "
        "(learner.algorithm = 'agent_evol', experts.replay = false)",
    }
    fix = fixes.get(counts.most_common(1)[0][0], "see `rollwave data stats` for what they hold")
    return f"of {record.read} trajectories in {where} none can be an expert ({why}): {fix}"
