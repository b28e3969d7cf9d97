"""The actor that plays one episode and tells the collector.

A session actor is made for one episode, handed one `RunEpisode`, tells the
collector one `EpisodeEnded`, and stops when that is accepted. It is a temporary
child: nobody restarts it, because the episode's record says what happened instead.

Invariant: one trajectory leaves the session, also when it is cancelled (if it cannot
tell it, its dispatcher does).

Not here: the episode (`episode`).
"""

from __future__ import annotations

from contextlib import suppress

import trio

from ..engine.actor import Actor
from ..engine.errors import ActorError, ActorRestarted
from ..engine.ref import ActorRef
from .episode import Episode, SessionSettings
from .protocol import Accepted, EpisodeEnded, RunEpisode


class Session(Actor):
    """Plays one episode and tells the collector."""

    receives = (RunEpisode,)
    mailbox_capacity = 1

    def __init__(self, settings: SessionSettings, collector: ActorRef) -> None:
        self._settings = settings
        self._collector = collector

    async def receive(self, message: RunEpisode) -> None:  # type: ignore[override]
        """Play, record, tell, stop."""
        episode = Episode(self._settings, message)
        try:
            await episode.play()
            await self._report(episode.ended())
        except trio.Cancelled:
            # If the mailbox is full or gone, our dispatcher tells the collector instead.
            with suppress(ActorError):
                self._collector.tell_nowait(episode.ended())
            raise
        self.stop()

    async def _report(self, record: EpisodeEnded) -> None:
        """Tell the collector until an incarnation of it has accepted the record."""
        while True:
            try:
                await self._collector.ask(record, Accepted)
            except ActorRestarted:
                continue
            return
