"""Admits episodes as permits allow, and answers for every session it started.

One permit is one live session. The dispatcher enters an episode in the ledger,
starts a session for it, and gets told when that session exits; if it exited
without having told its record (it crashed, or was cancelled with a full
mailbox in the way), the dispatcher tells the collector a record in its place.

Invariants: never more live sessions than permits; every admitted episode gets
exactly one record; a rollout that is cancelled admits nothing more.

Not here: what a session does (`session`), and who waits for it (`engine`).
"""

from __future__ import annotations

import trio

from ..engine.actor import Actor
from ..engine.errors import ActorError, classify
from ..engine.permits import Permits
from ..engine.ref import ActorRef
from ..engine.restart import Restart
from ..engine.seeds import derive
from ..engine.supervisor import ChildSpec, Exit, Supervisor
from ..engine.trajectory import Fault, Outcome, Trajectory
from .ledger import Ledger, RolloutBook
from .protocol import Accepted, CancelRollout, EpisodeEnded, RunEpisode, RunRollout
from .session import Session


def trajectory_id(wave: int, task_id: str, attempt: int) -> str:
    """The id of one attempt at one task in one wave."""
    return f"w{wave}/{task_id}/{attempt}"


class Dispatcher(Actor):
    """The one door to live sessions."""

    receives = (RunRollout, CancelRollout)
    has_tasks = True

    def __init__(self, ledger: Ledger, permits: Permits, collector: ActorRef) -> None:
        self._ledger = ledger
        self._permits = permits
        self._collector = collector
        self._live: dict[int, dict[str, ActorRef]] = {}
        self._sessions: Supervisor | None = None

    async def on_start(self) -> None:
        """Open the supervisor that owns the sessions."""
        self._sessions = await self.supervise()

    async def receive(self, message: RunRollout | CancelRollout) -> Accepted:  # type: ignore[override]
        """Begin or end a rollout; admission runs beside the mailbox."""
        if isinstance(message, RunRollout):
            self.background(self._admit, message)
        else:
            await self._cancel(message.rollout)
        return Accepted()

    async def _admit(self, order: RunRollout) -> None:
        """Start one session for each permit that comes free, task by task."""
        book = self._ledger.books[order.rollout]
        live = self._live.setdefault(order.rollout, {})
        skip = frozenset(order.skip)
        wave_seed = derive(order.seed, "wave", order.wave)
        for task in order.tasks:
            task_seed = derive(wave_seed, "task", task.id)
            environment_seed = derive(task_seed, "environment")
            for attempt in range(order.attempts):
                id_ = trajectory_id(order.wave, task.id, attempt)
                if id_ in skip:
                    continue
                await self._permits.acquire()
                if book.cancelled:
                    self._permits.release()
                    return
                seed = derive(task_seed, "attempt", attempt)
                self._start(
                    book,
                    live,
                    RunEpisode(
                        id_,
                        order.rollout,
                        task,
                        order.wave,
                        attempt,
                        seed,
                        environment_seed,
                    ),
                )

    def _start(self, book: RolloutBook, live: dict[str, ActorRef], order: RunEpisode) -> None:
        assert self._sessions is not None  # on_start ran before any message
        book.admit(order)
        spec = ChildSpec(
            name=f"{order.rollout}:{order.id}",  # unique even if two rollouts share ids
            factory=lambda: Session(book.settings[order.task.env], self._collector),
            restart=Restart.TEMPORARY,
        )
        ref = self._sessions.start_child_nowait(
            spec, on_exit=lambda gone: self._session_gone(order, live, gone)
        )
        live[order.id] = ref
        ref.tell_nowait(order)

    def _session_gone(self, order: RunEpisode, live: dict[str, ActorRef], gone: Exit) -> None:
        """Free the permit; if the session ended badly, see that its record exists."""
        self._permits.release()
        live.pop(order.id, None)
        if gone.error is None and not gone.cancelled:
            return
        book = self._ledger.books.get(order.rollout)
        if book is None or order.id not in book.open:
            return
        record = EpisodeEnded(order.rollout, _record_in_place(order, book, gone))
        try:
            self._collector.tell_nowait(record)
        except ActorError:
            self.background(self._collector.tell, record)

    async def _cancel(self, rollout: int) -> None:
        """Admit no more of it, stop its sessions, and let their records arrive."""
        book = self._ledger.books.get(rollout)
        if book is not None:
            book.cancelled = True
        assert self._sessions is not None
        for ref in list(self._live.pop(rollout, {}).values()):
            await self._sessions.stop_child(ref)
            await trio.lowlevel.checkpoint()


def _record_in_place(order: RunEpisode, book: RolloutBook, gone: Exit) -> Trajectory:
    """The record of an episode whose session could not tell one."""
    fault = None
    if gone.error is not None:
        kind, text = classify(gone.error)
        fault = Fault(kind, text)
    return Trajectory(
        id=order.id,
        env=order.task.env,
        task_id=order.task.id,
        split=order.task.split,
        wave=order.wave,
        attempt=order.attempt,
        seed=order.seed,
        environment_seed=order.environment_seed,
        outcome=Outcome.FAULT if fault else Outcome.CANCELLED,
        reward=None,
        fault=fault,
        policy=book.settings[order.task.env].policy_name,
    )
