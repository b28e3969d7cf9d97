"""The learner actor: off the loop, one order at a time, and an order's error is its own."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from rollwave.actors import learner as module
from rollwave.actors.learner import Fence, LearnerActor, learner_error
from rollwave.actors.monitor import Snapshot, Watch
from rollwave.actors.protocol import PolicyUpdated, UpdatePolicy
from rollwave.engine.errors import (
    AskFailed,
    CheckpointCorrupt,
    ConfigError,
    DeadlineExceeded,
    EmptyWave,
    LearnerError,
    StorageFailed,
)
from rollwave.engine.ref import ActorRef
from rollwave.engine.store import Store
from rollwave.engine.system import ActorSystem, ChildSpec
from rollwave.engine.trajectory import Outcome, Trajectory, Turn
from rollwave.envs.base import Task
from rollwave.learners.base import Report
from rollwave.learners.settings import EvolSettings, TrainingSettings


def order(**changes: Any) -> UpdatePolicy:
    fields: dict[str, Any] = {
        "algorithm": "clone",
        "settings": msgspec.json.encode(TrainingSettings(max_steps=2, batch=2)),
        "experts": (),
        "waves": (),
        "starts": {},
        "evaluation": (),
        "out": "models/out",
    }
    return UpdatePolicy(**{**fields, **changes})


def with_learner(
    scenario: Callable[[ActorRef], Awaitable[None]],
    watch: Watch = lambda _: None,
    seconds: float = 3600.0,
    clock: trio.abc.Clock | None = None,
) -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            spec = ChildSpec("learner", lambda: LearnerActor(1, watch, seconds))
            await scenario(await system.start(spec))

    trio.run(main, clock=clock)


def test_the_answer_holds_what_the_step_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[UpdatePolicy, int]] = []

    def update(message: UpdatePolicy, threads: int, fence: Fence) -> Report:
        asked.append((message, threads))
        return Report({"loss": 0.5, "steps": 2.0}, 7, {"fault": 1})

    monkeypatch.setattr(module, "update", update)

    async def scenario(learner: ActorRef) -> None:
        done = await learner.ask(order(), PolicyUpdated)
        assert done == PolicyUpdated("models/out", {"loss": 0.5, "steps": 2.0}, 7, {"fault": 1})

    with_learner(scenario)
    assert asked == [(order(), 1)]


def test_training_blocks_nobody_and_orders_come_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, entered, running = threading.Semaphore(0), threading.Event(), []

    def update(message: UpdatePolicy, _threads: int, _fence: Fence) -> Report:
        running.append(message.out)
        entered.set()
        assert len(running) == 1
        gate.acquire(timeout=60)
        running.remove(message.out)
        return Report({}, 0)

    monkeypatch.setattr(module, "update", update)

    async def scenario(learner: ActorRef) -> None:
        async def ask(name: str) -> None:
            await learner.ask(order(out=name), PolicyUpdated)
            ended.append(name)

        ended: list[str] = []
        async with trio.open_nursery() as nursery:
            for name in ("a", "b", "c"):
                nursery.start_soon(ask, name)
                await trio.testing.wait_all_tasks_blocked()
            # The loop goes on while the thread trains.
            await trio.to_thread.run_sync(entered.wait, 60)
            assert running
            assert ended == []
            for _ in range(3):
                gate.release()
        assert sorted(ended) == ["a", "b", "c"]

    with_learner(scenario)


def test_a_cancelled_order_waits_for_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, entered = threading.Event(), threading.Event()

    def update(_order: UpdatePolicy, _threads: int, _fence: Fence) -> Report:
        entered.set()
        gate.wait(60)
        return Report({}, 0)

    monkeypatch.setattr(module, "update", update)

    async def main() -> None:
        async with ActorSystem() as system:
            learner = await system.start(
                ChildSpec("learner", lambda: LearnerActor(1, lambda _: None), stop_timeout=0.0)
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(learner.ask, order(), PolicyUpdated)
                await trio.to_thread.run_sync(entered.wait)
                nursery.cancel_scope.cancel()

    trio.run(main)  # returns although the thread is still held
    assert not gate.is_set()
    gate.set()


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (EmptyWave("nothing left to learn from"), "EmptyWave", "nothing left to learn from"),
        (ConfigError("lr is wrong"), "ConfigError", "lr is wrong"),
        (RuntimeError("out of memory"), "internal", "RuntimeError: out of memory"),
        (OSError(28, "No space left on device"), "storage", "OSError: [Errno 28]"),
    ],
)
def test_an_error_fails_its_order_alone(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str, text: str
) -> None:
    def update(message: UpdatePolicy, _threads: int, _fence: Fence) -> Report:
        if message.out == "bad":
            raise error
        return Report({}, 1)

    monkeypatch.setattr(module, "update", update)

    async def scenario(learner: ActorRef) -> None:
        with pytest.raises(AskFailed) as caught:
            await learner.ask(order(out="bad"), PolicyUpdated)
        assert caught.value.kind == kind
        assert text in caught.value.text
        assert (await learner.ask(order(), PolicyUpdated)).kept == 1
        assert learner.statistics().restarts == 0

    with_learner(scenario)


def jump(clock: trio.testing.MockClock, entered: threading.Event) -> Callable[[], Awaitable[None]]:
    """Let the deadline pass once the training thread is where it should be."""

    async def wait() -> None:
        await trio.to_thread.run_sync(entered.wait, 60)
        clock.jump(100.0)

    return wait


def test_a_late_order_names_its_step_and_fences_its_thread_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered, gate, ended = (threading.Event() for _ in range(3))
    clock = trio.testing.MockClock()
    told: list[str] = []

    def update(message: UpdatePolicy, _threads: int, fence: Fence) -> Report:
        fence.tell(f"{message.out} begins")
        if message.out == "models/slow":
            entered.set()
            gate.wait(60)
            try:
                fence.tell("a step that nobody waits for")
            except module.Abandoned:
                ended.set()
                raise
        return Report({}, 1)

    monkeypatch.setattr(module, "update", update)

    async def scenario(learner: ActorRef) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(jump(clock, entered))
            with pytest.raises(AskFailed) as caught:
                await learner.ask(order(out="models/slow"), PolicyUpdated)
        assert caught.value.kind == "DeadlineExceeded"
        assert caught.value.text.startswith("train slow took longer than 90 s; the same")
        # The thread is still there, and harms nobody.
        assert (await learner.ask(order(out="quick"), PolicyUpdated)).kept == 1
        gate.set()
        assert ended.wait(60)

    with_learner(scenario, lambda s: told.append(s.stage), 90.0, clock)
    assert told == ["models/slow begins", "quick begins"]


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("EmptyWave", EmptyWave, "why"),
        ("DeadlineExceeded", DeadlineExceeded, "why"),
        ("CheckpointCorrupt", CheckpointCorrupt, "train out: why"),
        ("StorageFailed", StorageFailed, "train out: why"),
        ("storage", StorageFailed, "train out: why"),
        ("ConfigError", ConfigError, "train out: why"),
        ("internal", LearnerError, "train out: why; the same command goes on"),
    ],
)
def test_an_answer_is_turned_back_into_the_error_that_it_was(
    kind: str, error: type[Exception], text: str
) -> None:
    found = learner_error(order(), AskFailed(kind, "why"))
    assert type(found) is error
    assert str(found).startswith(text)


# -- with torch -------------------------------------------------------------------------


def words(task: int, outcome: Outcome = Outcome.SUCCESS, wave: int = 0) -> Trajectory:
    turns = tuple(Turn(f"at {n}", word, word, 0.0) for n, word in enumerate(("up", "down")))
    return Trajectory(
        f"w{wave}/x_{task}/0",
        "x-v1",
        f"x_{task}",
        "train",
        wave,
        0,
        0,
        outcome,
        1.0 if outcome.scored else None,
        terminated=True,
        turns=turns,
        policy="expert",
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A tiny model and a sealed wave of four experts."""
    pytest.importorskip("transformers", reason="training needs torch and transformers")
    from rollwave.learners.model.tiny import make_tiny_model

    make_tiny_model(
        tmp_path / "base",
        vocabulary=["at", "0", "1", "up", "down"],
        width=16,
        layers=1,
        heads=1,
        context=32,
    )
    with Store.open(tmp_path / "run") as store:
        store.seal(0, 0, [words(n) for n in range(4)])
        store.seal(1, 0, [words(n, wave=1) for n in range(4, 7)])
    return tmp_path


@pytest.mark.learn
def test_it_clones_and_it_evolves(place: Path) -> None:
    waves = [str(place / "run" / "waves" / f"wave-000{n}.parquet") for n in (0, 1)]
    base, cloned = str(place / "base"), str(place / "cloned")
    stages: list[str] = []

    def watch(snapshot: Snapshot) -> None:
        stages.append(snapshot.stage)

    async def scenario(learner: ActorRef) -> None:
        clone = order(experts=(waves[0],), starts={"last": base}, out=cloned)
        assert (await learner.ask(clone, PolicyUpdated)).kept == 4
        evolution = EvolSettings(training=TrainingSettings(max_steps=3, batch=2))
        evolve = order(
            algorithm="evolve",
            settings=msgspec.json.encode(evolution),
            experts=(waves[0],),
            waves=(waves[1],),
            starts={"base_bc": cloned, "pretrained": base, "last": cloned},
            out=str(place / "evolved"),
        )
        done = await learner.ask(evolve, PolicyUpdated)
        assert (done.kept, done.metrics["steps"]) == (7, 3.0)
        for name in ("cloned", "evolved"):
            assert (place / name / "training.json").is_file()

    with_learner(scenario, watch)
    assert stages[0] == "train cloned"
    assert any(stage.startswith("train evolved: step 3 of 3, loss ") for stage in stages)


@pytest.mark.learn
@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"algorithm": "wishing"}, "ConfigError"),
        ({"experts": ("missing.parquet",)}, "StoreError"),
        ({"starts": {}}, "ConfigError"),
        ({"evaluation": (Task("x-v1", 3, "dev"),)}, "EvaluationLeak"),
        ({"algorithm": "evolve", "settings": b"{}"}, "ConfigError"),
    ],
)
def test_an_order_that_cannot_be_done_is_a_failure_with_a_name(
    place: Path, changes: dict[str, Any], kind: str
) -> None:
    wave = str(place / "run" / "waves" / "wave-0000.parquet")
    good = {"experts": (wave,), "starts": {"last": str(place / "base")}, "out": str(place / "m")}

    async def scenario(learner: ActorRef) -> None:
        with pytest.raises(AskFailed) as caught:
            await learner.ask(order(**{**good, **changes}), PolicyUpdated)
        assert caught.value.kind == kind
        assert learner.statistics().restarts == 0
        assert not (place / "m").exists()

    with_learner(scenario)


@pytest.mark.learn
def test_a_training_that_was_given_up_never_writes_beside_a_later_one(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late in step 3 of 6; the same order again, while its thread is there and after it."""
    entered, gate, ended = (threading.Event() for _ in range(3))
    clock = trio.testing.MockClock()
    told: list[str] = []
    runs: list[str] = []
    real = module.update

    def update(message: UpdatePolicy, threads: int, fence: Fence) -> Report:
        runs.append(message.out)
        first = len(runs) == 1
        try:
            return real(message, threads, fence)
        finally:
            if first:
                ended.set()

    def watch(snapshot: Snapshot) -> None:  # called from the training thread
        told.append(snapshot.stage)
        if len(runs) == 1 and "step 3 of" in snapshot.stage:
            entered.set()
            gate.wait(60)

    monkeypatch.setattr(module, "update", update)
    wave = str(place / "run" / "waves" / "wave-0000.parquet")

    def clone(name: str) -> UpdatePolicy:
        return order(
            settings=msgspec.json.encode(
                TrainingSettings(max_steps=6, batch=2, checkpoint_every=2)
            ),
            experts=(wave,),
            starts={"last": str(place / "base")},
            out=str(place / name),
        )

    async def scenario(learner: ActorRef) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(jump(clock, entered))
            with pytest.raises(AskFailed, match="train m took longer than"):
                await learner.ask(clone("m"), PolicyUpdated)
        told.append("given up")
        with pytest.raises(AskFailed, match=r"m\.training is in use"):
            await learner.ask(clone("m"), PolicyUpdated)
        gate.set()
        await trio.to_thread.run_sync(ended.wait, 60)
        assert not (place / "m").exists()
        await learner.ask(clone("m"), PolicyUpdated)
        await learner.ask(clone("straight"), PolicyUpdated)

    with_learner(scenario, watch, 90.0, clock)
    after = [s for s in told[told.index("given up") + 1 :] if "straight" not in s]
    assert after[:3] == ["train m", "train m", "train m: resumed at step 2 of 6"]
    assert [s.split(",")[0] for s in after[3:]] == [f"train m: step {n} of 6" for n in (3, 4, 5, 6)]
    assert all(s.endswith(", resumed at 2") for s in after[3:])
    models = [(place / name / "model.safetensors").read_bytes() for name in ("m", "straight")]
    assert models[0] == models[1]
