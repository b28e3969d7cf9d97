"""An actor's life: which hook is called when, what it may do, and that nothing of it is left."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from rollwave.engine.actor import Actor
from rollwave.engine.codec import Message
from rollwave.engine.errors import ActorDead, ActorError, ActorRestarted, RestartLimitExceeded
from rollwave.engine.incarnation import MESSAGES_PER_SLICE
from rollwave.engine.restart import NO_BACKOFF, Restart, RestartIntensity
from rollwave.engine.seeds import derive
from rollwave.engine.supervisor import ChildSpec, Exit, Supervisor
from rollwave.engine.system import ActorSystem
from trio.testing import MockClock


class Do(Message, frozen=True):
    what: str


class Done(Message, frozen=True):
    what: str


class Recorder(Actor):
    """Writes its hooks into a list; fails and hangs where it is told to."""

    receives = (Do,)

    def __init__(self, log: list[str], *, fails: str = "", hangs: str = "") -> None:
        self.log = log
        self.fails = fails
        self.hangs = hangs

    async def step(self, where: str) -> None:
        self.log.append(where)
        if where == self.hangs:
            await trio.sleep_forever()
        if where == self.fails:
            raise ValueError(where)

    async def on_start(self) -> None:
        await self.step("on_start")

    async def on_stop(self) -> None:
        await self.step("on_stop")
        self.log.append("on_stop done")

    async def on_failure(self, error: BaseException) -> None:
        await self.step(f"on_failure({error})")

    async def receive(self, message: Message) -> Message | None:
        assert isinstance(message, Do)
        await self.step(message.what)
        if message.what == "end":
            self.stop()
        return Done(message.what)


async def life(*messages: str, fails: str = "", hangs: str = "") -> tuple[list[str], Exit]:
    """The hooks of a temporary actor that gets these messages, and how it ended."""
    log: list[str] = []
    exits: list[Exit] = []
    async with ActorSystem() as system:
        ref = system.root.start_child_nowait(
            ChildSpec("one", lambda: Recorder(log, fails=fails, hangs=hangs), Restart.TEMPORARY),
            on_exit=exits.append,
        )
        await trio.testing.wait_all_tasks_blocked()
        for what in messages:
            with trio.move_on_after(60):
                try:
                    await ref.ask(Do(what), Done)
                except ActorDead:
                    break
    assert len(exits) == 1
    return log, exits[0]


# -- hooks ------------------------------------------------------------------------


async def test_a_life_without_faults(autojump_clock: MockClock) -> None:
    log, end = await life("a", "b")
    assert log == ["on_start", "a", "b", "on_stop", "on_stop done"]
    assert end == Exit("one", None, cancelled=False)


async def test_an_actor_ends_itself_after_the_current_message(autojump_clock: MockClock) -> None:
    log, end = await life("end", "never")
    assert log == ["on_start", "end", "on_stop", "on_stop done"]
    assert end == Exit("one", None, cancelled=False)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("on_start", ["on_start", "on_failure(on_start)"]),
        ("a", ["on_start", "a", "on_failure(a)"]),
        ("on_stop", ["on_start", "a", "b", "on_stop", "on_failure(on_stop)"]),
    ],
)
async def test_a_failure_is_told_to_on_failure_once_and_on_stop_is_left_out(
    autojump_clock: MockClock, where: str, expected: list[str]
) -> None:
    log, end = await life("a", "b", fails=where)
    assert log == expected
    assert (str(end.error), end.cancelled) == (where, False)


async def test_a_failing_on_failure_does_not_hide_the_failure(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    log: list[str] = []

    class Worse(Recorder):
        async def on_failure(self, error: BaseException) -> None:
            raise KeyError("worse")

    exits: list[Exit] = []
    async with ActorSystem() as system:
        ref = system.root.start_child_nowait(
            ChildSpec("one", lambda: Worse(log, fails="a"), Restart.TEMPORARY),
            on_exit=exits.append,
        )
        with pytest.raises(ActorDead):
            await ref.ask(Do("a"), Done)
    assert str(exits[0].error) == "a"
    assert "on_failure of one failed itself" in caplog.text


@pytest.mark.parametrize("where", ["a", "on_stop"])
async def test_what_hangs_is_cancelled_after_its_stop_timeout(
    autojump_clock: MockClock, where: str
) -> None:
    start = trio.current_time()
    log, end = await life("a", hangs=where)
    assert log.count("on_stop") == 1
    assert ("on_stop done" in log) == (where == "a")  # it has no wait there to be cancelled in
    assert end == Exit("one", None, cancelled=True)
    assert trio.current_time() - start == (60 if where == "a" else 0) + 5


async def test_an_on_failure_that_hangs_is_cut_short_and_the_failure_stands(
    autojump_clock: MockClock,
) -> None:
    start = trio.current_time()
    _, end = await life("a", fails="a", hangs="on_failure(a)")
    assert (str(end.error), end.cancelled) == ("a", False)
    assert trio.current_time() - start == 5


async def test_cancellation_still_lets_on_stop_release_what_needs_no_wait(
    autojump_clock: MockClock,
) -> None:
    log: list[str] = []
    with trio.move_on_after(1):
        async with ActorSystem() as system:
            await system.start(ChildSpec("one", lambda: Recorder(log)))
            await trio.sleep_forever()
    assert log == ["on_start", "on_stop", "on_stop done"]


async def test_a_failing_on_stop_does_not_hold_up_a_cancellation(
    autojump_clock: MockClock,
) -> None:
    exits: list[Exit] = []
    with trio.move_on_after(1) as scope:
        async with ActorSystem() as system:
            await system.start(
                ChildSpec("one", lambda: Recorder([], fails="on_stop")), on_exit=exits.append
            )
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert [str(end.error) for end in exits] == ["on_stop"]


async def test_a_receiver_without_receive_says_so(autojump_clock: MockClock) -> None:
    class Mute(Actor):
        receives = (Do,)

    exits: list[Exit] = []
    async with ActorSystem() as system:
        ref = system.root.start_child_nowait(
            ChildSpec("mute", Mute, Restart.TEMPORARY), on_exit=exits.append
        )
        with pytest.raises(ActorDead):
            await ref.ask(Do("a"), Done)
    assert "Mute must define `receive`" in str(exits[0].error)


# -- its context ------------------------------------------------------------------


async def test_an_actor_knows_its_place(autojump_clock: MockClock) -> None:
    seen: list[tuple[str, str, int, int]] = []

    class Nested(Actor):
        receives = (Do,)
        has_tasks = True

        async def on_start(self) -> None:
            context = self.context
            assert context.ref.name == context.name
            assert context.system is system
            seen.append((context.name, context.path, context.seed, context.incarnation))
            if context.name == "outer":
                supervisor = await self.supervise()
                await supervisor.start_child(ChildSpec("inner", Nested))

        async def receive(self, message: Message) -> Message | None:
            raise ValueError

    async with ActorSystem(seed=11) as system:
        ref = await system.start(ChildSpec("outer", Nested))
        with pytest.raises(ActorRestarted):
            await ref.ask(Do("crash"), Done)
        await trio.sleep(1)
    outer, inner = derive(11, "outer"), derive(11, "outer", "inner")
    assert seen == [
        ("outer", "outer", outer, 0),
        ("inner", "outer/inner", inner, 0),
        ("outer", "outer", outer, 1),
        ("inner", "outer/inner", inner, 0),
    ]


async def test_a_busy_actor_lets_others_run(autojump_clock: MockClock) -> None:
    order: list[str] = []

    class Counter(Actor):
        receives = (Do,)

        async def receive(self, message: Message) -> Message | None:
            order.append("message")
            return None

    async with ActorSystem() as system:
        ref = await system.start(ChildSpec("counter", Counter))

        async def other() -> None:
            for _ in range(3):
                order.append("other")
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for _ in range(4 * MESSAGES_PER_SLICE):
                ref.tell_nowait(Do("count"))
            nursery.start_soon(other)
        await trio.sleep(1)
    assert order.count("message") == 4 * MESSAGES_PER_SLICE
    last = len(order) - 1 - order[::-1].index("other")
    assert order[:last].count("message") <= 3 * MESSAGES_PER_SLICE


# -- tasks and children of its own --------------------------------------------------


class Parent(Actor):
    """Runs background work and a supervised child; both must end with it."""

    receives = (Do,)
    has_tasks = True

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.supervisor: Supervisor

    async def on_start(self) -> None:
        self.supervisor = await self.supervise(
            intensity=RestartIntensity(1, 60), backoff=NO_BACKOFF
        )
        await self.supervisor.start_child(ChildSpec("child", lambda: Recorder(self.log)))
        self.background(self.beat, 1.0)

    async def beat(self, seconds: float) -> None:
        try:
            while True:
                await trio.sleep(seconds)
                self.log.append("beat")
        finally:
            self.log.append("beat ended")

    async def fail_later(self) -> None:
        await trio.sleep(2)
        raise ValueError("background")

    async def on_stop(self) -> None:
        self.log.append("parent on_stop")

    async def on_failure(self, error: BaseException) -> None:
        self.log.append(f"parent on_failure({type(error).__name__})")

    async def receive(self, message: Message) -> Message | None:
        assert isinstance(message, Do)
        match message.what:
            case "background":
                self.background(self.fail_later)
            case "escalate":
                (child,) = self.supervisor.children
                child.tell_nowait(Do("crash"))
            case "crash":
                raise ValueError("receive")
        return Done(message.what)


def parent(log: list[str]) -> ChildSpec:
    return ChildSpec("parent", lambda: Parent(log), Restart.TEMPORARY)


async def test_children_stop_first_then_on_stop_then_background_work(
    autojump_clock: MockClock,
) -> None:
    log: list[str] = []
    async with ActorSystem() as system:
        await system.start(parent(log))
        await trio.sleep(2.5)
    assert log == [
        *("on_start", "beat", "beat"),
        *("on_stop", "on_stop done", "parent on_stop", "beat ended"),
    ]


@pytest.mark.parametrize(
    ("what", "error"),
    [("crash", "ValueError"), ("background", "ValueError")],
)
async def test_when_it_fails_everything_it_owns_ends_before_on_failure(
    autojump_clock: MockClock, what: str, error: str
) -> None:
    log: list[str] = []
    exits: list[Exit] = []
    async with ActorSystem() as system:
        ref = await system.start(parent(log), on_exit=exits.append)
        await ref.tell(Do(what))
        await trio.sleep(5)
        assert not ref.alive
    assert log[-1] == f"parent on_failure({error})"
    assert "parent on_stop" not in log
    assert {"beat ended", "on_stop"} < set(log)
    assert type(exits[0].error).__name__ == error  # no exception group around a single cause


async def test_a_child_that_fails_too_often_fails_its_parent(autojump_clock: MockClock) -> None:
    log: list[str] = []
    exits: list[Exit] = []

    class Crashes(Recorder):
        async def receive(self, message: Message) -> Message | None:
            raise ValueError("again")

    class Above(Parent):
        async def on_start(self) -> None:
            self.supervisor = await self.supervise(
                intensity=RestartIntensity(1, 60), backoff=NO_BACKOFF
            )
            await self.supervisor.start_child(ChildSpec("child", lambda: Crashes(log)))

    async with ActorSystem() as system:
        ref = await system.start(
            ChildSpec("parent", lambda: Above(log), Restart.TEMPORARY), on_exit=exits.append
        )
        for _ in range(2):
            await ref.tell(Do("escalate"))
            await trio.sleep(1)
        assert not ref.alive
    assert log[-1] == "parent on_failure(RestartLimitExceeded)"
    error = exits[0].error
    assert isinstance(error, RestartLimitExceeded)
    assert "parent/child failed once more after 1 restarts within 60 s" in str(error)
    assert str(error.__cause__) == "again"


async def test_tasks_need_to_be_asked_for(autojump_clock: MockClock) -> None:
    class Lean(Actor):
        receives = (Do,)

        async def receive(self, message: Message) -> Message | None:
            with pytest.raises(ActorError, match=r"`background` needs .* on Lean"):
                self.background(trio.sleep, 1)
            with pytest.raises(ActorError, match="`supervise` needs"):
                await self.supervise()
            return Done("refused")

    async with ActorSystem() as system:
        ref = await system.start(ChildSpec("lean", Lean))
        assert await ref.ask(Do("try"), Done) == Done("refused")


async def test_deferring_a_tell_gives_a_reply_that_goes_nowhere(autojump_clock: MockClock) -> None:
    class Defers(Actor):
        receives = (Do,)

        async def receive(self, message: Message) -> Message | None:
            reply = self.defer()
            reply.on_abandon(lambda: pytest.fail("nobody asked, so nobody can leave"))
            assert not reply.pending
            reply.answer(Done("nowhere"))
            return None

    async with ActorSystem() as system:
        ref = await system.start(ChildSpec("defers", Defers))
        await ref.tell(Do("a"))
        await trio.sleep(1)
        assert ref.statistics().restarts == 0
