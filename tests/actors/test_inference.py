"""The inference actor over a backend that does what the test tells it, on the virtual clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.actors.backends.base import Backend, Done
from rollwave.actors.inference import Inference, PolicyHolder
from rollwave.actors.protocol import (
    Completion,
    DescribeInference,
    Generate,
    InferenceStatus,
    Sampling,
    SwapWeights,
    WeightsSwapped,
)
from rollwave.engine.codec import pack_floats, pack_tokens
from rollwave.engine.errors import (
    ActorRestarted,
    AskFailed,
    BackendDied,
    BackendError,
    ConfigError,
    DeadlineExceeded,
    MessageError,
    WeightSwapFailed,
)
from rollwave.engine.ref import ActorRef
from rollwave.engine.system import ActorSystem, ChildSpec
from rollwave.engine.testing import run_simulated
from rollwave.engine.trajectory import FinishReason


def request(name: str, seed: int = 0) -> Generate:
    return Generate(name, pack_tokens([1, 2]), (), Sampling(), seed)


def completion(order: Generate, version: int) -> Completion:
    """What every backend here answers: a function of the seed and the version."""
    ids = pack_tokens([order.seed % 1000])
    return Completion(order.request_id, "", ids, pack_floats([-1.0]), FinishReason.STOP, version)


class Puppet(Backend):
    """Answers after `seconds`, unless the stage says otherwise."""

    def __init__(self, stage: Stage, version: int, path: str) -> None:
        super().__init__()
        self.stage = stage
        self.policy_version = version
        self.path = path
        self.held: dict[str, tuple[Generate, Done]] = {}
        self.cancelled: list[str] = []
        self.death = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(self.stage.start_seconds)
        if self.stage.start_error is not None:
            raise self.stage.start_error
        task_status.started()
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            await self.death.wait()
            nursery.cancel_scope.cancel()
        if not self.stage.returns:
            raise BackendDied("puppet died")

    def submit(self, request: Generate, done: Done) -> None:
        self.statistics.requests += 1
        self.held[request.request_id] = (request, done)
        if self.stage.seconds is not None and not self.death.is_set():
            self.nursery.start_soon(self._answer_later, request, done)

    async def _answer_later(self, request: Generate, done: Done) -> None:
        assert self.stage.seconds is not None
        await trio.sleep(self.stage.seconds)
        if self.held.get(request.request_id) == (request, done):
            self.answer(request.request_id)

    def answer(self, request_id: str) -> None:
        order, done = self.held.pop(request_id)
        self.statistics.completions += 1
        done(completion(order, self.policy_version))

    def fail(self, request_id: str, error: BaseException) -> None:
        self.held.pop(request_id)[1](error)

    def cancel(self, request_id: str) -> None:
        self.held.pop(request_id, None)
        self.cancelled.append(request_id)

    async def swap_weights(self, version: int, path: str) -> None:
        await trio.sleep(self.stage.swap_seconds)
        if path in self.stage.broken:
            raise WeightSwapFailed(f"no tensors in {path}")
        self.policy_version, self.path = version, path


@dataclass
class Stage:
    """How puppets behave, and all of them that were made."""

    seconds: float | None = None
    """None: answers come when the test says so."""
    start_seconds: float = 0.0
    swap_seconds: float = 1.0
    start_error: Exception | None = None
    returns: bool = False
    broken: set[str] = field(default_factory=set)
    puppets: list[Puppet] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    """The paths they started with."""

    def make(self, version: int, path: str) -> Backend:
        self.made.append(path)
        self.puppets.append(Puppet(self, version, path))
        return self.puppets[-1]

    @property
    def now(self) -> Puppet:
        return self.puppets[-1]


@asynccontextmanager
async def serving(
    stage: Stage, holder: PolicyHolder | None = None, **options: float
) -> AsyncIterator[ActorRef]:
    holder = holder or PolicyHolder(0, "models/base")
    async with ActorSystem(seed=1) as system:
        spec = ChildSpec("inference", lambda: Inference(stage.make, holder, **options))
        yield await system.start(spec)


async def persist(inference: ActorRef, order: Generate) -> Completion:
    """Ask as a session does: again, as long as incarnations die on it."""
    while True:
        try:
            return await inference.ask(order, Completion)
        except ActorRestarted:
            continue


async def settled() -> None:
    """Let every task run until all of them wait."""
    await trio.testing.wait_all_tasks_blocked()


async def test_answers_come_in_the_order_of_the_backend(autojump_clock):
    stage, order = Stage(), []

    async def session(inference: ActorRef, name: str) -> None:
        answer = await inference.ask(request(name, seed=len(name)), Completion)
        order.append((name, answer))

    async with serving(stage) as inference, trio.open_nursery() as nursery:
        for name in ("a", "bb", "ccc"):
            nursery.start_soon(session, inference, name)
        await settled()
        assert set(stage.now.held) == {"a", "bb", "ccc"}  # nobody waits for another's answer
        for name in ("ccc", "a", "bb"):
            stage.now.answer(name)
            await settled()
    assert [name for name, _ in order] == ["ccc", "a", "bb"]
    assert all(answer == completion(request(n, seed=len(n)), 0) for n, answer in order)


async def test_a_cancelled_asker_frees_its_place(autojump_clock):
    stage = Stage()
    async with serving(stage) as inference:
        with trio.move_on_after(5):
            await inference.ask(request("gone"), Completion)
        await settled()
        assert stage.now.cancelled == ["gone"]
        with pytest.raises(DeadlineExceeded, match="inference"):
            await inference.ask(request("late"), Completion, timeout=2)
        assert stage.now.cancelled == ["gone", "late"]
        assert (await inference.ask(DescribeInference(), InferenceStatus)).waiting == 0


async def test_a_request_that_fails_harms_no_other(autojump_clock):
    stage = Stage()
    async with serving(stage) as inference, trio.open_nursery() as nursery:
        answers: list[Completion] = []

        async def good() -> None:
            answers.append(await inference.ask(request("good"), Completion))

        async def bad() -> None:
            with pytest.raises(AskFailed, match="too long") as caught:
                await inference.ask(request("bad"), Completion)
            assert caught.value.kind == "backend"

        nursery.start_soon(good)
        nursery.start_soon(bad)
        await settled()
        stage.now.fail("bad", BackendError("the prompt is too long"))
        await settled()
        stage.now.answer("good")
    assert [a.request_id for a in answers] == ["good"]
    assert len(stage.puppets) == 1  # the actor was not restarted for it


async def test_the_same_id_asked_twice_answers_the_newer(autojump_clock):
    stage = Stage()
    async with serving(stage) as inference, trio.open_nursery() as nursery:
        failures: list[str] = []

        async def older() -> None:
            try:
                await inference.ask(request("x", seed=1), Completion)
            except AskFailed as error:
                failures.append(error.text)

        nursery.start_soon(older)
        await settled()
        answers: list[Completion] = []

        async def newer() -> None:
            answers.append(await inference.ask(request("x", seed=2), Completion))

        nursery.start_soon(newer)
        await settled()
        stage.now.answer("x")
    assert [answer.token_ids for answer in answers] == [pack_tokens([2])]
    assert len(failures) == 1
    assert "asked for again" in failures[0]
    assert stage.now.cancelled == []  # the older asker's end did not cancel the newer's request


async def test_a_dead_backend_is_restarted_and_the_same_request_answered(autojump_clock):
    stage, holder = Stage(), PolicyHolder(3, "models/policy-0003")
    async with serving(stage, holder) as inference, trio.open_nursery() as nursery:
        asked: list[BaseException | Completion] = []

        async def session() -> None:
            while not asked or not isinstance(asked[-1], Completion):
                try:
                    asked.append(await inference.ask(request("s/0", seed=9), Completion))
                except ActorRestarted as error:
                    asked.append(error)

        nursery.start_soon(session)
        await settled()
        stage.now.death.set()
        await trio.sleep(60)
        assert len(stage.puppets) == 2
        assert (stage.now.policy_version, stage.now.path) == (3, "models/policy-0003")
        stage.now.answer("s/0")
    assert [type(a) for a in asked] == [ActorRestarted, Completion]
    assert asked[1] == completion(request("s/0", seed=9), 3)
    assert stage.now.held == {}


async def test_a_backend_that_ends_quietly_is_dead_too(autojump_clock):
    stage = Stage(returns=True)
    async with serving(stage) as inference:
        stage.now.death.set()
        await trio.sleep(60)
        assert inference.statistics().restarts == 1


async def test_a_swap_changes_what_is_served_and_what_a_restart_serves(autojump_clock):
    stage, holder = Stage(seconds=0.5), PolicyHolder(0, "models/base")
    async with serving(stage, holder) as inference:
        swapped = await inference.ask(SwapWeights(1, "models/policy-0001"), WeightsSwapped)
        assert swapped == WeightsSwapped(1, 1.0)
        assert (holder.version, holder.path) == (1, "models/policy-0001")
        assert (await inference.ask(request("a"), Completion)).policy_version == 1
        stage.now.death.set()
        assert (await persist(inference, request("b"))).policy_version == 1
    assert stage.made == ["models/base", "models/policy-0001"]


async def test_requests_go_on_while_weights_are_swapped(autojump_clock):
    stage = Stage(seconds=0.1, swap_seconds=10)
    async with serving(stage) as inference, trio.open_nursery() as nursery:
        nursery.start_soon(inference.ask, SwapWeights(1, "new"), WeightsSwapped)
        await settled()
        with trio.fail_after(1):  # the mailbox is not blocked; the barrier is the backend's
            assert (await inference.ask(request("a"), Completion)).policy_version == 0
            status = await inference.ask(DescribeInference(), InferenceStatus)
        assert status.swapping


async def test_swaps_come_one_after_the_other_in_their_order(autojump_clock):
    stage, holder = Stage(swap_seconds=2), PolicyHolder(0, "base")
    done: list[tuple[int, float]] = []

    async def swap(inference: ActorRef, version: int) -> None:
        await inference.ask(SwapWeights(version, f"p{version}"), WeightsSwapped)
        done.append((version, trio.current_time()))

    async with serving(stage, holder) as inference, trio.open_nursery() as nursery:
        began = trio.current_time()
        for version in (1, 2, 3):
            nursery.start_soon(swap, inference, version)
            await settled()
        await trio.sleep(1)
        assert (await inference.ask(DescribeInference(), InferenceStatus)).swapping
    assert [(v, t - began) for v, t in done] == [(1, 2.0), (2, 4.0), (3, 6.0)]
    assert (holder.version, stage.made) == (3, ["base"])


@pytest.mark.parametrize("claimed", [0, 2, 7])
async def test_an_answer_for_a_policy_that_is_not_served_is_refused(autojump_clock, claimed):
    stage = Stage(seconds=0.1)
    async with serving(stage) as inference:
        await inference.ask(SwapWeights(1, "one"), WeightsSwapped)
        assert (await inference.ask(request("a"), Completion)).policy_version == 1
        stage.now.policy_version = claimed
        with pytest.raises(AskFailed, match=f"policy version {claimed}, while 1 was served"):
            await inference.ask(request("b"), Completion)
        assert inference.statistics().restarts == 0


async def test_an_answer_from_before_a_swap_is_honest(autojump_clock):
    stage = Stage()
    async with serving(stage) as inference, trio.open_nursery() as nursery:
        answers: list[int] = []

        async def ask() -> None:
            answers.append((await inference.ask(request("a"), Completion)).policy_version)

        nursery.start_soon(ask)
        await settled()
        before, done = stage.now.held["a"]
        await inference.ask(SwapWeights(1, "one"), WeightsSwapped)
        done(completion(before, 0))
    assert answers == [0]


async def test_a_failed_swap_restarts_with_the_policy_before(autojump_clock):
    stage, holder = Stage(seconds=0.1, broken={"bad"}), PolicyHolder(1, "one")
    async with serving(stage, holder) as inference:
        with pytest.raises(AskFailed, match="WeightSwapFailed: no tensors in bad"):
            await inference.ask(SwapWeights(2, "bad"), WeightsSwapped)
        assert (await inference.ask(request("a"), Completion)).policy_version == 1
        assert inference.statistics().restarts == 1
    assert (holder.version, holder.path) == (1, "one")


@pytest.mark.parametrize("patience", [0.5, 0.0])
async def test_an_abandoned_swap_leaves_no_doubt(autojump_clock, patience):
    stage, holder = Stage(seconds=0.1, swap_seconds=2), PolicyHolder(0, "base")
    async with serving(stage, holder) as inference:
        with pytest.raises(DeadlineExceeded):
            await inference.ask(SwapWeights(1, "late"), WeightsSwapped, timeout=patience)
        assert (await persist(inference, request("a"))).policy_version == 0
        assert stage.now.path == "base"
        await trio.sleep(10)
        assert (holder.version, holder.path) == (0, "base")


async def test_a_backend_that_cannot_start_says_why(autojump_clock):
    stage = Stage(start_error=ConfigError("models/base holds a LoRA adapter"))
    with pytest.raises(ConfigError, match="LoRA"):
        async with serving(stage):
            pytest.fail("it must not start")


async def test_a_backend_that_never_starts_meets_its_deadline(autojump_clock):
    stage = Stage(start_seconds=1e6)
    with pytest.raises(DeadlineExceeded, match="start of the inference backend"):
        async with serving(stage, start_seconds=30):
            pytest.fail("it must not start")


async def test_status_tells_the_holder_and_the_backend(autojump_clock):
    stage, holder = Stage(), PolicyHolder(4, "four")
    async with serving(stage, holder) as inference, trio.open_nursery() as nursery:
        nursery.start_soon(inference.ask, request("a"), Completion)
        await settled()
        stage.now.statistics.batches = 2
        stage.now.statistics.batch_requests = 6
        stage.now.statistics.batch_capacity = 4
        stage.now.statistics.extra["start_seconds"] = 2.5
        status = await inference.ask(DescribeInference(), InferenceStatus)
        assert (status.policy_version, status.path, status.incarnation) == (4, "four", 0)
        assert (status.requests, status.waiting, status.completions) == (1, 1, 0)
        assert status.batch_fill == holder.batch_fill == 0.75
        assert status.extra == {"start_seconds": 2.5}
        stage.now.answer("a")


async def test_foreign_messages_are_refused(autojump_clock):
    async with serving(Stage()) as inference:
        with pytest.raises(MessageError):
            await inference.ask(WeightsSwapped(1, 0.0), WeightsSwapped)
        assert inference.alive


@given(
    seed=st.integers(0, 2**32),
    deaths=st.lists(st.floats(0.05, 4.0), max_size=3),
    swaps=st.lists(st.tuples(st.floats(0.0, 4.0), st.booleans()), max_size=3),
    sessions=st.integers(1, 12),
)
@settings(max_examples=40, deadline=None)
def test_every_session_is_answered_whatever_dies(seed, deaths, swaps, sessions):
    """Deaths and swaps, good and bad, at any time: each request gets one answer, of its own
    seed, from a version that was confirmed; what is served in the end is what is held."""
    holder = PolicyHolder(0, "base")
    stage = Stage(seconds=0.3, swap_seconds=0.2, broken={"bad"})
    confirmed = {0}
    answers: dict[str, list[Completion]] = {}

    async def session(inference: ActorRef, number: int) -> None:
        for turn in range(4):
            order = request(f"{number}/{turn}", seed=10 * number + turn)
            answer = await persist(inference, order)
            answers.setdefault(order.request_id, []).append(answer)
            assert answer == completion(order, answer.policy_version)

    async def kill(after: float) -> None:
        await trio.sleep(after)
        stage.now.death.set()

    async def swap(inference: ActorRef, version: int, after: float, good: bool) -> None:
        await trio.sleep(after)
        confirmed.add(version if good else 0)  # the holder alone decides whether it was
        try:
            path = f"policy-{version}" if good else "bad"
            await inference.ask(SwapWeights(version, path), WeightsSwapped)
        except (AskFailed, ActorRestarted):
            pass

    async def run() -> None:
        async with serving(stage, holder) as inference:
            async with trio.open_nursery() as nursery:
                for number in range(sessions):
                    nursery.start_soon(session, inference, number)
                for after in deaths:
                    nursery.start_soon(kill, after)
                for index, (after, good) in enumerate(swaps):
                    nursery.start_soon(swap, inference, index + 1, after, good)
            last = await persist(inference, request("last"))
            assert last.policy_version == holder.version == stage.now.policy_version
            assert stage.now.path == holder.path
            assert (await inference.ask(DescribeInference(), InferenceStatus)).waiting == 0

    run_simulated(run, seed=seed)
    assert len(answers) == 4 * sessions
    assert all(len(given) == 1 for given in answers.values())
    assert {a.policy_version for given in answers.values() for a in given} <= confirmed
