"""The single laws: what must hold in every environment, one function each.

A law takes a spec and what to try: a `Script` or two, or tasks. It returns if the
law holds and raises `LawBroken`, with the way to get there, if it does not.

Invariant: a law judges by what a session answers, never by its inside, so it holds
for worlds in this process and behind a wire alike.

Not here: the search for a script that breaks a law (`search`).
"""

from __future__ import annotations

import gc
import math
import time
import tracemalloc
from collections.abc import Sequence
from typing import Any, Final

from ...engine.errors import LawBroken, classify
from ..base import SPLITS, EnvSpec, Task
from .probe import Move, Probe, Script, refuses_index


def deterministic(spec: EnvSpec, script: Script) -> None:
    """The same task, seed and actions give the same answers."""
    Probe(spec).repeat(Probe(spec).play(script))


def carried_unchanged(spec: EnvSpec, here: EnvSpec, over: str, script: Script) -> None:
    """Over another transport a session answers as it does in this process."""
    Probe(spec, again=f"over {over}").repeat(Probe(here).play(script))


def reset_resets(spec: EnvSpec, before: Script, script: Script) -> None:
    """An episode goes as in a new session, whatever the session played before."""
    fresh = Probe(spec).play(script)
    Probe(spec).play(before).repeat(fresh)


def isolated(spec: EnvSpec, one: Script, two: Script) -> None:
    """Two sessions played in turn answer as each does alone."""
    alone = Probe(spec).play(one), Probe(spec).play(two)
    together = Probe(spec), Probe(spec)
    for probe, script in zip(together, (one, two), strict=True):
        probe.reset(script.task, script.seed)
    for step in range(max(len(model.answers) for model in alone)):
        for probe, model in zip(together, alone, strict=True):
            if step < len(model.answers):
                probe.resume(model.actions[:step], model.answers)
                probe.agree(model.answers[step])


def answers_any_text(spec: EnvSpec, script: Script) -> None:
    """Any text is answered with a sound step result, and rewards stay in their range."""
    Probe(spec).play(script)


def asking_changes_nothing(spec: EnvSpec, script: Script) -> None:
    """`observation()` is the latest one; asking for it, actions or the expert has no effect."""
    said = Probe(spec).play(script).actions
    quiet, asked = Probe(spec), Probe(spec)  # `play` asks the expert; quiet is what does not
    for probe in (quiet, asked):
        probe.reset(script.task, script.seed)
    _ask(asked)
    for action in said:
        if quiet.done:
            break
        quiet.step(action)
        asked.step(action)
        asked.agree(quiet.answers[-1])
        _ask(asked)


def _ask(probe: Probe) -> None:
    probe.unchanged("when asked first")
    _advice(probe)
    probe.unchanged("after asking for actions and advice")


def has_expert(spec: EnvSpec, task: Task) -> bool:
    """Whether the expert has advice at the start of a task."""
    probe = Probe(spec)
    probe.reset(task, 0)
    return _advice(probe) is not None


def _advice(probe: Probe) -> str | None:
    """The expert's next action. Raises LawBroken if it is neither text nor None."""
    try:
        advice: Any = probe.env.expert()
    except Exception as error:
        raise probe.unsound(f"expert raised {classify(error)[1]}") from error
    if advice is not None and not isinstance(advice, str):
        raise probe.unsound(f"expert answered {advice!r:.80}, neither text nor None")
    return advice


def nothing_after_the_end(spec: EnvSpec, script: Script) -> None:
    """Before the first reset and after the end `step` raises EnvironmentFault, and pays nothing."""
    probe = Probe(spec)
    probe.refuses("step before reset", probe.env.step, "x")
    _finish(probe.play(script))
    if probe.done:
        for action in ("x", *probe.actions[-1:]):
            probe.refuses("step after the end", probe.env.step, action)
        probe.unchanged("after the end")


def _finish(probe: Probe) -> None:
    """Go on as the expert does, or round the legal actions, towards an end."""
    for step in range(2 * probe.spec.turn_limit):
        if probe.try_move(Move(number=step, expert=True)) is None:
            break


def closed_is_closed(spec: EnvSpec, script: Script) -> None:
    """After `close` nothing is answered, and closing again does no harm."""
    probe = Probe(spec).play(script)
    probe.close()
    probe.refuses("step after close", probe.env.step, "x")
    probe.refuses("reset after close", probe.env.reset, script.task, script.seed)
    probe.refuses("observation after close", probe.env.observation)
    probe.close()
    Probe(spec).close()


def tells_no_secret(spec: EnvSpec, script: Script) -> None:
    """No observation contains what the agent has to find out, before the agent has said it."""
    probe = Probe(spec)
    probe.reset(script.task, script.seed)
    secrets = [secret for secret in probe.env.secrets() if secret]
    for move in (None, *script.moves):
        if move is not None and probe.try_move(move) is None:
            return
        said = "\n".join(probe.actions).lower()
        shown = probe.answers[-1].result
        for secret in secrets:
            given = secret.lower() in shown.observation.lower()
            if given and not shown.done and secret.lower() not in said:
                raise probe.broken(f"the observation gives away {secret!r}")


_ROUNDS: Final = 100
"""A cycle that still pays after so many rounds pays for ever."""


def pays_no_cycle(spec: EnvSpec, script: Script) -> None:
    """No cycle of actions raises the return for ever."""
    half = len(script.moves) // 2
    probe = Probe(spec).play(Script(script.task, script.seed, script.moves[:half]))
    start = len(probe.actions)
    for move in script.moves[half:]:
        if probe.try_move(move) is None:
            return
    cycle = probe.actions[start:]
    if not cycle:
        return
    idle = rounds = 0
    while idle < 2 and rounds < _ROUNDS:
        before = probe.reward
        for action in cycle:
            if probe.done:
                return
            probe.step(action)
        rounds += 1
        idle = 0 if probe.reward > before else idle + 1
    if rounds == _ROUNDS:
        del probe.actions[start + len(cycle) :]
        raise probe.broken(
            f"the last {len(cycle)} of these actions, said {rounds} times more, still raise the "
            f"return (to {probe.reward:g})"
        )


_STEP_SECONDS: Final = {"inline": 2e-3, "thread": 1.0}
"""CPU seconds a step may take on average, with room for slow machines."""

_LEAK_BYTES: Final = 64 * 1024
"""Growth for each repeat of one episode that no cache explains."""

_REPEATS: Final = 4
_LOOKS: Final = 3
"""A leak grows whenever one looks; what is cleared away in batches, as the loop behind a
transport does with its deadlines, does not."""


def costs_what_it_says(spec: EnvSpec, script: Script) -> None:
    """A step takes no more time than its cost class allows, and an episode leaves no memory."""
    limit = _STEP_SECONDS.get(spec.cost)
    if limit is not None:
        seconds, steps = min(_timed(spec, script) for _ in range(3))
        if steps and seconds > limit:
            raise _played(spec, script).broken(
                f"a step takes {seconds * 1e3:.1f} ms of CPU on average, and cost={spec.cost!r} "
                f"allows {limit * 1e3:g}"
            )
    _timed(spec, script)  # fill the caches
    tracemalloc.start()
    try:
        for _ in range(_LOOKS):
            grown = _grown(spec, script)
            if grown <= _LEAK_BYTES:
                break
    finally:
        tracemalloc.stop()
    if grown > _LEAK_BYTES:
        raise _played(spec, script).broken(
            f"each repeat of the episode leaves {grown / 1024:.0f} KiB behind after close"
        )


def _grown(spec: EnvSpec, script: Script) -> float:
    """Bytes that each of a few repeats of an episode leaves behind."""
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(_REPEATS):
        _timed(spec, script)
    gc.collect()
    return (tracemalloc.get_traced_memory()[0] - before) / _REPEATS


def _timed(spec: EnvSpec, script: Script) -> tuple[float, int]:
    """Play and close; gives CPU seconds a step, and the steps."""
    played = _played(spec, script)
    played.close()
    probe = Probe(spec)
    probe.reset(script.task, script.seed)
    seconds, count = 0.0, 0
    for action in played.actions:
        began = time.thread_time()
        result = probe.call("step", probe.env.step, action)
        seconds, count = seconds + time.thread_time() - began, count + 1
        if result.done:
            break
    probe.close()
    return seconds / max(count, 1), count


def _played(spec: EnvSpec, script: Script) -> Probe:
    return Probe(spec).play(script)


def snapshot_equals_replay(spec: EnvSpec, script: Script) -> None:
    """A restored snapshot goes on as its session did; bytes that are no snapshot are refused."""
    past = Probe(spec).play(Script(script.task, script.seed, script.moves[::2]))
    state = past.snapshot()
    if state is None:
        return
    taken = len(past.actions)
    past.unchanged("after snapshot")
    for move in script.moves[1::2]:
        if past.try_move(move) is None:
            break
    actions, answers = list(past.actions), list(past.answers)
    restored = Probe(spec)
    for target in (restored, past):
        target.restore(state, past, taken)
        target.resume(actions, answers)
    restored.refuses("restore of garbage", restored.env.restore, b"\x93not a snapshot")


def expert_keeps_its_word(spec: EnvSpec, tasks: Sequence[Task]) -> None:
    """The expert solves the share of tasks that the spec claims, within the turn limit."""
    solved = 0
    played = 0
    for task in tasks:
        probe = Probe(spec)
        probe.reset(task, 0)
        for _ in range(spec.turn_limit):
            advice = None if probe.done else _advice(probe)
            if advice is None:
                break
            probe.step(advice)
        played += bool(probe.actions)
        solved += probe.answers[-1].result.success
        if probe.actions and not probe.done and spec.expert_success == 1:
            raise probe.broken(f"the expert is not done after {len(probe.actions)} actions")
        if probe.done and not probe.answers[-1].result.success and spec.expert_success == 1:
            raise probe.broken("the expert failed; the spec claims that it solves every task")
    if _likelihood(solved, played, spec.expert_success) < 1e-4:
        raise LawBroken(
            f"the expert solved {solved} of {played} tasks; the spec claims "
            f"{spec.expert_success:.0%}\n  environment: {spec.id}"
        )


def _likelihood(solved: int, played: int, share: float) -> float:
    """Probability of so few successes if the claim is true."""
    return math.fsum(
        math.comb(played, k) * share**k * (1 - share) ** (played - k) for k in range(solved + 1)
    )


def splits_are_disjoint(spec: EnvSpec) -> None:
    """Splits have known names and share no task; other numbers are refused with ConfigError."""
    if not spec.splits or not any(len(members) for members in spec.splits.values()):
        raise LawBroken(f"no tasks\n  environment: {spec.id}")
    owner: dict[int, str] = {}
    for split, members in spec.splits.items():
        if split not in SPLITS:
            raise LawBroken(f"split {split!r} is none of {SPLITS}\n  environment: {spec.id}")
        for index in members:
            if index in owner:
                raise LawBroken(
                    f"task {index} is in {owner[index]} and in {split}\n  environment: {spec.id}"
                )
            owner[index] = split
        for index in {members[0], members[-1]} if len(members) else ():
            Probe(spec).reset(Task(spec.id, index, split), 0)
    for index in (-1, max(owner) + 1):
        refuses_index(spec, index)
