"""Admits episodes as permits allow, and answers for every session it started.

One permit is one live session. The dispatcher enters an episode in the ledger,
starts a session for it, and gets told when that session exits; if it exited
without having told its record (it crashed, or was cancelled with a full
mailbox in the way), the dispatcher tells the collector a record in its place.

Invariants: never more live sessions than permits; every admitted episode gets
exactly one record; a rollout that is cancelled admits nothing more.

A dispatcher that fails takes its sessions with it (their episodes end CANCELLED);
the next incarnation finds the rollouts in the ledger and admits what is left.

Not here: what a session does (`session`), and who waits for it (`embedding`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

import msgspec
import trio

from ..engine.actor import Actor
from ..engine.errors import ActorDead, MailboxFull, classify
from ..engine.permits import Permits
from ..engine.ref import ActorRef
from ..engine.restart import Restart
from ..engine.seeds import derive
from ..engine.supervisor import ChildSpec, Exit, Supervisor
from ..engine.trajectory import Fault
from .ledger import Ledger, RolloutBook
from .protocol import Accepted, CancelRollout, EpisodeEnded, RunEpisode, RunRollout
from .session import Session

_LEAD: Final = 256
"""Finished trajectories a consumer may lag behind before its rollout admits no more."""

_BURST: Final = 16
"""Sessions started in one turn of the loop while permits are free: a turn for each session
costs as much as the session's own start, and sixteen hold the loop for half a millisecond."""


def trajectory_id(wave: int, task_id: str, attempt: int) -> str:
    """The id of one attempt at one task in one wave."""
    return f"w{wave}/{task_id}/{attempt}"


def wave_of(id_: str) -> int:
    """The wave that a trajectory's id names."""
    return int(id_.partition("/")[0].removeprefix("w"))


class Dispatcher(Actor):
    """The one door to live sessions."""

    receives = (RunRollout, CancelRollout)
    has_tasks = True

    def __init__(self, ledger: Ledger, permits: Permits, collector: ActorRef) -> None:
        self._ledger = ledger
        self._permits = permits
        self._collector = collector
        self._live: dict[int, dict[str, ActorRef]] = {}
        self._sessions: Supervisor

    async def on_start(self) -> None:
        """Open the supervisor that owns the sessions, and take over what a predecessor left."""
        self._sessions = await self.supervise()
        for book in list(self._ledger.books.values()):
            for order in list(book.open.values()):
                self._tell(book, order, None)  # no news where its session's record is under way
            if book.order is not None:
                self.background(self._admit, book, book.order)

    async def receive(self, message: RunRollout | CancelRollout) -> Accepted:  # type: ignore[override]
        """Begin or end a rollout; admission runs beside the mailbox. Both may be repeated."""
        book = self._ledger.books.get(message.rollout)
        if book is None:
            return Accepted()  # given up before it began
        if isinstance(message, CancelRollout):
            await self._cancel(message.rollout, book)
        elif book.order is None:
            book.order = message
            self.background(self._admit, book, message)
        return Accepted()

    async def _admit(self, book: RolloutBook, order: RunRollout) -> None:
        """Start one session for each permit that comes free, task by task."""
        permits = self._permits
        for number, episode in enumerate(islice(episodes(order), book.admitted, None)):
            await book.room(permits.size + _LEAD)
            waited = False
            try:
                permits.acquire_nowait()
            except trio.WouldBlock:
                waited = True
                await permits.acquire()
            try:
                if number % _BURST == 0 and not waited:
                    await trio.lowlevel.checkpoint()  # we may be cancelled here, permit in hand
                if book.cancelled:
                    self._permits.release()
                    return
                self._start(book, episode)
            except ActorDead:  # we are being stopped, and our sessions with us
                self._permits.release()
                return
            except BaseException:
                self._permits.release()
                raise

    def _start(self, book: RolloutBook, order: RunEpisode) -> None:
        spec = ChildSpec(
            name=f"{order.rollout}:{order.id}",  # unique even if two rollouts share ids
            factory=lambda: Session(book.settings[order.task.env], self._collector),
            restart=Restart.TEMPORARY,
            stop_timeout=0.0,  # whoever stops a session wants no more turns of it
        )
        ref = self._sessions.start_child_nowait(
            spec, on_exit=lambda gone: self._session_gone(book, order, gone)
        )
        opening = book.openings.get(order.id)
        if opening is not None:
            order = msgspec.structs.replace(order, environment_seed=opening.environment_seed)
        book.admit(order)
        if opening is not None and opening.turns:
            order = msgspec.structs.replace(order, turns=opening.turns, opening=len(opening.turns))
        elif turns := book.begun.pop(order.id, ()):
            order = msgspec.structs.replace(order, turns=tuple(turns))
        self._live.setdefault(order.rollout, {})[order.id] = ref
        ref.tell_nowait(order)

    def _session_gone(self, book: RolloutBook, order: RunEpisode, gone: Exit) -> None:
        """Free the permit; if the session could not tell its record, tell one in its place."""
        self._permits.release()
        live = self._live.get(order.rollout)
        if live is not None:
            live.pop(order.id, None)
            if not live:
                del self._live[order.rollout]
        if order.id in book.open:
            self._tell(book, order, gone.error)

    def _tell(self, book: RolloutBook, order: RunEpisode, error: BaseException | None) -> None:
        fault = Fault(*classify(error)) if error is not None else None
        record = EpisodeEnded(order.rollout, book.stand_in(order, fault))
        try:
            self._collector.tell_nowait(record)
        except MailboxFull:
            self.background(self._collector.tell, record)
        except ActorDead:
            pass  # the engine is closing: whoever iterates is told so

    async def _cancel(self, rollout: int, book: RolloutBook) -> None:
        """Admit no more of it, stop its sessions, and let their records arrive."""
        book.cancel()
        live = list(self._live.get(rollout, {}).values())
        for ref in live:
            ref.stop()  # all of them, before waiting for one
        for ref in live:
            await self._sessions.stop_child(ref)
        book.settle()


def episodes(order: RunRollout) -> Iterator[RunEpisode]:
    """The episodes of a rollout in the order of their admission, with their seeds."""
    skip = frozenset(order.skip)
    wave_seed = derive(order.seed, "wave", order.wave)
    for task in order.tasks:
        task_id = task.id
        task_seed = derive(wave_seed, "task", task_id)
        environment_seed = derive(task_seed, "environment")
        for attempt in range(order.attempts):
            id_ = trajectory_id(order.wave, task_id, attempt)
            if id_ not in skip:
                seed = derive(task_seed, "attempt", attempt)
                yield RunEpisode(
                    id_, order.rollout, task, order.wave, attempt, seed, environment_seed
                )
