"""What must hold of every story, whatever was injected: the invariants of docs/architecture.md.

    problems(story, undisturbed) → a line for each breach, named; none = all hold

Invariant: these are pure functions of a story, and none of them trusts another's check.

Not here: how a story comes about (`drill`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from ...engine.codec import encode
from ...engine.errors import DeadlineExceeded, RollwaveError
from ...engine.seeds import derive
from ...engine.trajectory import Outcome, Trajectory
from .scenario import told, words
from .story import ProcessStory, Story

Check = Callable[[Story, "Story | None"], Iterator[str]]


def problems(story: Story, undisturbed: Story | None = None) -> list[str]:
    """Every breach of an invariant, as `name: what`.

    `undisturbed` is the same scenario's story without faults; with it, a plan that only
    kills, cancels and refuses must come to the same trajectories.
    """
    return [
        f"{name}: {text}"
        for name, check in INVARIANTS.items()
        for text in check(story, undisturbed)
    ]


# -- 4: nothing waits for ever ------------------------------------------------------------


def _ends(story: Story, _: Story | None) -> Iterator[str]:
    """Each run of the command ends in time; the first that is not struck ends the campaign."""
    for process in story.processes:
        if process.ended == "stuck":
            yield f"process {process.number} waited beyond every deadline: {process.error!r}"
        yield from (f"process {process.number}: {text}" for text in process.surprises)
        late = isinstance(process.error, DeadlineExceeded) and not process.struck["clock.jumps"]
        if late:  # every episode has a shorter deadline of its own, and every stage of it
            yield f"process {process.number} was late: {process.error}"
        if process.number >= story.plan.processes and process.ended != "done":
            yield (
                f"process {process.number}, which nothing struck, {process.ended}: "
                f"{process.error!r}"
            )
    if story.processes[-1].ended != "done":
        yield f"the same command did not end it in {len(story.processes)} runs"


def _errors(story: Story, _: Story | None) -> Iterator[str]:
    """What reaches the user is an error of ours, in one piece, with something to read."""
    for process in story.processes:
        error = process.error
        if process.ended == "failed" and not (isinstance(error, RollwaveError) and str(error)):
            yield f"process {process.number} ended with {error!r}"


def _permits(story: Story, _: Story | None) -> Iterator[str]:
    """Every permit is given back."""
    for process in story.processes:
        if process.permits_held:
            yield f"process {process.number} kept {process.permits_held} permits"


# -- 1 and 2: one outcome each, and a fault is no reward ----------------------------------


def _outcomes(story: Story, _: Story | None) -> Iterator[str]:
    """Each admitted episode ends exactly once, and the record of each is sound."""
    for process in story.processes:
        where = f"process {process.number}"
        for rollout in process.rollouts:
            if rollout.delivered > rollout.ended or rollout.ended > rollout.admitted:
                yield f"{where}: {rollout}"
            if process.ended == "done" and not rollout.failed:
                whole = rollout.ended == rollout.admitted and not rollout.open
                if not whole or (not rollout.cancelled and rollout.admitted != rollout.planned):
                    yield f"{where}: {rollout}"
        for record in process.yielded:
            yield from (f"{where}: {text}" for text in _unsound(record))
    for wave in story.waves.values():
        ids = [record.id for record in wave.trajectories]
        if len(set(ids)) != len(ids):
            yield f"wave {wave.number} holds an episode twice"
        for record in wave.trajectories:
            yield from (f"wave {wave.number}: {text}" for text in _unsound(record))
            if record.outcome is Outcome.CANCELLED:
                yield f"wave {wave.number} holds the cancelled {record.id}"


def _unsound(record: Trajectory) -> Iterator[str]:
    if (record.reward is not None) != record.outcome.scored:
        yield f"{record.id} is a {record.outcome} with reward {record.reward}"
    if (record.fault is not None) != (record.outcome is Outcome.FAULT):
        yield f"{record.id} is a {record.outcome} with {record.fault}"
    if record.outcome.scored and not -1e-6 <= (record.reward or 0.0) <= 1 + 1e-6:
        yield f"{record.id} has the reward {record.reward}"


# -- 6: versions are honest ---------------------------------------------------------------


def _versions(story: Story, _: Story | None) -> Iterator[str]:
    """Each token is what the policy that it names says to that prompt, under its own seed."""
    for wave in story.waves.values():
        for record in wave.trajectories:
            versions = [turn.policy_version for turn in record.turns] or [0]
            if record.versions != (min(versions), max(versions)):
                yield f"{record.id} spans {record.versions}, its turns {versions}"
            for number, turn in enumerate(record.turns):
                if turn.policy_version != wave.policy_version:
                    yield (
                        f"{record.id}, turn {number} names policy {turn.policy_version}; "
                        f"{wave.policy_version} was served"
                    )
                    continue
                seed = derive(derive(record.seed, "turn"), number)
                prompt = record.token_ids[: 4 * turn.start]
                said = words(story.weights[turn.policy_version], seed, prompt)
                if turn.completion != said:
                    yield f"{record.id}, turn {number} says {turn.completion!r}, not {said!r}"


def _confirmed(story: Story, _: Story | None) -> Iterator[str]:
    """Within one process, policies are confirmed in rising order, each once."""
    for process in story.processes:
        versions = [version for _, version in process.confirmed]
        if versions != sorted(set(versions)):
            yield f"process {process.number} confirmed {versions}"


# -- 7: a crash loses nothing that was acknowledged ---------------------------------------


def _kept(story: Story, _: Story | None) -> Iterator[str]:
    """What was yielded, and what the journal held, is in the sealed wave byte for byte."""
    sealed = {t.id: encode(t) for wave in story.waves.values() for t in wave.trajectories}
    if not sealed:
        return
    seen: set[str] = set()
    for process in story.processes:
        for record in process.yielded:
            if record.outcome is Outcome.CANCELLED:
                continue
            if record.id in seen:
                yield f"{record.id} was yielded twice, again in process {process.number}"
            seen.add(record.id)
            yield from _differs(process, "yielded", record, sealed)
        for record in process.journalled.values():
            yield from _differs(process, "journalled", record, sealed)


def _differs(
    process: ProcessStory, how: str, record: Trajectory, sealed: dict[str, bytes]
) -> Iterator[str]:
    if record.id not in sealed:
        yield f"{record.id}, {how} in process {process.number}, is lost"
    elif sealed[record.id] != encode(record):
        yield f"{record.id}, {how} in process {process.number}, is sealed with other content"


def _sealed(story: Story, _: Story | None) -> Iterator[str]:
    """A sealed wave never changes, and no run directory is left unreadable."""
    before: dict[int, bytes] = {}
    for process in story.processes:
        if process.damage:
            yield f"process {process.number} left damage: {process.damage}"
        for number, content in before.items():
            if process.sealed.get(number) != content:
                yield f"process {process.number} changed the sealed wave {number}"
        before.update(process.sealed)


# -- 5: same seed, same run ---------------------------------------------------------------


def _same(story: Story, undisturbed: Story | None) -> Iterator[str]:
    """Kills, cancellations, dead actors and bad disks change nothing in what is learned."""
    if undisturbed is None or not story.plan.harmless or not story.waves:
        return
    for number, wave in undisturbed.waves.items():
        found = {t.id: t for t in story.waves[number].trajectories} if number in story.waves else {}
        for expected in wave.trajectories:
            record = found.get(expected.id)
            if record is None or told(record) != told(expected):
                yield f"{expected.id} is not what it is without faults: {_first(record, expected)}"
    if story.weights != undisturbed.weights:
        yield f"weights {story.weights}, without faults {undisturbed.weights}"


def _first(record: Trajectory | None, expected: Trajectory) -> str:
    """The first field that differs."""
    if record is None:
        return "absent"
    one, other = told(record), told(expected)
    name = next(f for f in one.__struct_fields__ if getattr(one, f) != getattr(other, f))
    return f"{name} = {getattr(one, name)!r}, not {getattr(other, name)!r}"[:500]


INVARIANTS: Final[dict[str, Check]] = {
    "it ends": _ends,
    "errors are ours": _errors,
    "permits return": _permits,
    "one outcome each": _outcomes,
    "versions are honest": _versions,
    "policies in order": _confirmed,
    "nothing acknowledged is lost": _kept,
    "sealed is sealed": _sealed,
    "same trajectories": _same,
}
