"""The search for what breaks a law, and the verdict on each.

Invariant: one seed and one number of examples give one verdict for an environment
that keeps the law of determinism.

Not here: the laws (`single`), the machine (`machine`), what is tried (`scripts`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import Flaky as FlakySearch
from hypothesis.stateful import run_state_machine_as_test

from ...engine.errors import LawBroken
from ..base import EnvSpec, Task
from ..registry import resolve
from ..transports import HERE, Carried, carried
from .machine import SessionsMachine, machine
from .probe import Probe
from .scripts import scripts
from .single import (
    answers_any_text,
    asking_changes_nothing,
    carried_unchanged,
    closed_is_closed,
    costs_what_it_says,
    deterministic,
    expert_keeps_its_word,
    has_expert,
    isolated,
    nothing_after_the_end,
    pays_no_cycle,
    reset_resets,
    snapshot_equals_replay,
    splits_are_disjoint,
    tells_no_secret,
)


@dataclass(frozen=True)
class LawResult:
    """The verdict on one law."""

    law: str
    text: str
    """What the law says, in one line."""
    held: bool
    skipped: str = ""
    """Why the law does not apply here; it then counts as held."""
    failure: str = ""
    """What broke it: the finding, the task, the seed and the fewest actions found."""
    seed: int = 0
    """Seed of the search: the same seed finds the same failure."""

    def __str__(self) -> str:
        mark = "skipped" if self.skipped else "held" if self.held else "BROKEN"
        tail = f": {self.skipped}" if self.skipped else ""
        found = f"\n  {self.failure}\n  search seed: {self.seed}" if self.failure else ""
        return f"{mark:8}{self.law}{tail}{found}"


_TIMED: Final = 10
"""Scripts that are timed: each is played a dozen times."""

_EXACT: Final[tuple[Callable[..., Any], ...]] = (
    asking_changes_nothing,
    deterministic,
    snapshot_equals_replay,
    reset_resets,
    isolated,
    SessionsMachine,
)
"""Laws that compare two runs of the same actions."""


def _name(law: Callable[..., Any]) -> str:
    return "sessions in any order" if law is SessionsMachine else law.__name__.replace("_", " ")


_ALL: Final[tuple[Callable[..., Any], ...]] = (
    splits_are_disjoint,
    answers_any_text,
    nothing_after_the_end,
    closed_is_closed,
    tells_no_secret,
    pays_no_cycle,
    *_EXACT,
    costs_what_it_says,
    expert_keeps_its_word,
)

LAWS: Final = tuple(_name(law) for law in _ALL)
"""The names of all laws that hold in any process."""

CARRIED: Final = _name(carried_unchanged)
"""The name of the law about transports."""


def check(
    spec: EnvSpec | str,
    *,
    examples: int = 100,
    seed: int = 0,
    only: Collection[str] = LAWS,
    over: str = HERE,
) -> list[LawResult]:
    """Look for broken laws; one result a law, in a fixed order.

    Args:
        spec: the environment, or its id.
        examples: the number of scripts tried for each law, of runs of the machine, and of
            tasks that the expert plays.
        seed: of the search.
        only: the laws to look at, beside the one about splits, by name.
        over: the transport to look through (`transports`); over any but this process one
            law more is looked at, "carried unchanged".

    Raises:
        UnknownEnvironment, ConfigError: the id does not resolve, or there is no such
            transport for it.
        MissingDependency: a package is not installed.
    """
    if isinstance(spec, str):
        spec = resolve(spec)
    with carried(spec, over) as there:
        results = _check(there, examples, seed, only)
        if over != HERE and results[0].held:
            results.append(_carried(there, examples, seed, over))
    return results


def _check(there: Carried, examples: int, seed: int, only: Collection[str]) -> list[LawResult]:
    spec, excused = there.spec, there.excused
    first = splits_are_disjoint
    if _name(first) in excused:
        results = [_result(first, seed, skipped=excused[_name(first)])]
    else:
        results = [_verdict(first, seed, lambda: first(spec))]
    if not results[0].held:
        return results  # without tasks there is nothing to play
    one, two = (scripts(spec),), (scripts(spec, most=6),) * 2
    tried: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...] = (
        (answers_any_text, one),
        (asking_changes_nothing, one),
        (nothing_after_the_end, one),
        (closed_is_closed, one),
        (tells_no_secret, one),
        (pays_no_cycle, one),
        (deterministic, one),
        (snapshot_equals_replay, one),
        (reset_resets, two),
        (isolated, two),
        (SessionsMachine, ()),
        (costs_what_it_says, one),
    )
    sound = True
    for law, strategies in tried:
        if _name(law) not in only:
            continue
        why = excused.get(_name(law), "") or _inapplicable(law, spec)
        if why:
            results.append(_result(law, seed, skipped=why))
        else:
            count = min(examples, _TIMED) if law is costs_what_it_says else examples
            results.append(_judge(law, spec, strategies, count, seed, sound=sound))
        sound = sound and (law is not answers_any_text or results[-1].held)
    if _name(expert_keeps_its_word) in only:
        results.append(_expert(spec, examples, seed, sound=sound))
    return results


def _carried(there: Carried, examples: int, seed: int, over: str) -> LawResult:
    law = carried_unchanged
    if not there.spec.deterministic:
        return _result(law, seed, skipped=_inapplicable(deterministic, there.spec))
    tried = (st.just(there.here), st.just(over), scripts(there.spec))
    return _judge(law, there.spec, tried, examples, seed, sound=True)


def _inapplicable(law: Callable[..., Any], spec: EnvSpec) -> str:
    """Why a law does not apply to this environment, or nothing."""
    if law in _EXACT and not spec.deterministic:
        return "the spec says that it is not deterministic"
    if law is snapshot_equals_replay and _has_no_snapshots(spec):
        return "it has no snapshots; its actions are replayed instead"
    if law is tells_no_secret and not _first(spec).env.secrets():
        return "it says that it hides nothing"
    return ""


def _has_no_snapshots(spec: EnvSpec) -> bool:
    return _first(spec).snapshot() is None


def _first(spec: EnvSpec) -> Probe:
    """A session at the start of the first task there is."""
    split = next(split for split, members in spec.splits.items() if len(members))
    probe = Probe(spec)
    probe.reset(spec.tasks(split, limit=1)[0], 0)
    return probe


def _expert(spec: EnvSpec, examples: int, seed: int, *, sound: bool) -> LawResult:
    """The expert plays tasks spread evenly over every split."""
    chosen: list[Task] = []
    for split, members in spec.splits.items():
        share = min(len(members), max(1, examples // len(spec.splits)))
        chosen += [Task(spec.id, members[n * len(members) // share], split) for n in range(share)]
    law = expert_keeps_its_word

    def run() -> str:
        if not has_expert(spec, chosen[0]):
            return "it has no expert"
        law(spec, chosen)
        return ""

    return _verdict(law, seed, run, sound=sound)


def _judge(
    law: Callable[..., Any],
    spec: EnvSpec,
    tried: tuple[Any, ...],
    examples: int,
    seed: int,
    *,
    sound: bool,
) -> LawResult:
    """Search for a script that breaks the law.

    If answers are known to be unsound (`sound` is False) scripts that end in such an
    answer are passed over: the law about any text has them already.
    """
    how = settings(
        max_examples=examples,
        stateful_step_count=30,
        database=None,
        deadline=None,
        # Timings are not shrunk: they differ from one run to the next.
        phases=(Phase.generate,) if law is costs_what_it_says else (Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
    )
    if law is SessionsMachine:
        return _verdict(law, seed, lambda: _run_machine(machine(spec), how, seed), sound=sound)
    findings: list[tuple[int, LawBroken]] = []

    def body(drawn: tuple[Any, ...]) -> None:
        try:
            law(spec, *drawn)
        except LawBroken as broken:
            if sound or not broken.unsound:
                findings.append((len(repr(drawn)), broken))
                raise

    search: Callable[[], None] = seeded(seed)(how(given(st.tuples(*tried))(body)))

    def run() -> None:
        try:
            search()
        except FlakySearch:
            raise _plainest(findings) from None

    return _verdict(law, seed, run)


def _plainest(findings: list[tuple[int, LawBroken]]) -> LawBroken:
    """The smallest failure that was seen.

    For an environment that does not repeat itself: Hypothesis then cannot vouch for an
    example, but one that did fail is still a finding.
    """
    if not findings:
        return LawBroken("two runs of the same script drew different legal actions")
    return min(findings, key=lambda finding: finding[0])[1]


def _run_machine(rules: type[SessionsMachine], how: settings, seed: int) -> None:
    try:
        run_state_machine_as_test(seeded(seed)(rules), settings=how)
    except LawBroken:
        raise rules.findings[-1][1] from None
    except FlakySearch:
        raise _plainest(rules.findings) from None


def _verdict(
    law: Callable[..., Any], seed: int, run: Callable[[], str | None], *, sound: bool = True
) -> LawResult:
    try:
        return _result(law, seed, skipped=run() or "")
    except LawBroken as broken:
        if broken.unsound and not sound:
            return _result(law, seed, skipped="mend the answers to any text first")
        return _result(law, seed, failure=str(broken))


def _result(
    law: Callable[..., Any], seed: int, *, skipped: str = "", failure: str = ""
) -> LawResult:
    text = (law.__doc__ or "").strip().splitlines()[0]
    return LawResult(_name(law), text, not failure, skipped, failure, seed)


def broken(results: Iterable[LawResult]) -> list[LawResult]:
    """The results of the laws that do not hold."""
    return [result for result in results if not result.held]
