"""The scripted backend: batches, latencies and answers that depend on the request alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from statistics import median

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.actors.backends.base import Backend
from rollwave.actors.backends.latency import (
    ConstantLatency,
    Latency,
    LogNormalLatency,
    UniformLatency,
)
from rollwave.actors.backends.scripted import ScriptedBackend
from rollwave.actors.protocol import Completion, Generate, Sampling
from rollwave.engine.codec import unpack_floats, unpack_tokens
from rollwave.engine.errors import BackendDied, BackendError, ConfigError, WeightSwapFailed
from rollwave.engine.seeds import derive
from rollwave.engine.testing import run_simulated
from rollwave.engine.trajectory import FinishReason


def request(name: str, seed: int = 0, max_tokens: int = 256) -> Generate:
    return Generate(name, b"\1\0\0\0" * 3, (), Sampling(max_tokens=max_tokens), seed)


class Asker:
    """Submits requests and keeps what came back, with the virtual time it came at."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.results: dict[str, Completion | BaseException] = {}
        self.times: dict[str, float] = {}
        self.calls = 0
        self._arrived: dict[str, trio.Event] = {}

    def submit(self, message: Generate) -> None:
        name = message.request_id
        event = self._arrived[name] = trio.Event()

        def done(result: Completion | BaseException) -> None:
            self.calls += 1
            self.results[name] = result
            self.times[name] = trio.current_time()
            event.set()

        self.backend.submit(message, done)

    async def ask(self, message: Generate) -> Completion:
        self.submit(message)
        await self._arrived[message.request_id].wait()
        result = self.results[message.request_id]
        assert isinstance(result, Completion)
        return result


def simulate(
    backend: Backend, scenario: Callable[[Asker], Awaitable[None]], seed: int = 0
) -> Asker:
    """Run the scenario against the backend in virtual time."""

    async def main() -> Asker:
        asker = Asker(backend)
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: backend.run(task_status=task_status))
            await scenario(asker)
            nursery.cancel_scope.cancel()
        return asker

    return run_simulated(main, seed=seed)


def elapsed(
    latency: Latency, *, sessions: int, turns: int, capacity: int, schedule: int = 0
) -> tuple[float, ScriptedBackend]:
    """Virtual seconds in which `sessions` each take `turns` answers, one after the other."""
    backend = ScriptedBackend(latency, capacity)
    took = 0.0

    async def scenario(asker: Asker) -> None:
        nonlocal took

        async def session(index: int) -> None:
            for turn in range(turns):
                await asker.ask(request(f"{index}/{turn}", derive(index, turn)))

        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for index in range(sessions):
                nursery.start_soon(session, index)
        took = trio.current_time() - started

    asker = simulate(backend, scenario, schedule)
    assert asker.calls == sessions * turns
    return took, backend


# -- batches ----------------------------------------------------------------------


def test_a_batch_takes_its_fixed_time_and_a_share_for_each_member() -> None:
    async def scenario(asker: Asker) -> None:
        for k in range(5):
            asker.submit(request(str(k)))
        await trio.sleep(10)

    asker = simulate(ScriptedBackend(ConstantLatency(1.0, 0.1), 3), scenario)
    # Three of the five make the first batch: 1.3 s; the two others wait for it: + 1.2 s.
    assert [asker.times[str(k)] for k in range(5)] == pytest.approx([1.3, 1.3, 1.3, 2.5, 2.5])
    statistics = asker.backend.statistics
    assert (statistics.batches, statistics.batch_requests) == (2, 5)
    assert statistics.batch_fill == pytest.approx(5 / 6)


def test_the_next_batch_is_launched_before_the_answers_go_out() -> None:
    """Whoever asks again while answers are handed out is too late for the next batch."""
    backend = ScriptedBackend(ConstantLatency(1.0), 1)
    order: list[str] = []

    async def scenario(asker: Asker) -> None:
        def again(result: Completion | BaseException) -> None:
            order.append("first")
            backend.submit(request("again"), lambda _: order.append("again"))

        backend.submit(request("first"), again)
        backend.submit(request("second"), lambda _: order.append("second"))
        await trio.sleep(10)
        # A queue that was filled by the time of the launch keeps the server busy.
        assert backend.statistics.batches == 3

    simulate(backend, scenario)
    assert order == ["first", "second", "again"]


def test_the_bar_a_thousand_sessions_reach_nine_tenths_of_the_ideal() -> None:
    latency = ConstantLatency(0.020, 0.0001)
    took, backend = elapsed(latency, sessions=1000, turns=10, capacity=256)
    ideal = latency.ideal_seconds(1000, 10, 256)
    assert ideal == pytest.approx(40 * 0.020 + 10_000 * 0.0001)
    assert ideal / took >= 0.9
    assert backend.statistics.batch_fill > 0.9


@settings(max_examples=40, deadline=None)
@given(
    sessions=st.integers(1, 12),
    turns=st.integers(1, 4),
    capacity=st.integers(0, 8),
    fixed=st.sampled_from([0.0, 0.5, 1.0]),
    share=st.sampled_from([0.0, 0.25]),
    schedule=st.integers(0, 3),
)
def test_the_ideal_is_a_lower_bound(
    sessions: int, turns: int, capacity: int, fixed: float, share: float, schedule: int
) -> None:
    latency = ConstantLatency(fixed, share)
    took, _ = elapsed(latency, sessions=sessions, turns=turns, capacity=capacity, schedule=schedule)
    assert took >= latency.ideal_seconds(sessions, turns, capacity) - 1e-9


def test_without_batches_nobody_waits_for_anybody() -> None:
    latency = ConstantLatency(0.5)
    took, backend = elapsed(latency, sessions=100, turns=4, capacity=0)
    assert took == pytest.approx(latency.ideal_seconds(100, 4, 0))
    assert backend.statistics.batch_fill == 0.0


def test_a_short_request_overtakes_a_long_one() -> None:
    """The timer task must wake for a deadline before the one it sleeps towards."""
    latency = UniformLatency(0.0, 10.0)
    slow = max(range(20), key=latency.draw)
    fast = min(range(20), key=latency.draw)

    async def scenario(asker: Asker) -> None:
        asker.submit(request("slow", slow))
        await trio.sleep(0.01)
        asker.submit(request("fast", fast))
        await trio.sleep(20)

    asker = simulate(ScriptedBackend(latency), scenario)
    assert asker.times["slow"] == pytest.approx(latency.draw(slow))
    assert asker.times["fast"] == pytest.approx(0.01 + latency.draw(fast))


def test_a_late_loop_does_not_make_the_server_late() -> None:
    """Of two batches that end while the loop is busy, both are answered when it is back."""
    clock = trio.testing.MockClock()  # stands still unless told

    async def main() -> None:
        backend = ScriptedBackend(ConstantLatency(1.0), 2)
        asker = Asker(backend)
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: backend.run(task_status=task_status))
            for k in range(3):
                asker.submit(request(str(k)))
            await trio.testing.wait_all_tasks_blocked()
            clock.jump(1.5)
            asker.submit(request("late"))  # the second batch had been launched at 1.0 without it
            clock.jump(1.0)
            await trio.testing.wait_all_tasks_blocked()
            assert set(asker.results) == {"0", "1", "2"}
            clock.jump(0.5)
            await trio.testing.wait_all_tasks_blocked()
            assert set(asker.results) == {"0", "1", "2", "late"}
            assert backend.statistics.batches == 3
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)


def test_requests_that_came_before_the_start_are_served() -> None:
    backend = ScriptedBackend(ConstantLatency(1.0), 4)

    async def main() -> None:
        asker = Asker(backend)
        asker.submit(request("early"))
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: backend.run(task_status=task_status))
            await trio.sleep(2)
            nursery.cancel_scope.cancel()
        assert asker.times == {"early": 1.0}

    run_simulated(main)


# -- answers ----------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=8, unique=True),
    order=st.randoms(use_true_random=False),
    capacity=st.integers(0, 3),
)
def test_an_answer_depends_on_its_request_alone(
    seeds: list[int], order: object, capacity: int
) -> None:
    shuffled = list(seeds)
    order.shuffle(shuffled)  # type: ignore[attr-defined]

    def results(sequence: list[int], slots: int) -> dict[str, Completion | BaseException]:
        async def scenario(asker: Asker) -> None:
            for seed in sequence:
                asker.submit(request(str(seed), seed))
            await trio.sleep(100)

        return simulate(ScriptedBackend(LogNormalLatency(1.0, longest=5), slots), scenario).results

    assert results(seeds, 0) == results(shuffled, capacity)


def test_fabricated_tokens_are_plausible_and_honour_the_limit() -> None:
    async def scenario(asker: Asker) -> None:
        whole = await asker.ask(request("whole", 7))
        ids, logprobs = unpack_tokens(whole.token_ids), unpack_floats(whole.logprobs)
        assert len(ids) == len(logprobs) == 16
        assert all(0 <= token < 50 for token in ids)
        assert all(-2 <= value <= 0 for value in logprobs)
        assert whole.finish is FinishReason.STOP
        cut = await asker.ask(request("cut", 7, max_tokens=5))
        assert cut.token_ids == whole.token_ids[: 4 * 5]
        assert cut.finish is FinishReason.LENGTH
        other = await asker.ask(request("other", 8))
        assert other.token_ids != whole.token_ids
        assert asker.backend.statistics.sampled_tokens == 16 + 5 + 16
        assert asker.backend.statistics.prompt_tokens == 9

    simulate(ScriptedBackend(tokens=16, vocabulary=50), scenario)


def test_a_script_and_a_tokeniser_decide_the_answer() -> None:
    def answer(message: Generate) -> str:
        if message.request_id == "bad":
            raise KeyError("no line for it")
        return f"go {message.seed}"

    backend = ScriptedBackend(answer=answer, tokenise=lambda text: [len(w) for w in text.split()])

    async def scenario(asker: Asker) -> None:
        completion = await asker.ask(request("good", 123))
        assert completion.text == "go 123"
        assert unpack_tokens(completion.token_ids).tolist() == [2, 3]
        asker.submit(request("bad"))
        await trio.sleep(1)
        error = asker.results["bad"]
        assert type(error) is BackendError
        assert "the script failed: KeyError" in str(error)
        assert (await asker.ask(request("after"))).text == "go 0"
        assert backend.statistics.failures == 1

    simulate(backend, scenario)


# -- cancel, swap, death ----------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, 1])
def test_a_cancelled_request_is_never_answered(capacity: int) -> None:
    async def scenario(asker: Asker) -> None:
        for name in ("running", "queued", "kept"):
            asker.submit(request(name))
        await trio.sleep(0.5)
        asker.backend.cancel("running")
        asker.backend.cancel("queued")
        asker.backend.cancel("unknown")
        await trio.sleep(10)

    asker = simulate(ScriptedBackend(ConstantLatency(1.0), capacity), scenario)
    assert set(asker.results) == {"kept"}
    # A cancelled request frees its slot at once only where it had not been launched.
    assert asker.times["kept"] == (1.0 if capacity == 0 else 2.0)


@pytest.mark.parametrize("capacity", [0, 2])
def test_the_same_id_again_replaces_the_earlier_request(capacity: int) -> None:
    async def scenario(asker: Asker) -> None:
        asker.submit(request("one", 1))
        await trio.sleep(0.1)
        again = await asker.ask(request("one", 2))
        assert again.text == (await asker.ask(request("two", 2))).text
        await trio.sleep(10)

    asker = simulate(ScriptedBackend(ConstantLatency(1.0), capacity), scenario)
    assert asker.calls == 2


@pytest.mark.parametrize("capacity", [0, 2])
def test_a_swap_lets_the_running_finish_and_later_answers_carry_the_version(capacity: int) -> None:
    backend = ScriptedBackend(ConstantLatency(1.0), capacity, swap_seconds=3.0)

    async def scenario(asker: Asker) -> None:
        asker.submit(request("before"))
        await trio.sleep(0.5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.swap_weights, 5, "ignored")
            await trio.sleep(0.1)
            asker.submit(request("during"))
        assert trio.current_time() == pytest.approx(1.0 + 3.0)
        await trio.sleep(10)
        await backend.swap_weights(6, "ignored")  # with nothing running
        await asker.ask(request("after"))

    asker = simulate(backend, scenario)
    versions = {k: v.policy_version for k, v in asker.results.items() if isinstance(v, Completion)}
    assert versions == {"before": 0, "during": 5, "after": 6}
    assert asker.times["during"] == pytest.approx(5.0)


async def test_a_dead_backend_says_so(autojump_clock: trio.testing.MockClock) -> None:
    backend = ScriptedBackend(ConstantLatency(1.0))
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: backend.run(task_status=task_status))
            backend.submit(request("lost"), lambda _: pytest.fail("answered by a dead backend"))
            backend.die("a test pulled the plug")
    assert caught.group_contains(BackendDied, match="pulled the plug")


async def test_the_base_backend_refuses_a_swap_clearly() -> None:
    class Fixed(ScriptedBackend):
        swap_weights = Backend.swap_weights

    with pytest.raises(WeightSwapFailed, match="Fixed serves fixed weights, it cannot load /m"):
        await Fixed().swap_weights(1, "/m")


# -- latencies --------------------------------------------------------------------


def test_draws_are_seeded_and_shaped() -> None:
    seeds = [derive(k, "shape") for k in range(10_000)]
    uniform = [UniformLatency(1.0, 3.0).draw(seed) for seed in seeds]
    assert min(uniform) >= 1.0
    assert max(uniform) <= 3.0
    assert sum(uniform) / len(uniform) == pytest.approx(2.0, abs=0.05)
    tail = [LogNormalLatency(2.0, 1.0).draw(seed) for seed in seeds]
    assert median(tail) == pytest.approx(2.0, rel=0.1)
    assert sorted(tail)[9900] > 7 * 2.0  # the hundredth slowest
    assert tail == [LogNormalLatency(2.0, 1.0).draw(seed) for seed in seeds]
    assert max(LogNormalLatency(2.0, longest=4.0).draw(seed) for seed in seeds) == 4.0


def test_a_batch_waits_for_its_slowest_member() -> None:
    latency = UniformLatency(0.0, 1.0, per_request=0.5)
    assert latency.batch([1, 2, 3]) == max(latency.draw(k) for k in (1, 2, 3)) + 1.5
    assert latency.batch([]) == 0.0
    assert ConstantLatency(1.0, 0.5).batch([1, 2]) == 2.0


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (lambda: ConstantLatency(-1.0), "seconds"),
        (lambda: ConstantLatency(0.0, float("nan")), "per_request"),
        (lambda: UniformLatency(2.0, 1.0), "high 1.0 is below low 2.0"),
        (lambda: LogNormalLatency(1.0, -0.1), "sigma"),
        (lambda: ScriptedBackend(batch_capacity=-1), "batch_capacity -1"),
        (lambda: ScriptedBackend(tokens=17), "tokens 17"),
        (lambda: ScriptedBackend(vocabulary=0), "vocabulary 0"),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], object], culprit: str) -> None:
    with pytest.raises(ConfigError, match=culprit):
        make()
