"""The invariants of docs/architecture.md, under whatever mix of faults Hypothesis finds.

Each example is a whole engine on the virtual clock, with a schedule of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollwave.actors.backends.base import Done
from rollwave.actors.backends.latency import LogNormalLatency, UniformLatency
from rollwave.actors.backends.scripted import ScriptedBackend
from rollwave.actors.embedding import Engine, EngineSettings, open_engine
from rollwave.actors.policy_source import PolicySource
from rollwave.actors.protocol import Generate, Sampling
from rollwave.engine.codec import unpack_floats, unpack_tokens
from rollwave.engine.errors import ActorDead, FaultKind
from rollwave.engine.seeds import derive, generator
from rollwave.engine.testing import event_digest, run_simulated
from rollwave.engine.trajectory import ChatMessage, Outcome, Trajectory
from rollwave.envs.base import Environment, EnvSpec, StepResult, Task
from rollwave.envs.registry import resolve
from rollwave.envs.wrappers import Wrapper

MAZE = resolve("maze-grid-v1?style=terse")
WORDS = ("up", "down", "left", "right")
CLOSER, USER, AGENT = 256, 257, 258

slow = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# -- a world, a model and a reader of tokens ------------------------------------------


class Bytes:
    """A chat template of one token a byte."""

    def opening(self, messages: Sequence[ChatMessage]) -> list[int]:
        said = [[USER, *message.text.encode(), CLOSER] for message in messages]
        return [*sum(said, []), AGENT]  # noqa: RUF017 (a few short lists)

    def following(self, observation: str, *, closed: bool) -> list[int]:
        return [*([] if closed else [CLOSER]), USER, *observation.encode(), CLOSER, AGENT]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < CLOSER).decode()


def wander(request: Generate) -> str:
    return WORDS[request.seed % 4]


def close(text: str) -> list[int]:
    return [*text.encode(), CLOSER]


def model(backend: Any, *, tokens: bool = True) -> PolicySource:
    return PolicySource(
        kind="model",
        name="scripted",
        make_backend=lambda version, path: backend(version, path),
        renderer=Bytes() if tokens else None,
    )


TROUBLE: dict[str, Any] = {
    "none": lambda: None,
    "text": lambda: "not a step result",
    "nan": lambda: StepResult("x", float("nan")),
    "flag": lambda: StepResult("x", 0.0, "yes"),  # type: ignore[arg-type]
    "out of range": lambda: StepResult("x", 7.0, terminated=True),
    "surrogate": lambda: StepResult("\ud800"),
}
PLACES = ("make", "reset", "step", "close", "expert")


@dataclass(frozen=True)
class Troubles:
    """How often a world goes wrong, by place, and in which ways."""

    seed: int
    share: float
    places: tuple[str, ...]

    def spec(self) -> EnvSpec:
        made = iter(range(10**9))

        def make() -> Environment:
            number = next(made)
            if self.strikes("make", number):
                raise OSError(5, "the world's server is down")
            return Shaky(MAZE.make(), self, number)

        return replace(MAZE, make=make)

    def strikes(self, place: str, *path: int) -> bool:
        chance = generator(self.seed, place, *path).random()
        return place in self.places and chance < self.share


class Shaky(Wrapper):
    def __init__(self, inner: Environment, troubles: Troubles, number: int) -> None:
        super().__init__(inner)
        self.troubles = troubles
        self.number = number
        self.steps = 0

    def reset(self, task: Task, seed: int) -> str:
        if self.troubles.strikes("reset", self.number):
            raise KeyError("no such level")
        return self.inner.reset(task, seed)

    def step(self, action: str) -> StepResult:
        self.steps += 1
        if self.troubles.strikes("step", self.number, self.steps):
            kinds = [*TROUBLE, "raise"]
            kind = generator(self.troubles.seed, self.number, self.steps).choice(kinds)
            if kind == "raise":
                raise ZeroDivisionError("the world has a defect")
            answer: StepResult = TROUBLE[kind]()
            return answer
        return self.inner.step(action)

    def close(self) -> None:
        self.inner.close()
        if self.troubles.strikes("close", self.number):
            raise RuntimeError("cannot be closed")


class Unsteady(ScriptedBackend):
    """Refuses some requests, forgets some, answers some with garbage, dies at some."""

    def __init__(self, chaos: Chaos, version: int) -> None:
        super().__init__(
            LogNormalLatency(0.5, chaos.tail),
            chaos.batch,
            self.script,
            tokenise=close,
        )
        self.policy_version = version
        self.chaos = chaos

    def script(self, request: Generate) -> str:
        if self.chaos.draws("refuse", request):
            raise ValueError("will not")
        return wander(request) if not self.chaos.draws("words", request) else "  "

    def submit(self, request: Generate, done: Done) -> None:
        if self.chaos.draws("forget", request):
            return  # never answered: the turn's deadline has to end it
        if self.chaos.draws("garble", request):

            def garbled(result: Any) -> None:
                done(
                    result
                    if isinstance(result, BaseException)
                    else msgspec.structs.replace(result, logprobs=b"\x00" * 3)
                )

            super().submit(request, garbled)
        else:
            super().submit(request, done)
        if self.chaos.deaths and self.chaos.draws("die", request):
            self.chaos.deaths.pop()
            self.die()


@dataclass
class Chaos:
    """Everything that may go wrong in one example."""

    troubles: Troubles
    seed: int
    share: float
    tail: float
    batch: int
    permits: int
    deaths: list[int]
    cancel_at: float | None
    end_at: float | None
    consumer_seconds: float

    def draws(self, what: str, request: Generate) -> bool:
        return generator(self.seed, what, request.seed).random() < self.share


shares = st.sampled_from([0.0, 0.02, 0.1, 0.4])
chaos = st.builds(
    Chaos,
    troubles=st.builds(
        Troubles,
        seed=st.integers(0, 2**32),
        share=shares,
        places=st.lists(st.sampled_from(PLACES), unique=True).map(tuple),
    ),
    seed=st.integers(0, 2**32),
    share=shares,
    tail=st.sampled_from([0.0, 1.0, 3.0]),
    batch=st.sampled_from([0, 1, 4]),
    permits=st.sampled_from([1, 2, 7, 64]),
    deaths=st.lists(st.just(0), max_size=3),
    cancel_at=st.none() | st.floats(0, 60),
    end_at=st.none() | st.floats(0, 60),
    consumer_seconds=st.sampled_from([0.0, 0.0, 0.7]),
)


@given(chaos, st.integers(0, 2**32))
@slow
def test_every_admitted_episode_ends_in_exactly_one_sound_outcome(case: Chaos, seed: int) -> None:
    """Invariants 1, 2 and 4: one outcome each, no fault a reward, nobody waits for ever."""
    records: list[Trajectory] = []
    ends: list[str] = []
    books: list[Any] = []

    async def consume(engine: Engine) -> None:
        spec = engine.use(case.troubles.spec())
        rollout = engine.rollout(spec.tasks("train", limit=12), attempts=2)
        books.append(engine.ledger.books[1])
        try:
            async for trajectory in rollout:
                records.append(trajectory)
                await trio.sleep(case.consumer_seconds)
            ends.append("complete")
        except ActorDead:
            ends.append("engine closed")
        ended.set()

    ended = trio.Event()

    async def main() -> None:
        source = model(lambda version, _path: Unsteady(case, version))
        limits = EngineSettings(
            concurrency=case.permits, turn_seconds=20.0, episode_seconds=90.0, seed=case.seed
        )
        with trio.fail_after(1e5):  # virtual: far beyond every deadline there is
            async with (
                trio.open_nursery() as consumers,
                open_engine(source, settings=limits) as engine,
            ):
                consumers.start_soon(consume, engine)
                await trio.lowlevel.checkpoint()
                if case.cancel_at is not None:
                    await trio.sleep(case.cancel_at)
                    await engine.cancel(1)
                if case.end_at is not None:
                    await trio.sleep(case.end_at)
                else:
                    await ended.wait()
            permits = engine.permits.statistics()
            assert permits.held == 0
            assert permits.peak_held <= case.permits

    run_simulated(main, seed=seed)
    (book,) = books
    assert len(ends) == 1
    ids = [t.id for t in records]
    assert len(set(ids)) == len(ids)
    if ends[0] != "engine closed":
        assert book.open == {}
        assert len(ids) == book.admitted
    if ends[0] == "complete" and case.cancel_at is None:
        assert len(ids) == 24
    if case.cancel_at is None and case.end_at is None:
        assert ends == ["complete"]
        assert not any(t.outcome is Outcome.CANCELLED for t in records)
    for t in records:
        t.check()
        assert (t.reward is None) == (t.outcome in (Outcome.FAULT, Outcome.CANCELLED))
        assert t.seconds <= 90.0 + 1e-6
        if t.fault is not None and t.fault.kind is FaultKind.DEADLINE:
            assert t.id in t.fault.text  # names the stage: this turn, or this episode
        if t.fault is not None:
            assert t.fault.kind is not FaultKind.INTERNAL  # none of these is a defect of ours
    # Batches make others wait, and a heavy tail oneself: both may be too late for a deadline.
    healthy = not case.share and not (case.troubles.share and case.troubles.places)
    if healthy and not case.tail and not case.batch:
        assert not any(t.outcome is Outcome.FAULT for t in records)


# -- tokens and versions ---------------------------------------------------------------


@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 5, 32]),
    st.integers(1, 12),
    st.sampled_from([0, 3]),
)
@slow
def test_what_was_sampled_is_what_is_stored(
    seed: int, concurrency: int, max_tokens: int, batch: int
) -> None:
    """Invariant 3: the record holds the prompts as sent and the completions as drawn."""
    sent: dict[str, list[int]] = {}
    drawn: dict[str, tuple[list[int], list[float]]] = {}

    class Noting(ScriptedBackend):
        def submit(self, request: Generate, done: Done) -> None:
            sent[request.request_id] = list(unpack_tokens(request.prompt_ids))

            def note(result: Any) -> None:
                drawn[request.request_id] = (
                    list(unpack_tokens(result.token_ids)),
                    list(unpack_floats(result.logprobs)),
                )
                done(result)

            super().submit(request, note)

    def backend(_version: int, _path: str) -> Noting:
        # Fabricated ids: four tokens, or fewer, when `max_tokens` cuts them (no closer then).
        return Noting(UniformLatency(0.0, 1.0), batch, wander, vocabulary=256)

    async def main() -> list[Trajectory]:
        async with open_engine(model(backend), concurrency=concurrency, seed=seed) as engine:
            tasks = engine.tasks(MAZE.id, "train", limit=6)
            sampling = Sampling(1.0, max_tokens)
            return [t async for t in engine.rollout(tasks, attempts=2, sampling=sampling)]

    for t in run_simulated(main):
        ids, logprobs = list(unpack_tokens(t.token_ids)), list(unpack_floats(t.logprobs))
        sampled = bytearray(len(ids))
        previous: list[int] = []
        for number, turn in enumerate(t.turns):
            request = f"{t.id}/{number}"
            prompt = sent[request]
            assert prompt == ids[: turn.start]
            assert prompt[: len(previous)] == previous
            assert (ids[turn.start : turn.end], logprobs[turn.start : turn.end]) == drawn[request]
            sampled[turn.start : turn.end] = b"\x01" * (turn.end - turn.start)
            previous = ids[: turn.end]
            closers = ids[turn.end : turn.end + 1] if number + 1 < len(t.turns) else [None]
            if turn.finish == "length" and closers != [None]:
                assert closers == [CLOSER]  # ours, hence outside of the mask
        assert bytes(sampled) == t.loss_mask
        assert all(p == 0.0 for p, m in zip(logprobs, sampled, strict=True) if not m)


@given(st.integers(0, 2**32), st.lists(st.floats(0.1, 20), min_size=1, max_size=4))
@slow
def test_every_token_carries_the_version_that_drew_it(seed: int, pauses: list[float]) -> None:
    """Invariant 6: spans are right, and after a swap no older version appears."""
    swapped: list[float] = []

    def backend(version: int, _path: str) -> ScriptedBackend:
        made = ScriptedBackend(
            UniformLatency(0.1, 2.0), answer=wander, tokenise=close, swap_seconds=0.3
        )
        made.policy_version = version
        return made

    async def main() -> list[Trajectory]:
        async with open_engine(model(backend), concurrency=4, seed=seed) as engine:

            async def swap() -> None:
                for version, pause in enumerate(pauses, start=1):
                    await trio.sleep(pause)
                    await engine.swap_weights(version, f"models/{version}")
                    swapped.append(trio.current_time())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(swap)
                tasks = engine.tasks(MAZE.id, "train", limit=20)
                return [t async for t in engine.rollout(tasks)]

    for t in run_simulated(main):
        versions = [turn.policy_version for turn in t.turns]
        assert versions == sorted(versions)
        assert t.versions == (versions[0], versions[-1])
        asked = t.started
        for turn in t.turns:
            answered = asked + turn.generate_seconds
            confirmed = sum(when < asked for when in swapped)
            assert turn.policy_version >= confirmed
            assert turn.policy_version <= sum(when - 0.3 <= answered + 1e-9 for when in swapped)
            asked = answered + turn.step_seconds


# -- same seed, same run -----------------------------------------------------------------


def timeless(t: Trajectory) -> Trajectory:
    """The record without what depends on how busy the engine was."""
    turns = tuple(
        msgspec.structs.replace(turn, generate_seconds=0.0, step_seconds=0.0) for turn in t.turns
    )
    return msgspec.structs.replace(t, turns=turns, started=0.0, seconds=0.0)


def roll(
    seed: int, concurrency: int, batch: int, tail: float, schedule: int, tasks: range
) -> list[Trajectory]:
    troubles = Troubles(seed, 0.05, ("step",))

    class ByTask(Shaky):
        """Goes wrong by the episode it plays, not by the order in which it was made."""

        def reset(self, task: Task, seed: int) -> str:
            self.number = derive(seed, "shaky", task.id)
            return super().reset(task, seed)

    def backend(_version: int, _path: str) -> ScriptedBackend:
        return ScriptedBackend(
            LogNormalLatency(0.2, tail, longest=30.0), batch, wander, tokenise=close
        )

    async def main() -> list[Trajectory]:
        async with open_engine(model(backend), concurrency=concurrency, seed=seed) as engine:
            spec = engine.use(replace(MAZE, make=lambda: ByTask(MAZE.make(), troubles, 0)))
            played = spec.tasks("train", limit=tasks.stop)[tasks.start :]
            return [t async for t in engine.rollout(played, attempts=2)]

    return run_simulated(main, seed=schedule)


@given(st.integers(0, 2**32), st.sampled_from([1, 4, 64]), st.sampled_from([0, 2, 16]))
@settings(slow, max_examples=30)
def test_one_seed_and_one_setting_give_one_stream(seed: int, concurrency: int, batch: int) -> None:
    """Invariant 5: the same records in the same order at the same virtual times."""

    def digest(schedule: int) -> str:
        return event_digest(roll(seed, concurrency, batch, 1.0, schedule, range(10)))

    assert digest(3) == digest(3)


@given(
    st.integers(0, 2**32),
    st.tuples(*[st.tuples(st.sampled_from([1, 4, 64]), st.sampled_from([0, 1, 8]))] * 2),
    st.sampled_from([0.0, 2.0]),
    st.integers(0, 5),
)
@settings(slow, max_examples=50)
def test_a_trajectory_depends_on_its_own_seed_alone(
    seed: int, ways: tuple[tuple[int, int], tuple[int, int]], tail: float, first: int
) -> None:
    """Invariant 5: not on concurrency, batches, latencies, schedule, or what else is played."""
    (one, batch), (other, other_batch) = ways
    plain = {t.id: timeless(t) for t in roll(seed, one, batch, 0.5, 0, range(6))}
    again = roll(seed, other, other_batch, tail, 1, range(first, 6))
    assert len(again) == 2 * (6 - first)
    for t in again:
        assert timeless(t) == plain[t.id]
