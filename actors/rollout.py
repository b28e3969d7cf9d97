"""The trajectories of one rollout, as a stream that can be left at any time.

    async with engine.rollout(tasks) as rollout:
        async for trajectory in rollout:
            ...

Invariants: each episode is yielded once, in the order in which they end; leaving early
cancels what still runs and waits until it has ended; a journal that fails, or an engine
that closes, ends the stream with that error.

Not here: who plays the episodes (`embedding`, `dispatcher`).
"""

from __future__ import annotations

import math
import weakref
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import trio

from ..engine.errors import ActorDead
from ..engine.trajectory import Outcome, Trajectory
from .ledger import Ledger, RolloutBook
from .monitor import Snapshot
from .protocol import RunRollout

if TYPE_CHECKING:
    from .embedding import Engine

_SLOW_SECONDS: Final = 5.0
"""A stage that lasts longer is shown to who watches."""


class Rollout:
    """The trajectories of one rollout, in the order in which they end.

    Iterate over it; leaving an `async with` on it early cancels what still runs.
    """

    def __init__(
        self,
        engine: Engine,
        order: RunRollout,
        book: RolloutBook,
        stream: trio.MemoryReceiveChannel[Trajectory],
    ) -> None:
        self._engine = engine
        self._order = order
        self._book = book
        self._stream = stream
        self._begun = False
        self._started = trio.current_time()
        self._looked = -math.inf
        self._slowest = ""
        # Given up before anybody iterated: nobody else would ever close its book.
        weakref.finalize(self, _forget, engine.ledger, order.rollout, book).atexit = False

    @property
    def planned(self) -> int:
        """Episodes of this rollout in all, without those skipped."""
        return self._book.planned

    @property
    def cancelled(self) -> bool:
        """Whether somebody stopped it before its end."""
        return self._book.cancelled

    def snapshot(self, stage: str = "") -> Snapshot:
        """The figures of this moment."""
        book = self._book
        scored = sum(n for outcome, n in book.outcomes.items() if outcome.scored)
        elapsed = trio.current_time() - self._started
        return Snapshot(
            stage=stage,
            sessions_live=len(book.open),
            episodes_done=book.ended,
            episodes_total=book.planned,
            turns=book.turns,
            turns_per_second=book.turns / elapsed if elapsed > 0 else 0.0,
            batch_fill=self._engine.batch_fill(),
            outcomes={outcome.value: n for outcome, n in book.outcomes.items()},
            faults={kind.value: n for kind, n in book.faults.items()},
            resumed=book.resumed,
            restarted=book.restarted,
            slowest=self._look(),
            success_rate=book.outcomes[Outcome.SUCCESS] / scored if scored else None,
        )

    def stuck(self, least: float = 0.0) -> str:
        """The stage that has lasted longest among the live episodes, in words; empty if none
        has lasted `least` seconds. Looks at each of them."""
        slowest = self._book.slowest(trio.current_time())
        if slowest is None or slowest[1] < least:
            return ""
        return f"{slowest[0]} for {slowest[1]:.0f} s"

    def _look(self) -> str:
        """As `stuck`, about once a second."""
        now = trio.current_time()
        if now - self._looked >= 1.0:
            self._looked = now
            self._slowest = self.stuck(_SLOW_SECONDS)
        return self._slowest

    def __aiter__(self) -> Self:
        """Iterate; a rollout can be iterated once, and is closed at its end."""
        return self

    async def __anext__(self) -> Trajectory:
        """The next trajectory to end."""
        if not self._begun:
            self._begun = True
            self._started = trio.current_time()
            if self._book.planned == 0:
                self._book.stream.close()
            else:
                await self._engine.begin(self._order)
        try:
            trajectory = await self._stream.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            await self.aclose()  # where it ended early, its sessions still run
            if self._book.error is not None:
                raise self._book.error from None
            raise StopAsyncIteration from None
        self._book.take()
        return trajectory

    def ready(self) -> list[Trajectory]:
        """What has ended already, without waiting."""
        trajectories: list[Trajectory] = []
        while True:
            try:
                trajectories.append(self._stream.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                self._book.take(len(trajectories))
                return trajectories

    async def aclose(self) -> None:
        """Cancel what still runs, and wait until it has ended, also when cancelled; finished
        records that were not yet taken are dropped here (a journal has them)."""
        self._stream.close()
        if not self._book.complete:
            self._book.cancel()
        try:
            if self._begun and not self._book.complete:
                # Shielded: the mailbox skips an ask whose asker has gone. It is short, since
                # sessions are cancelled, and has the deadline of a control message.
                with trio.CancelScope(shield=True), suppress(ActorDead):
                    await self._engine.cancel(self._order.rollout)
        finally:
            # Whatever happened: nothing may reach a closed journal.
            self._engine.ledger.close_book(self._order.rollout)

    async def __aenter__(self) -> Self:
        """Enter; `async with` guarantees the cancellation of what was not iterated."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Cancel what still runs."""
        await self.aclose()


def _forget(ledger: Ledger, rollout: int, book: RolloutBook) -> None:
    """Close the book of a rollout that is gone and was never begun."""
    if book.order is None and not book.open:
        ledger.close_book(rollout)
