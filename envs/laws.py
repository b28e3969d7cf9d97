"""The laws: what must hold in every environment, and a search for what breaks them.

    from rollwave.envs.laws import check
    for result in check("maze-grid-v1?size=4"):
        print(result)

`check` searches with Hypothesis for what breaks each of `single_laws`: legal
actions, the expert's, legal ones twisted, and hostile text. A failure is shrunk to
the fewest and plainest actions, and given with the task and the seed of the
episode. `machine` makes a stateful test in which several sessions at once are
reset, stepped, snapshotted, restored and closed in any order.

Invariant: one seed and one number of examples give one verdict for an environment
that keeps the law of determinism.

Not here: the laws (`single_laws`) and the checks of single answers (`probe`).
Hypothesis is imported in this file alone, which only those who test environments
import.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from ..engine.errors import LawBroken, MissingDependency
from .base import SPLITS, EnvSpec, Task
from .probe import Answer, Move, Probe, Script
from .registry import resolve
from .single_laws import (
    answers_any_text,
    asking_changes_nothing,
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

try:
    import hypothesis.strategies as st
    from hypothesis import HealthCheck, Phase, Verbosity, given, settings
    from hypothesis import seed as seeded
    from hypothesis.errors import Flaky as FlakySearch
    from hypothesis.stateful import (
        RuleBasedStateMachine,
        invariant,
        rule,
        run_state_machine_as_test,
    )
except ImportError:
    raise MissingDependency("the laws need hypothesis: pip install 'rollwave[laws]'") from None


# --- what is tried -----------------------------------------------------------------

HOSTILE: Final = (
    *("", " ", "\n", "\t\r\n\v", "\x00", "\x1b[2J", "\u202egnp.exe", "\ufeff", "\ud800", "🦊" * 40),
    *("Action:", "Thought:\nx\n\nAction:\n", "<|im_end|>", "</s>", "[INST]", "{}{0}{x!r}", "%s%n"),
    *("9" * 5000, "-1", "1e999", "nan", "٣", "½", "0x10", "None", "True", "[]", "{}", "null"),
    *("'; DROP TABLE tasks;--", "__import__('os')._exit(1)", "../../etc/passwd", "$(id)"),
    *("a" * 100_000, "(" * 10_000, "move " * 5_000, "get 1 " * 2_000, "\\", '"', "'", "`"),
)
"""Texts that have broken environments before."""

_TWISTS: Final = ("{} ", "  {}\n", "{}\n{}", "{}.", "Action: {}", "{} {}", "{}\x00", '"{}"', "{},")


def scripts(spec: EnvSpec, *, most: int = 12) -> st.SearchStrategy[Script]:
    """Episodes to try: a task of any split, a seed, and at most so many moves.

    Before the moves the expert may lead for a while, or mere legal actions where there
    is none: random moves alone seldom see the middle or the end of an episode.
    """
    lead = st.integers(0, min(spec.turn_limit, most))
    rest = st.one_of(
        st.lists(moves(), max_size=most), st.lists(moves(), min_size=most // 2, max_size=most)
    )
    return st.builds(
        lambda task, seed, lead, rest: Script(task, seed, (Move(expert=True),) * lead + (*rest,)),
        tasks(spec),
        st.integers(0, 2**63 - 1),
        lead,
        rest,
    )


def tasks(spec: EnvSpec) -> st.SearchStrategy[Task]:
    """Tasks of all splits that have any."""
    splits = {split: members for split, members in spec.splits.items() if len(members)}
    return st.sampled_from(sorted(splits, key=SPLITS.index)).flatmap(
        lambda split: st.integers(0, len(splits[split]) - 1).map(
            lambda place: Task(spec.id, splits[split][place], split)
        )
    )


def moves() -> st.SearchStrategy[Move]:
    """Legal actions, the expert's, twisted ones, and hostile or arbitrary text."""
    number = st.integers(0, 63)
    expert = st.just(Move(expert=True))
    said = st.one_of(st.integers(0, len(HOSTILE) - 1).map(_hostile), st.text(max_size=40))
    twisted = st.builds(Move, text=st.sampled_from(_TWISTS), number=number, expert=st.booleans())
    # Legal and expert moves stand twice: without them few scripts get anywhere. What is
    # plainest stands first, since shrinking goes that way.
    legal = st.builds(Move, number=number)
    spoken = said.map(lambda text: Move(text.replace("{}", "{ }")))
    return st.one_of(legal, expert, legal, expert, spoken, twisted)


_SESSIONS: Final = 2
"""More would only thin out the meetings of their paths."""

_sessions: Final = st.integers(0, _SESSIONS - 1)


def _hostile(number: int) -> str:
    """Chosen by number, since Hypothesis spells out the texts of `sampled_from`, huge ones too."""
    return HOSTILE[number]


class SessionsMachine(RuleBasedStateMachine):
    """Whatever sessions go on beside it, a path of actions is always answered alike.

    Several sessions play at once, against a memory of what each path was answered.
    A path is a task, a seed and the actions since the reset. However a session came
    to a path (played, replayed, restored, beside others), the answers along it must
    be the same. Make one for a spec with `machine`.
    """

    spec: EnvSpec
    findings: ClassVar[list[tuple[int, LawBroken]]] = []
    """Failures so far with the number of steps to each; the plainest comes last."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.memory: dict[tuple[int, int, tuple[str, ...]], Answer] = {}
        self.snapshots: list[tuple[bytes, Probe]] = []
        self.sessions = [Probe(self.spec) for _ in range(_SESSIONS)]
        for number, probe in enumerate(self.sessions):
            self._begin(probe, number)

    def teardown(self) -> None:
        """Note a failure with the steps of all sessions that led to it."""
        error = sys.exception()
        if isinstance(error, LawBroken):
            steps = "".join(f"\n    {step}" for step in self.log)
            told = LawBroken(f"{error}\n  sessions:{steps}", unsound=error.unsound)
            self.findings.append((len(self.log), told))

    def _begin(self, probe: Probe, number: int) -> None:
        """Reset to one of two tasks, the ends of a split: with few, paths meet."""
        split = next(split for split in SPLITS if len(self.spec.splits.get(split, ())))
        members = self.spec.splits[split]
        probe.reset(Task(self.spec.id, members[-(number % 2)], split), number % 2)
        self._remember(probe)

    def _remember(self, probe: Probe) -> None:
        """Compare with what this path was answered before; note it if it is new."""
        assert probe.task is not None
        path = (probe.task.index, probe.seed, tuple(probe.actions))
        probe.agree(self.memory.setdefault(path, probe.answers[-1]))

    def _log_said(self, session: int, start: int) -> None:
        for action in self.sessions[session].actions[start:]:
            self.log.append(f"session {session}: say {action[:80]!r}")

    def _go_on(self, probe: Probe, move: Move) -> None:
        if probe.try_move(move) is not None:
            self._remember(probe)

    @rule(session=_sessions, number=st.integers(0, 1), fresh=st.booleans())
    def begin(self, session: int, number: int, fresh: bool) -> None:
        """Start over, in the same session or in a new one after closing it."""
        how = "close; a new one, reset" if fresh else "reset"
        self.log.append(f"session {session}: {how} to task {number}")
        if fresh:
            self.sessions[session].close()
            self.sessions[session] = Probe(self.spec)
        self._begin(self.sessions[session], number)

    @rule(session=_sessions, move=st.one_of(st.builds(Move, number=st.integers(0, 3)), moves()))
    def step(self, session: int, move: Move) -> None:
        """Play a move, unless the episode is over."""
        said = len(self.sessions[session].actions)
        try:
            self._go_on(self.sessions[session], move)
        finally:
            self._log_said(session, said)

    @rule(session=_sessions, count=st.integers(1, 4))
    def advance(self, session: int, count: int) -> None:
        """Follow the expert for a while."""
        said = len(self.sessions[session].actions)
        try:
            for _ in range(count):
                self._go_on(self.sessions[session], Move(expert=True))
        finally:
            self._log_said(session, said)

    @rule(session=_sessions, model=_sessions)
    def retrace(self, session: int, model: int) -> None:
        """Start over and say all that another session said, or this one itself."""
        probe, other = self.sessions[session], self.sessions[model]
        actions = list(other.actions)
        self.log.append(f"session {session}: reset, and say what session {model} said")
        assert other.task is not None
        probe.reset(other.task, other.seed)
        for action in actions:
            probe.step(action)
            self._remember(probe)

    @rule(session=_sessions)
    def take(self, session: int) -> None:
        """Take a snapshot, where there are any, and go on."""
        probe = self.sessions[session]
        state = probe.snapshot()
        if state is not None:
            past = Probe(self.spec)
            past.task, past.seed = probe.task, probe.seed
            past.actions, past.answers = list(probe.actions), list(probe.answers)
            self.log.append(f"session {session}: snapshot {len(self.snapshots)}, first action")
            self.snapshots.append((state, past))
            self._go_on(probe, Move())

    @rule(session=_sessions, number=st.integers(0, 7))
    def restore(self, session: int, number: int) -> None:
        """Put any session back to any snapshot, and go on as after taking it."""
        if self.snapshots:
            number %= len(self.snapshots)
            state, past = self.snapshots[number]
            self.log.append(f"session {session}: restore {number}, first action")
            self.sessions[session].restore(state, past, len(past.actions))
            self._go_on(self.sessions[session], Move())

    @invariant()
    def observations_stand(self) -> None:
        """What one session does, leaves the latest observation of the others as it is."""
        for probe in self.sessions:
            probe.unchanged("between other calls")


def machine(spec: EnvSpec) -> type[SessionsMachine]:
    """The stateful test of one environment; `machine(spec).TestCase` runs under pytest."""
    return type("SessionsOfOneEnvironment", (SessionsMachine,), {"spec": spec, "findings": []})


# --- the search --------------------------------------------------------------------


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
"""The names of all laws."""


def check(
    spec: EnvSpec | str, *, examples: int = 100, seed: int = 0, only: Collection[str] = LAWS
) -> list[LawResult]:
    """Look for broken laws; one result a law, in a fixed order.

    `examples` is the number of scripts tried for each law, of runs of the machine, and
    of tasks that the expert plays. `only` names
    the laws to look at, beside the one about splits.

    Raises:
        UnknownEnvironment, ConfigError: the id does not resolve.
    """
    if isinstance(spec, str):
        spec = resolve(spec)
    results = [_verdict(splits_are_disjoint, seed, lambda: splits_are_disjoint(spec))]
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
        why = _inapplicable(law, spec)
        if why:
            results.append(_result(law, seed, skipped=why))
        else:
            count = min(examples, _TIMED) if law is costs_what_it_says else examples
            results.append(_judge(law, spec, strategies, count, seed, sound=sound))
        sound = sound and (law is not answers_any_text or results[-1].held)
    if _name(expert_keeps_its_word) in only:
        results.append(_expert(spec, examples, seed, sound=sound))
    return results


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

    def body(drawn: tuple[Script, ...]) -> None:
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
