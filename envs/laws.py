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

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from ..engine.errors import LawBroken, MissingDependency
from .base import SPLITS, EnvSpec, Task
from .probe import Answer, Move, Probe, Script
from .registry import resolve
from .single_laws import (
    answers_any_text,
    asking_changes_nothing,
    closed_is_closed,
    deterministic,
    expert_keeps_its_word,
    has_expert,
    isolated,
    nothing_after_the_end,
    reset_resets,
    snapshot_equals_replay,
    splits_are_disjoint,
)

try:
    import hypothesis.strategies as st
    from hypothesis import HealthCheck, Phase, Verbosity, given, settings
    from hypothesis import seed as seeded
    from hypothesis.errors import Flaky as FlakySearch
    from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
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
    """Episodes to try: a task of any split, a seed, and at most so many moves."""
    return st.builds(
        Script,
        task=tasks(spec),
        seed=st.integers(0, 2**63 - 1),
        moves=st.lists(moves(), max_size=most).map(tuple),
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
    said = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=40))
    twisted = st.builds(Move, text=st.sampled_from(_TWISTS), number=number, expert=st.booleans())
    # Legal and expert moves stand twice: without them few scripts get anywhere. What is
    # plainest stands first, since shrinking goes that way.
    legal = st.builds(Move, number=number)
    spoken = said.map(lambda text: Move(text.replace("{}", "{ }")))
    return st.one_of(legal, expert, legal, expert, spoken, twisted)


class SessionsMachine(RuleBasedStateMachine):
    """Whatever sessions go on beside it, a path of actions is always answered alike.

    Several sessions play at once, against a memory of what each path was answered.
    A path is a task, a seed and the actions since the reset. However a session came
    to a path (played, replayed, restored, beside others), the answers along it must
    be the same. Make one for a spec with `machine`.
    """

    spec: EnvSpec
    _SESSIONS: Final = 3

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[tuple[int, int, tuple[str, ...]], Answer] = {}
        self.snapshots: list[tuple[bytes, Probe, int]] = []
        self.sessions = [self._started(number) for number in range(self._SESSIONS)]

    def _started(self, number: int) -> Probe:
        probe = Probe(self.spec)
        probe.reset(self._task(number), number % 2)
        return self._remember(probe)

    def _task(self, number: int) -> Task:
        first = next(split for split in SPLITS if len(self.spec.splits.get(split, ())))
        members = self.spec.splits[first]
        return Task(self.spec.id, members[number % min(2, len(members))], first)

    def _remember(self, probe: Probe) -> Probe:
        """Compare with what this path was answered before; note it if it is new."""
        assert probe.task is not None
        path = (probe.task.index, probe.seed, tuple(probe.actions))
        known = self.memory.setdefault(path, probe.answers[-1])
        probe.expect([*probe.answers[:-1], known])
        return probe

    @rule(session=st.integers(0, 2), number=st.integers(0, 3))
    def reset(self, session: int, number: int) -> None:
        """Start over, at a task of few, so that paths meet."""
        probe = self.sessions[session]
        probe.reset(self._task(number), number // 2)
        self._remember(probe)

    @rule(session=st.integers(0, 2), move=moves())
    def step(self, session: int, move: Move) -> None:
        """Play a move, unless the episode is over."""
        if self.sessions[session].try_move(move) is not None:
            self._remember(self.sessions[session])

    @rule(session=st.integers(0, 2))
    def follow(self, session: int) -> None:
        """Say what the next session said at this point, if both are on one path."""
        mine, other = self.sessions[session], self.sessions[(session + 1) % self._SESSIONS]
        step = len(mine.actions)
        same = (mine.task, mine.seed, mine.actions) == (
            other.task,
            other.seed,
            other.actions[:step],
        )
        if same and len(other.actions) > step:
            mine.step(other.actions[step])
            self._remember(mine)

    @rule(session=st.integers(0, 2))
    def observe(self, session: int) -> None:
        """The latest observation is the one that was answered."""
        self.sessions[session].unchanged("between other calls")

    @rule(session=st.integers(0, 2))
    def take(self, session: int) -> None:
        """Take a snapshot, where there are any."""
        probe = self.sessions[session]
        state = probe.snapshot()
        if state is not None:
            past = Probe(self.spec)
            past.task, past.seed = probe.task, probe.seed
            past.actions, past.answers = list(probe.actions), list(probe.answers)
            self.snapshots.append((state, past, len(probe.actions)))

    @rule(session=st.integers(0, 2), number=st.integers(0, 7))
    def restore(self, session: int, number: int) -> None:
        """Put any session back to any snapshot."""
        if self.snapshots:
            state, past, steps = self.snapshots[number % len(self.snapshots)]
            self.sessions[session].restore(state, past, steps)

    @rule(session=st.integers(0, 2))
    def replace(self, session: int) -> None:
        """Close a session and put a new one in its place."""
        self.sessions[session].close()
        self.sessions[session] = self._started(session)


def machine(spec: EnvSpec) -> type[SessionsMachine]:
    """The stateful test of one environment; `machine(spec).TestCase` runs under pytest."""
    return type("SessionsOfOneEnvironment", (SessionsMachine,), {"spec": spec})


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


def check(spec: EnvSpec | str, *, examples: int = 50, seed: int = 0) -> list[LawResult]:
    """Look for broken laws; one result a law, in a fixed order.

    `examples` is the number of scripts tried for each law (a quarter of them for the
    machine, whose runs are longer) and of tasks that the expert plays.

    Raises:
        UnknownEnvironment, ConfigError: the id does not resolve.
    """
    if isinstance(spec, str):
        spec = resolve(spec)
    results = [_verdict(splits_are_disjoint, seed, lambda: splits_are_disjoint(spec))]
    if not results[0].held:
        return results  # without tasks there is nothing to play
    one, short = scripts(spec), scripts(spec, most=6)
    sound = _judge(answers_any_text, spec, (one,), examples, seed, sound=True)
    results.append(sound)
    for law in (asking_changes_nothing, nothing_after_the_end, closed_is_closed):
        results.append(_judge(law, spec, (one,), examples, seed, sound=sound.held))
    tried: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...] = (
        (deterministic, (one,)),
        (snapshot_equals_replay, (one,)),
        (reset_resets, (short, short)),
        (isolated, (short, short)),
        (SessionsMachine, ()),
    )
    for exact, strategies in tried:
        number = max(1, examples // 4) if exact is SessionsMachine else examples
        why = _inapplicable(exact, spec)
        results.append(
            _result(exact, seed, skipped=why)
            if why
            else _judge(exact, spec, strategies, number, seed, sound=sound.held)
        )
    results.append(_expert(spec, examples, seed, sound=sound.held))
    return results


def _inapplicable(law: Callable[..., Any], spec: EnvSpec) -> str:
    """Why a law of exact repetition does not apply, or nothing."""
    if not spec.deterministic:
        return "the spec says that it is not deterministic"
    if law is snapshot_equals_replay and _has_no_snapshots(spec):
        return "it has no snapshots; its actions are replayed instead"
    return ""


def _has_no_snapshots(spec: EnvSpec) -> bool:
    probe = Probe(spec)
    probe.reset(spec.tasks(next(iter(spec.splits)), limit=1)[0], 0)
    return probe.snapshot() is None


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
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
    )
    if law is SessionsMachine:
        rules = seeded(seed)(machine(spec))
        return _verdict(
            law, seed, lambda: run_state_machine_as_test(rules, settings=how), sound=sound
        )
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
            # The environment did not repeat itself, so Hypothesis cannot vouch for the
            # smallest example; the smallest one that did fail is still a finding.
            raise min(findings, key=lambda finding: finding[0])[1] from None

    return _verdict(law, seed, run)


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
    name = "sessions in any order" if law is SessionsMachine else law.__name__.replace("_", " ")
    text = (law.__doc__ or "").strip().splitlines()[0]
    return LawResult(name, text, not failure, skipped, failure, seed)


def broken(results: Iterable[LawResult]) -> list[LawResult]:
    """The results of the laws that do not hold."""
    return [result for result in results if not result.held]
