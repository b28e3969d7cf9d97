"""Proof that the torture finds bugs: an invariant is broken on purpose, and it must see it.

Each mutant is one wrong line in the engine. The plans are the generated ones, restricted to
the kinds that could meet it, so that the search takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import msgspec
import pytest
import trio
from rollwave.actors import dispatcher
from rollwave.actors.collector import Collector
from rollwave.actors.dispatcher import Dispatcher, episodes
from rollwave.actors.episode import Episode
from rollwave.actors.inference import Inference
from rollwave.actors.protocol import Accepted, EpisodeEnded, RunEpisode, RunRollout
from rollwave.actors.session import Session
from rollwave.actors.simulation import trial
from rollwave.actors.simulation.fault_plan import FaultPlan
from rollwave.actors.simulation.random_plan import random_plan
from rollwave.actors.simulation.trial import examine, shrink
from rollwave.engine.journal import Journal
from rollwave.engine.seeds import derive
from rollwave.engine.store import Store
from rollwave.engine.trajectory import Outcome, Trajectory

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def alone(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What is undisturbed is another thing under each mutant."""
    caplog.set_level("CRITICAL", "rollwave")
    trial.forget()
    yield
    trial.forget()


# -- the mutants ---------------------------------------------------------------------------


def acknowledges_before_the_disk_has_it(patch: Patch) -> None:
    async def commit(self: Collector, book: Any) -> None:
        return

    patch.setattr(Collector, "_commit", commit)


def writes_without_fsync(patch: Patch) -> None:
    def write(self: Any, batch: list[bytes]) -> None:
        self._disk.write(self._descriptor, b"".join(batch), self._good)

    patch.setattr(Journal, "_write", write)


def gives_a_fault_the_reward_0(patch: Patch) -> None:
    record = Episode.record

    def rewarded(self: Episode) -> Trajectory:
        made = record(self)
        return msgspec.structs.replace(made, reward=0.0) if made.fault is not None else made

    patch.setattr(Episode, "record", rewarded)
    patch.setattr(Trajectory, "check", lambda self: None)


def seeds_by_position(patch: Patch) -> None:
    def positioned(order: RunRollout) -> Iterator[RunEpisode]:
        for number, episode in enumerate(episodes(order)):
            yield msgspec.structs.replace(episode, seed=derive(order.seed, order.wave, number))

    patch.setattr(dispatcher, "episodes", positioned)


def forgets_who_was_live(patch: Patch) -> None:
    async def receive(self: Any, message: RunEpisode) -> None:
        episode = Episode(self._settings, message)
        await episode.play()
        await self._report(episode.ended())
        self.stop()

    patch.setattr(Session, "receive", receive)
    patch.setattr(Dispatcher, "_tell", lambda self, book, order, error: None)


def keeps_a_permit(patch: Patch) -> None:
    async def admit(self: Any, book: Any, order: RunRollout) -> None:
        for number, episode in enumerate(islice(episodes(order), book.admitted, None)):
            await self._permits.acquire()
            if number % 2 == 0:
                await trio.lowlevel.checkpoint()  # cancelled here, the permit is lost
            if book.cancelled:
                self._permits.release()
                return
            self._start(book, episode)

    patch.setattr(Dispatcher, "_admit", admit)


def believes_any_version(patch: Patch) -> None:
    class Everything(list[int]):
        def __getitem__(self, key: Any) -> Any:
            return range(-1, 10_000) if isinstance(key, slice) else super().__getitem__(key)

    made = Inference.__init__

    def believing(self: Any, *arguments: Any, **named: Any) -> None:
        made(self, *arguments, **named)
        self._versions = Everything(self._versions)

    patch.setattr(Inference, "__init__", believing)


def takes_a_record_twice(patch: Patch) -> None:
    async def receive(self: Any, message: EpisodeEnded) -> Accepted:
        book = self._ledger.books.get(message.rollout)
        if book is not None:
            if message.trajectory.id in book.open:
                self._enter(book, message.trajectory)
            elif message.trajectory.outcome is Outcome.CANCELLED:
                book.ended += 1
                self._undelivered.append((book, message.trajectory))
                self._arrived.set()
        return Accepted()

    patch.setattr(Collector, "receive", receive)


def seals_in_the_order_of_arrival(patch: Patch) -> None:
    seal = Store.seal

    def by_length(self: Store, number: int, version: int, records: Any) -> Any:
        return seal(self, number, version, sorted(records, key=lambda t: t.seconds))

    patch.setattr(Store, "seal", by_length)


MUTANTS: list[tuple[Callable[[Patch], None], str, tuple[str, ...]]] = [
    (
        acknowledges_before_the_disk_has_it,
        "nothing acknowledged is lost",
        ("process.killed", "process.power"),
    ),
    (writes_without_fsync, "nothing acknowledged is lost", ("process.power",)),
    (gives_a_fault_the_reward_0, "one outcome each", ("environment", "backend")),
    (seeds_by_position, "same trajectories", ("process.killed", "campaign.cancelled")),
    (forgets_who_was_live, "it ends", ("session.cancelled", "dispatcher")),
    (keeps_a_permit, "permits return", ("dispatcher",)),
    (believes_any_version, "versions are honest", ("backend",)),
    (takes_a_record_twice, "one outcome each", ("dispatcher", "session")),
    (seals_in_the_order_of_arrival, "same trajectories", ("inference", "session")),
]


def concerns(plan: FaultPlan, kinds: tuple[str, ...]) -> bool:
    """Whether something of these kinds is in the plan, and could happen."""
    named = [strike.kind for strike in plan.strike if strike.process == 0]
    named += [f"environment.{k}" for k, share in plan.environment.shares().items() if share]
    named += [f"backend.{k}" for k, share in plan.backend.shares().items() if share]
    return any(name.startswith(kinds) for name in named)


@pytest.mark.parametrize(
    ("mutate", "invariant", "kinds"), MUTANTS, ids=[mutate.__name__ for mutate, _, _ in MUTANTS]
)
def test_a_mutant_is_found_and_its_plan_shrunk(
    monkeypatch: Patch,
    mutate: Callable[[Patch], None],
    invariant: str,
    kinds: tuple[str, ...],
) -> None:
    drawn = (random_plan(seed) for seed in range(3000))
    chosen = list(islice((plan for plan in drawn if concerns(plan, kinds)), 60))
    mutate(monkeypatch)

    def broken(plan: FaultPlan) -> bool:
        problems = examine(plan, twice=False).problems
        return any(text.startswith(invariant) for text in problems)

    found = next((plan for plan in chosen if broken(plan)), None)
    assert found is not None
    least = shrink(found, broken, tries=15)
    assert broken(least)
    shares = [
        share
        for section in (least.environment, least.backend)
        for share in section.shares().values()
        if share
    ]
    assert len(least.strike) + len(shares) <= 2
    assert FaultPlan.parse(least.toml()) == least
    monkeypatch.undo()
    trial.forget()
    assert examine(least, twice=False).problems == []  # the engine as it is stands it
