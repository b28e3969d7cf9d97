"""The whole system: four ways to leave it, one deadline, and nothing left behind."""

from __future__ import annotations

import gc
import logging
from functools import partial

import pytest
import trio
import trio.testing
from rollwave.engine.actor import Actor
from rollwave.engine.codec import Message
from rollwave.engine.errors import (
    ActorDead,
    ConfigError,
    DeadlineExceeded,
    RestartLimitExceeded,
)
from rollwave.engine.ref import ActorRef
from rollwave.engine.restart import Restart, RestartIntensity
from rollwave.engine.supervisor import ChildSpec, Exit, LifecycleEvent
from rollwave.engine.system import ActorSystem
from rollwave.engine.testing import EventLog, run_simulated
from trio.testing import MockClock


class Do(Message, frozen=True):
    what: str
    seconds: float = 0.0


class Done(Message, frozen=True):
    by: str


class Worker(Actor):
    """Works; may hang in `on_stop`, with or without a shield."""

    receives = (Do,)

    def __init__(self, log: list[str], *, stops_after: float = 0.0, shielded: bool = False) -> None:
        self.log = log
        self.stops_after = stops_after
        self.shielded = shielded

    async def receive(self, message: Message) -> Message | None:
        assert isinstance(message, Do)
        await trio.sleep(message.seconds)
        if message.what == "crash":
            raise ValueError("as told")
        self.log.append(message.what)
        return Done(self.context.name)

    async def on_stop(self) -> None:
        with trio.CancelScope(shield=self.shielded):
            await trio.sleep(self.stops_after)
        self.log.append(f"{self.context.name} stopped")


async def test_when_the_block_finishes_what_was_accepted_is_handled_first(
    autojump_clock: MockClock,
) -> None:
    log: list[str] = []
    async with ActorSystem() as system:
        store = await system.start(ChildSpec("store", lambda: Worker(log)))
        source = await system.start(ChildSpec("source", lambda: Worker(log)))
        for number in range(3):
            source.tell_nowait(Do(f"source {number}", 0.1))
            store.tell_nowait(Do(f"store {number}", 1.0))
    assert [line for line in log if line.startswith("source")] == [
        *(f"source {n}" for n in range(3)),
        "source stopped",
    ]
    assert [line for line in log if line.startswith("store")] == [
        *(f"store {n}" for n in range(3)),
        "store stopped",
    ]
    assert log[-1] == "store stopped"


async def test_an_actor_may_use_those_started_before_it_until_its_end(
    autojump_clock: MockClock,
) -> None:
    class Source(Worker):
        def __init__(self, log: list[str], store: ActorRef) -> None:
            super().__init__(log)
            self.store = store

        async def on_stop(self) -> None:
            assert await self.store.ask(Do("last words", 1), Done) == Done("store")

    log: list[str] = []
    async with ActorSystem() as system:
        store = await system.start(ChildSpec("store", lambda: Worker(log)))
        await system.start(ChildSpec("source", lambda: Source(log, store)))
    assert log == ["last words", "store stopped"]


async def test_when_the_block_raises_the_current_messages_are_finished_and_the_error_is_kept(
    autojump_clock: MockClock,
) -> None:
    log: list[str] = []

    async def scenario() -> None:
        async with ActorSystem() as system:
            ref = await system.start(ChildSpec("one", lambda: Worker(log)))
            ref.tell_nowait(Do("in hand", 1))
            ref.tell_nowait(Do("queued"))
            await trio.testing.wait_all_tasks_blocked()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        await scenario()
    assert caught.value.__cause__ is None
    assert log == ["in hand", "one stopped"]


@pytest.mark.parametrize("seconds", [0.0, 10.0])
async def test_cancelled_everything_ends_at_once(autojump_clock: MockClock, seconds: float) -> None:
    log: list[str] = []
    exits: list[Exit] = []
    start = trio.current_time()
    with trio.move_on_after(1) as scope:
        async with ActorSystem() as system:
            ref = await system.start(
                ChildSpec("one", lambda: Worker(log, stops_after=seconds)), on_exit=exits.append
            )
            ref.tell_nowait(Do("never done", 100))
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() - start == 1
    assert exits == [Exit("one", None, cancelled=True)]
    assert "never done" not in log


async def test_a_shutdown_that_is_cancelled_ends_at_once_too(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    with trio.move_on_after(2) as scope:
        async with ActorSystem() as system:
            for name in "ab":
                await system.start(ChildSpec(name, lambda: Worker([], stops_after=4)))
    assert scope.cancelled_caught
    assert trio.current_time() - start == 2


async def test_the_root_giving_up_cancels_the_block_with_one_plain_error(
    autojump_clock: MockClock,
) -> None:
    log: list[str] = []
    in_block: list[str] = []

    async def scenario() -> None:
        async with ActorSystem(intensity=RestartIntensity(0, 60)) as system:
            await system.start(ChildSpec("other", lambda: Worker(log, stops_after=1)))
            ref = await system.start(ChildSpec("one", lambda: Worker(log)))
            ref.tell_nowait(Do("crash"))
            try:
                await trio.sleep(100)
            except trio.Cancelled:
                in_block.append("cancelled")
                assert log == []
                raise

    with pytest.raises(RestartLimitExceeded, match="one failed once more after 0") as caught:
        await scenario()
    assert isinstance(caught.value.__cause__, ValueError)
    assert in_block == ["cancelled"]  # before the others were stopped
    assert log == ["other stopped"]  # the others were stopped, not cancelled


async def test_a_root_that_gave_up_has_the_shutdown_deadline_too(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with ActorSystem(intensity=RestartIntensity(0, 60), shutdown_seconds=3) as system:
            await system.start(
                ChildSpec("stuck", lambda: Worker([], stops_after=100), stop_timeout=1000)
            )
            ref = await system.start(ChildSpec("one", lambda: Worker([])))
            ref.tell_nowait(Do("crash"))
            await trio.sleep_forever()

    start = trio.current_time()
    with pytest.raises(RestartLimitExceeded, match="one failed"):
        await scenario()
    assert trio.current_time() - start == 3
    assert "stuck did not end" in caplog.text


async def test_two_errors_stay_a_group(autojump_clock: MockClock) -> None:
    async def scenario() -> None:
        async with ActorSystem(intensity=RestartIntensity(0, 60)) as system:
            ref = await system.start(ChildSpec("one", lambda: Worker([])))
            ref.tell_nowait(Do("crash"))
            try:
                await trio.sleep(100)
            finally:
                raise KeyError("mine")

    with pytest.raises(ExceptionGroup) as caught:
        await scenario()
    assert {type(e) for e in caught.value.exceptions} == {KeyError, RestartLimitExceeded}


async def test_a_group_raised_in_the_block_is_left_as_it_is(autojump_clock: MockClock) -> None:
    mine = ExceptionGroup("mine", [KeyError("a")])

    async def scenario() -> None:
        async with ActorSystem():
            raise mine

    with pytest.raises(ExceptionGroup) as caught:
        await scenario()
    assert caught.value is mine


# -- the deadline ---------------------------------------------------------------------


async def test_a_late_shutdown_names_who_it_waited_for(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with ActorSystem(shutdown_seconds=3) as system:
            await system.start(ChildSpec("innocent", lambda: Worker([])))
            await system.start(
                ChildSpec("stuck", lambda: Worker([], stops_after=100), stop_timeout=1000)
            )
            await system.start(ChildSpec("quick", lambda: Worker([])))

    start = trio.current_time()
    with pytest.raises(DeadlineExceeded, match="shutdown took longer than 3 s: stuck did not end"):
        await scenario()
    assert trio.current_time() - start == 3


async def test_it_names_the_grandchild_and_says_so_before_the_shield_lets_go(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Parent(Worker):
        has_tasks = True

        async def on_start(self) -> None:
            supervisor = await self.supervise()
            await supervisor.start_child(
                ChildSpec("stuck", lambda: Worker(self.log, stops_after=50, shielded=True))
            )

    logged_at: list[float] = []

    class Clock(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged_at.append(trio.current_time() - start)

    async def scenario() -> None:
        async with ActorSystem(shutdown_seconds=20) as system:
            await system.start(ChildSpec("parent", lambda: Parent([]), stop_timeout=1000))

    logger, handler = logging.getLogger("rollwave.engine"), Clock(logging.ERROR)
    logger.addHandler(handler)
    start = trio.current_time()
    try:
        with pytest.raises(DeadlineExceeded, match="parent/stuck did not end"):
            await scenario()
    finally:
        logger.removeHandler(handler)
    assert logged_at == [20]
    assert trio.current_time() - start == 50  # a shield is the actor's own word; it holds


async def test_an_error_of_the_block_is_not_replaced_by_a_late_shutdown(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with ActorSystem(shutdown_seconds=3) as system:
            await system.start(
                ChildSpec("stuck", lambda: Worker([], stops_after=100), stop_timeout=1000)
            )
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await scenario()
    assert "stuck did not end" in caplog.text


async def test_a_system_is_used_once(autojump_clock: MockClock) -> None:
    with pytest.raises(ConfigError, match="shutdown_seconds"):
        ActorSystem(shutdown_seconds=-1)
    async with ActorSystem() as system:
        pass
    with pytest.raises(ConfigError, match="entered once"):
        await system.__aenter__()
    with pytest.raises(ActorDead):
        await system.start(ChildSpec("late", lambda: Worker([])))


# -- thousands ------------------------------------------------------------------------


class Session(Actor):
    """Asks a server a few times, then ends; fails now and then."""

    receives = (Do,)

    def __init__(self, server: ActorRef, turns: int, fails: bool) -> None:
        self.server = server
        self.turns = turns
        self.fails = fails

    async def receive(self, message: Message) -> Message | None:
        for _ in range(self.turns):
            await self.server.ask(Do("turn"), Done)
        if self.fails:
            raise ValueError("fails")
        self.stop()
        return None


def test_churning_a_thousand_actors_leaves_nothing_behind() -> None:
    exits: list[Exit] = []

    async def scenario() -> None:
        tasks_before = trio.lowlevel.current_statistics().tasks_living
        async with ActorSystem() as system:
            server = await system.start(ChildSpec("server", lambda: Worker([])))
            baseline = trio.lowlevel.current_statistics().tasks_living
            for number in range(1000):
                ref = system.root.start_child_nowait(
                    ChildSpec(
                        f"session-{number}",
                        partial(Session, server, number % 4, number % 10 == 0),
                        Restart.TEMPORARY,
                    ),
                    on_exit=exits.append,
                )
                ref.tell_nowait(Do("go"))
                if number % 100 == 99:
                    await trio.sleep(1)
            await trio.sleep(1)
            assert trio.lowlevel.current_statistics().tasks_living == baseline
            assert system.root.children == (server,)
        assert trio.lowlevel.current_statistics().tasks_living == tasks_before

    run_simulated(scenario)
    assert sorted(end.name for end in exits) == sorted(f"session-{n}" for n in range(1000))
    assert sum(end.error is not None for end in exits) == 100
    exits.clear()  # an error's traceback holds on to its actor
    gc.collect()
    # By type: isinstance asks foreign objects for their class, and some warn when asked.
    assert not [thing for thing in gc.get_objects() if type(thing) is Session]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_same_seed_gives_the_same_run(seed: int) -> None:
    def digest(seed: int) -> str:
        log = EventLog()

        def observe(event: LifecycleEvent) -> None:
            log(event.kind, event.path, event.detail)

        async def scenario() -> None:
            async with ActorSystem(seed=seed, observe=observe) as system:
                server = await system.start(ChildSpec("server", lambda: Worker([])))
                for number in range(50):
                    ref = system.root.start_child_nowait(
                        ChildSpec(
                            f"session-{number}",
                            partial(Session, server, number % 4, number % 10 == 0),
                            Restart.TRANSIENT,
                        )
                    )
                    ref.tell_nowait(Do("go"))
                await trio.sleep(30)

        run_simulated(scenario, seed=seed)
        return log.digest()

    assert digest(seed) == digest(seed)
    assert digest(seed) != digest(seed + 10)  # another interleaving


async def test_cancelled_while_it_opens_it_leaves_nothing_behind() -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    with trio.CancelScope() as scope:
        scope.cancel()
        async with ActorSystem():
            raise AssertionError("it opened in spite of the cancellation")
    assert scope.cancelled_caught
    await trio.testing.wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living == before
