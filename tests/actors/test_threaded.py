"""The bridge between the trio loop and a blocking engine, with an engine that records."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.actors.backends.threaded import (
    Engine,
    Finished,
    ThreadedBackend,
    share_of_cores,
)
from rollwave.actors.protocol import Completion, Generate, Sampling
from rollwave.engine.codec import pack_floats, pack_tokens
from rollwave.engine.errors import (
    BackendDied,
    BackendError,
    ConfigError,
    WeightSwapFailed,
)
from rollwave.engine.trajectory import FinishReason


def order(name: str, steps: int = 1) -> Generate:
    """A request that takes that many steps."""
    return Generate(name, pack_tokens([1, 2, 3]), (), Sampling(max_tokens=steps), 0)


class Recorder(Engine):
    """Counts steps down, notes what it was told and in which thread; steps on permission."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.threads: set[str] = set()
        self.live: dict[str, tuple[Generate, int]] = {}
        self.gate = threading.Semaphore(1_000_000)
        self.stepping = threading.Event()
        self.fail_at: str = ""
        self.swap_error: Exception | None = None

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.current_thread().name)
        if call.split()[0] == self.fail_at:
            raise RuntimeError(f"{call} broke")

    def build(self) -> None:
        self._note("build")

    def add(self, key: str, request: Generate) -> None:
        if request.request_id.startswith("refused"):
            raise BackendError("too long")
        self._note(f"add {request.request_id}")
        self.live[key] = (request, request.sampling.max_tokens)

    def abort(self, key: str) -> None:
        self._note(f"abort {self.live.pop(key)[0].request_id}")

    def step(self) -> list[Finished]:
        self.stepping.set()
        self.gate.acquire()
        self._note("step")
        finished: list[Finished] = []
        for key, (request, left) in list(self.live.items()):
            self.live[key] = (request, left - 1)
            if left == 1:
                del self.live[key]
                finished.append((key, self._answer(request)))
        return finished

    def _answer(self, request: Generate) -> Completion:
        ids, logprobs = pack_tokens([7]), pack_floats([-0.5])
        return Completion(request.request_id, "", ids, logprobs, FinishReason.STOP, self.version)

    def swap(self, path: str) -> None:
        assert not self.live, "a swap found requests running"
        self._note(f"swap {path}")
        if self.swap_error is not None:
            raise self.swap_error

    def close(self) -> None:
        self._note("close")


class Box:
    """What `done` was told, by request id."""

    def __init__(self) -> None:
        self.results: dict[str, list[Completion | BaseException]] = {}
        self._changed = trio.Event()

    def done(self, name: str) -> Callable[[Completion | BaseException], None]:
        def note(result: Completion | BaseException) -> None:
            self.results.setdefault(name, []).append(result)
            self._changed.set()

        return note

    async def wait(self, *names: str) -> None:
        with trio.fail_after(20):
            while not all(name in self.results for name in names):
                await self._changed.wait()
                self._changed = trio.Event()

    def versions(self) -> dict[str, int]:
        return {
            name: result.policy_version
            for name, (result,) in self.results.items()
            if isinstance(result, Completion)
        }


@asynccontextmanager
async def running(engine: Recorder, capacity: int = 4) -> AsyncIterator[ThreadedBackend]:
    backend = ThreadedBackend(engine, name="recorder", capacity=capacity, version=3)
    async with trio.open_nursery() as nursery:
        await nursery.start(backend.run)
        yield backend
        nursery.cancel_scope.cancel()


async def test_the_engine_lives_in_one_thread_and_is_closed():
    engine, box = Recorder(), Box()
    async with running(engine) as backend:
        backend.submit(order("a", 2), box.done("a"))
        await box.wait("a")
        assert backend.statistics.extra["start_seconds"] >= 0
    assert engine.calls == ["build", "add a", "step", "step", "close"]
    assert engine.threads == {"rollwave-recorder"}
    assert box.versions() == {"a": 3}


async def test_what_is_submitted_in_one_tick_arrives_in_one_batch():
    engine, box = Recorder(), Box()
    async with running(engine, capacity=8) as backend:
        for i in range(6):
            backend.submit(order(f"r{i}"), box.done(f"r{i}"))
        await box.wait(*(f"r{i}" for i in range(6)))
        assert engine.calls.count("step") == 1
        statistics = backend.statistics
        assert (statistics.batches, statistics.batch_requests) == (1, 6)
        assert statistics.batch_fill == 6 / 8
        assert (statistics.requests, statistics.completions, statistics.failures) == (6, 6, 0)
        assert (statistics.prompt_tokens, statistics.sampled_tokens) == (18, 6)


async def test_a_refused_request_harms_no_other():
    engine, box = Recorder(), Box()
    async with running(engine) as backend:
        for name in ("good", "refused", "fine"):
            backend.submit(order(name), box.done(name))
        await box.wait("good", "refused", "fine")
        assert isinstance(box.results["refused"][0], BackendError)
        assert box.versions() == {"good": 3, "fine": 3}
        assert backend.statistics.failures == 1


async def test_a_request_cancelled_before_it_ran_never_reaches_the_engine():
    engine, box = Recorder(), Box()
    async with running(engine) as backend:
        backend.submit(order("gone"), box.done("gone"))
        backend.cancel("gone")
        backend.cancel("gone")
        backend.cancel("unknown")
        backend.submit(order("kept"), box.done("kept"))
        await box.wait("kept")
    assert "add gone" not in engine.calls
    assert set(box.results) == {"kept"}


async def test_a_running_request_is_aborted():
    engine, box = Recorder(), Box()
    engine.gate = threading.Semaphore(0)
    async with running(engine) as backend:
        backend.submit(order("long", 1000), box.done("long"))
        await trio.to_thread.run_sync(engine.stepping.wait)
        backend.cancel("long")
        backend.submit(order("next"), box.done("next"))
        await trio.testing.wait_all_tasks_blocked()
        engine.gate.release(10)
        await box.wait("next")
    assert engine.calls[:4] == ["build", "add long", "step", "abort long"]
    assert set(box.results) == {"next"}


async def test_an_answer_on_its_way_to_a_cancelled_request_is_dropped():
    engine, box = Recorder(), Box()
    engine.gate = threading.Semaphore(0)
    async with running(engine) as backend:
        backend.submit(order("late"), box.done("late"))
        await trio.to_thread.run_sync(engine.stepping.wait)
        engine.gate.release(1)
        while "step" not in engine.calls:  # the answer is computed, and not delivered:
            pass  # this task does not give the loop a chance
        backend.cancel("late")
        engine.gate.release(10)
        backend.submit(order("next"), box.done("next"))
        await box.wait("next")
    assert set(box.results) == {"next"}


async def test_the_newer_of_two_requests_with_one_id_is_answered():
    engine, box = Recorder(), Box()
    async with running(engine) as backend:
        backend.submit(order("x", 1000), box.done("older"))
        backend.submit(order("x", 1), box.done("newer"))
        await box.wait("newer")
    assert set(box.results) == {"newer"}


@given(
    groups=st.lists(st.lists(st.integers(1, 4), max_size=5), min_size=1, max_size=4),
)
@settings(max_examples=25, deadline=None)
def test_a_swap_is_a_barrier(groups):
    """Whatever was submitted before it ends under the old version, what comes after waits."""

    async def run() -> None:
        engine, box = Recorder(), Box()
        expected: dict[str, int] = {}
        async with running(engine) as backend, trio.open_nursery() as nursery:
            for version, group in enumerate(groups, start=3):
                if version > 3:
                    nursery.start_soon(backend.swap_weights, version, f"p{version}")
                    for _ in range(2):  # the first may come back before the new task ran
                        await trio.lowlevel.checkpoint()
                for index, steps in enumerate(group):
                    name = f"{version}/{index}"
                    expected[name] = version
                    backend.submit(order(name, steps), box.done(name))
            await box.wait(*expected)
        assert box.versions() == expected
        assert backend.policy_version == engine.version == 2 + len(groups)

    trio.run(run)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("out of memory"), "version 4 could not be loaded from p4: RuntimeError"),
        (WeightSwapFailed("another model"), "^another model$"),
        (ConfigError("no tensors"), "ConfigError: no tensors"),
    ],
)
async def test_a_swap_that_fails_says_why(error, text):
    engine = Recorder()
    engine.swap_error = error
    async with running(engine) as backend:
        with pytest.raises(WeightSwapFailed, match=text):
            await backend.swap_weights(4, "p4")
        assert backend.policy_version == 3


async def _swap_into(backend: ThreadedBackend, box: Box) -> None:
    try:
        await backend.swap_weights(1, "p1")
    except BackendDied as error:
        box.done("swap")(error)


@pytest.mark.parametrize("stage", ["build", "add", "step"])
async def test_an_engine_that_breaks_takes_the_backend_with_it(stage):
    engine, box = Recorder(), Box()
    engine.fail_at = stage
    backend = ThreadedBackend(engine, name="recorder", capacity=4)
    backend.submit(order("a"), box.done("a"))
    with pytest.raises(BackendDied, match=f"recorder failed.*{stage}"):
        await backend.run(task_status=trio.TASK_STATUS_IGNORED)
    assert engine.calls[-1] == "close"
    assert box.results == {}  # its asker is told by the actor's end, not by an answer


async def test_what_only_the_user_can_mend_is_told_as_it_is():
    class Misplaced(Recorder):
        def build(self) -> None:
            raise ConfigError("there is no model in ./modles")

    backend = ThreadedBackend(Misplaced(), name="recorder", capacity=4)
    with pytest.raises(ConfigError, match="modles"):
        await backend.run(task_status=trio.TASK_STATUS_IGNORED)


async def test_a_swap_under_way_when_the_engine_breaks_is_told():
    engine, box = Recorder(), Box()
    engine.gate = threading.Semaphore(0)
    engine.fail_at = "step"
    backend = ThreadedBackend(engine, name="recorder", capacity=4)

    async def run() -> None:
        with pytest.raises(BackendDied):
            await backend.run(task_status=trio.TASK_STATUS_IGNORED)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        backend.submit(order("a", 5), box.done("a"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(_swap_into, backend, box)
        await trio.testing.wait_all_tasks_blocked()
        engine.gate.release(10)
    assert isinstance(box.results["swap"][0], BackendDied)


async def test_a_cancelled_run_waits_for_the_step_in_flight():
    engine, box = Recorder(), Box()
    engine.gate = threading.Semaphore(0)
    async with running(engine) as backend:
        backend.submit(order("a", 1000), box.done("a"))
        await trio.to_thread.run_sync(engine.stepping.wait)
        timer = threading.Timer(0.05, engine.gate.release, [1])
        timer.start()
    assert engine.calls[-2:] == ["step", "close"]
    assert box.results == {}


async def test_a_step_that_never_ends_does_not_hold_the_loop(monkeypatch):
    monkeypatch.setattr("rollwave.actors.backends.threaded._STOP_SECONDS", 0.05)
    engine, box = Recorder(), Box()
    engine.gate = threading.Semaphore(0)
    with trio.fail_after(10):
        async with running(engine) as backend:
            backend.submit(order("a"), box.done("a"))
            await trio.to_thread.run_sync(engine.stepping.wait)
    assert "close" not in engine.calls
    engine.gate.release(1)  # let the thread end


def test_an_engine_gets_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert share_of_cores() == 6
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert share_of_cores() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    assert share_of_cores() == 1
