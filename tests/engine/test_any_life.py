"""Any life of a supervisor: whatever is started, crashed and stopped, in whatever order.

For every plan: each child exits exactly once, never two incarnations at once, nobody
starts after its exit, every ask ends, restarts stay within the intensity, the
shutdown goes in reverse order; and the same seed gives the same digest.
"""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import Literal

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.actor import Actor
from rollwave.engine.codec import Message
from rollwave.engine.errors import ActorError, RestartLimitExceeded
from rollwave.engine.ref import ActorRef
from rollwave.engine.restart import Backoff, Restart, RestartIntensity, Strategy
from rollwave.engine.supervisor import ChildSpec, LifecycleEvent
from rollwave.engine.system import ActorSystem
from rollwave.engine.testing import EventLog, event_digest, run_simulated


class Do(Message, frozen=True):
    what: Literal["work", "crash", "end"]
    seconds: float = 0.0


class Done(Message, frozen=True):
    by: str


class Book(EventLog):
    """The members' log, and who is up: never two incarnations of one member."""

    def __init__(self) -> None:
        self.up: set[str] = set()
        self.overlaps: list[str] = []

    def enter(self, name: str) -> None:
        if name in self.up:  # raising here would only be one more crash of the member
            self.overlaps.append(name)
        self.up.add(name)
        self("start", name)


class Member(Actor):
    """Logs its start and stop; works, crashes or ends as told; may fail to start."""

    receives = (Do,)
    mailbox_capacity = 4

    def __init__(self, log: Book, starts_badly: tuple[int, ...]) -> None:
        self.log = log
        self.starts_badly = starts_badly
        """The incarnations whose `on_start` fails."""

    async def on_start(self) -> None:
        self.log.enter(self.context.name)
        try:
            await trio.sleep(0.01)
            if self.context.incarnation in self.starts_badly:
                raise OSError("cannot start")
        except BaseException:
            self.log.up.discard(self.context.name)
            raise

    async def on_stop(self) -> None:
        self.log("stop", self.context.name)
        self.log.up.discard(self.context.name)

    async def on_failure(self, error: BaseException) -> None:
        self.log.up.discard(self.context.name)

    async def receive(self, message: Message) -> Message | None:
        assert isinstance(message, Do)
        await trio.sleep(message.seconds)
        if message.what == "crash":
            raise ValueError("as told")
        if message.what == "end":
            self.stop()
        return Done(self.context.name)


BAD = {"start": (), "start badly": (0, 2)}
KINDS = {"p": Restart.PERMANENT, "t": Restart.TRANSIENT, "x": Restart.TEMPORARY}

steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["start", "start badly", "crash", "crash", "end", "work", "stop", "ref stop", "wait"]
        ),
        st.sampled_from("abcde"),
        st.sampled_from("ptx"),
        st.floats(0, 3),
    ),
    max_size=30,
)


def reversed_in_blocks(started: list[tuple[str, bool]], ended: list[object]) -> list[object]:
    """The order in which these must end: reversed, temporary neighbours in any order."""
    order: list[object] = []
    for temporary, block in groupby(reversed(started), key=lambda child: child[1]):
        names: list[object] = [name for name, _ in block]
        order += sorted(names, key=ended.index) if temporary else names
    return order


async def any_life(
    plan: list[tuple[str, str, str, float]],
    strategy: Strategy,
    intensity: RestartIntensity,
    seed: int,
    leave: str,
) -> str:
    """Live through the plan; check what must hold for every life; give its digest."""
    log, exits, asked, ended = Book(), EventLog(), 0, 0
    at_the_end: list[tuple[str, bool]] = []
    events: list[LifecycleEvent] = []
    started: list[str] = []
    refs: dict[str, ActorRef] = {}
    specs: dict[str, ChildSpec] = {}

    async def ask(ref: ActorRef, message: Do) -> None:
        nonlocal ended
        try:
            with trio.move_on_after(20):
                await ref.ask(message, Done)
        except ActorError:
            pass
        finally:
            ended += 1

    def escalating() -> bool:
        return any(event.kind == "escalated" for event in events)

    escalated = False
    async with trio.open_nursery() as asking:
        try:
            with trio.CancelScope() as scope:
                async with ActorSystem(
                    seed=seed,
                    strategy=strategy,
                    intensity=intensity,
                    backoff=Backoff(first=0.5, limit=4.0),
                    observe=events.append,
                ) as system:
                    root = system.root
                    for number, (step, name, kind, seconds) in enumerate(plan):
                        living = {ref.name.split("-")[0]: ref for ref in root.children}
                        if step.startswith("start") and name not in living:
                            full = f"{name}-{number}"
                            if escalating():
                                break  # it starts nobody any more; the block is about to end
                            started.append(full)
                            specs[full] = ChildSpec(
                                full, partial(Member, log, BAD[step]), KINDS[kind], 2.0
                            )
                            refs[full] = root.start_child_nowait(
                                specs[full],
                                on_exit=lambda end: exits("exit", end.name, end.cancelled),
                            )
                        elif step in ("crash", "end", "work") and name in living:
                            asked += 1
                            asking.start_soon(ask, living[name], Do(step, seconds))  # type: ignore[arg-type]
                        elif step == "stop" and name in living:
                            await root.stop_child(living[name])
                        elif step == "ref stop" and name in living:
                            living[name].stop()
                        else:
                            await trio.sleep(seconds)
                    if leave == "settled":
                        await trio.sleep(60)
                    at_the_end = [
                        (ref.name, specs[ref.name].restart is Restart.TEMPORARY)
                        for ref in root.children
                    ]
                    if leave == "cancelled":
                        scope.cancel()
                        await trio.sleep(1)
        except RestartLimitExceeded:
            escalated = True
        # Nobody is left, and every child has exited exactly once.
        assert root.children == ()
        assert sorted(str(name) for _, _, name, _ in exits) == sorted(started)
        assert not any(ref.alive for ref in refs.values())
        if leave == "cancelled":  # a cancellation from outside outruns the error
            assert escalating() or not escalated
        else:
            assert escalated == escalating()
        # Never more restarts within a window than allowed.
        times = [event.time for event in events if event.kind == "restarting"]
        for start in times:
            inside = [t for t in times if start <= t < start + intensity.window_seconds]
            assert len(inside) <= intensity.max_restarts
        assert (log.up, log.overlaps) == (set(), [])
        # Nobody starts after it has exited.
        gone = {name: float(str(time)) for time, _, name, _ in exits}
        assert all(float(str(time)) <= gone[name] for time, _, name in log)
        if leave == "settled" and not escalated:
            in_order = [name for _, _, name, _ in exits][len(exits) - len(at_the_end) :]
            assert in_order == reversed_in_blocks(at_the_end, in_order)
    assert ended == asked  # every ask has ended
    return event_digest([log, exits, [(e.time, e.kind, e.path) for e in events]])


@settings(max_examples=300, deadline=None)
@given(
    plan=steps,
    strategy=st.sampled_from(Strategy),
    most=st.integers(0, 4),
    seed=st.integers(0, 2**32),
    leave=st.sampled_from(["at once", "settled", "cancelled"]),
)
def test_any_life_of_a_supervisor(
    plan: list[tuple[str, str, str, float]],
    strategy: Strategy,
    most: int,
    seed: int,
    leave: str,
) -> None:
    async def scenario() -> str:
        return await any_life(plan, strategy, RestartIntensity(most, 5.0), seed, leave)

    digest = run_simulated(scenario, seed=seed)
    assert digest == run_simulated(scenario, seed=seed)  # same seed, same run
