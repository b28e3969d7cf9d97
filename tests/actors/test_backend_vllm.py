"""Real vLLM with tiny models: its log-probs against transformers, its swaps, its end.

One engine serves most tests: it is started once, in a trio loop of its own thread, and
tests call into that loop. A process has one vLLM engine at a time, so the tests that
need their own come first.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
import trio.lowlevel
from rollwave.actors.backends.vllm import VllmBackend, VllmSettings
from rollwave.actors.inference import Inference, PolicyHolder
from rollwave.actors.protocol import (
    Completion,
    DescribeInference,
    Generate,
    InferenceStatus,
    Sampling,
)
from rollwave.actors.weights import publish
from rollwave.engine.codec import pack_tokens, unpack_floats, unpack_tokens
from rollwave.engine.errors import (
    ActorRestarted,
    BackendError,
    ConfigError,
    WeightSwapFailed,
)
from rollwave.engine.ref import ActorRef
from rollwave.engine.seeds import generator
from rollwave.engine.system import ActorSystem, ChildSpec
from rollwave.engine.trajectory import FinishReason
from rollwave.learners.model.tiny import make_tiny_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="no vLLM build is installed"
    ),
    pytest.mark.filterwarnings("ignore"),  # of vLLM's own imports, in a thread
]

T = TypeVar("T")
CONTEXT = 128
SETTINGS = VllmSettings(max_model_len=CONTEXT, max_num_seqs=16, kv_cache_gib=0.0625, threads=1)
LETTERS = [chr(ord("A") + i) for i in range(25)]  # the word of id i is LETTERS[i - 1]
EOS = 26  # behind the unknown word and the letters
WORDS = 30


def save_model(path: Path, *, tied: bool, seed: int) -> str:
    """A Llama whose distributions are far from flat, so that wrong weights show."""
    import torch
    from transformers import AutoModelForCausalLM

    make_tiny_model(
        path,
        vocabulary=LETTERS,
        width=64,
        layers=2,
        heads=2,
        context=CONTEXT,
        seed=seed,
        tie_embeddings=tied,
    )
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("tied")
    return [save_model(root / str(i), tied=True, seed=i) for i in range(2)]


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("untied")
    return [save_model(root / str(i), tied=False, seed=10 + i) for i in range(2)]


class Server:
    """A backend in a trio loop of its own thread; `call` runs an async function there."""

    def __init__(self, backend: VllmBackend) -> None:
        self.backend = backend
        self.failure: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(120)

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self.failure = error

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._end = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(self.backend.run)
            self._ready.set()
            await self._end.wait()
            nursery.cancel_scope.cancel()

    def call(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        return trio.from_thread.run(function, *args, trio_token=self._token)

    def close(self) -> None:
        assert self.failure is None, repr(self.failure)
        trio.from_thread.run_sync(self._end.set, trio_token=self._token)
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def server(tied: list[str]) -> Iterator[Server]:
    server = Server(VllmBackend(tied[0], SETTINGS, version=5, stop_ids=(EOS,)))
    yield server
    server.close()


def prompts(count: int, *, shortest: int = 3, longest: int = 90, seed: int = 0) -> list[list[int]]:
    draw = generator(seed, "prompts")
    return [
        [draw.randrange(3, WORDS) for _ in range(draw.randrange(shortest, longest))]
        for _ in range(count)
    ]


def order(name: str, prompt: Sequence[int], seed: int, sampling: Sampling) -> Generate:
    return Generate(name, pack_tokens(prompt), (), sampling, seed)


async def ask(backend: VllmBackend, request: Generate) -> Completion:
    """Submit, wait, and raise what it failed with."""
    finished = trio.Event()
    results: list[Completion | BaseException] = []

    def done(result: Completion | BaseException) -> None:
        results.append(result)
        finished.set()

    backend.submit(request, done)
    with trio.fail_after(60):
        await finished.wait()
    (result,) = results
    if isinstance(result, BaseException):
        raise result
    return result


async def ask_all(backend: VllmBackend, requests: Sequence[Generate]) -> list[Completion]:
    answers: dict[str, Completion] = {}

    async def one(request: Generate) -> None:
        answers[request.request_id] = await ask(backend, request)

    async with trio.open_nursery() as nursery:
        for request in requests:
            nursery.start_soon(one, request)
    return [answers[request.request_id] for request in requests]


def expected(
    model_dir: str, prompt: Sequence[int], ids: Sequence[int], scale: float
) -> list[float]:
    """Log-probs of `ids` after `prompt` under transformers, at temperature `scale`."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0].float() / scale
    rows = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return [float(row[token]) for row, token in zip(rows, ids, strict=True)]


def assert_served(
    model_dir: str, asked: Sequence[list[int]], answers: Sequence[Completion], scale: float = 1.0
) -> None:
    """The log-probs of the answers are those of that model, and of no uniform one."""
    spread = set()
    for prompt, answer in zip(asked, answers, strict=True):
        ids = unpack_tokens(answer.token_ids).tolist()
        served = unpack_floats(answer.logprobs).tolist()
        assert served == pytest.approx(expected(model_dir, prompt, ids, scale), abs=1e-3)
        spread.update(round(value, 2) for value in served)
    assert len(spread) > 10


# -- tests with an engine of their own: they come before the shared one lives -----------


def swap_back_and_forth(backend: VllmBackend, models: list[str], settings: str) -> None:
    async def run() -> None:
        sampling = Sampling(1.0, max_tokens=8)
        asked = prompts(6, seed=9)
        async with trio.open_nursery() as nursery:
            await nursery.start(backend.run)
            for version, model in enumerate([models[0], models[1], models[0], models[1]]):
                if version:
                    await backend.swap_weights(version, model)
                assert backend.policy_version == version
                requests = [
                    order(f"{settings}{version}/{i}", p, i, sampling) for i, p in enumerate(asked)
                ]
                answers = await ask_all(backend, requests)
                assert_served(model, asked, answers)
                assert {answer.policy_version for answer in answers} == {version}
            nursery.cancel_scope.cancel()

    trio.run(run)


def test_a_swap_is_exact_with_untied_weights(untied):
    swap_back_and_forth(VllmBackend(untied[0], SETTINGS, stop_ids=(EOS,)), untied, "untied")


def test_a_swap_is_exact_with_tied_weights(tied):
    """The trap: on a CPU the tied output head keeps a packed copy of the old weights.

    Beside it: an engine leaves the process's generators and hooks as they were."""
    import torch

    before = random.getstate(), torch.random.initial_seed(), torch.set_num_threads, sys.excepthook
    swap_back_and_forth(VllmBackend(tied[0], SETTINGS, stop_ids=(EOS,)), tied, "tied")
    after = random.getstate(), torch.random.initial_seed(), torch.set_num_threads, sys.excepthook
    assert after == before


def test_a_dead_engine_is_restarted_with_the_current_policy(tied):
    """Death in the middle of a request: it is asked again, and answered under the policy
    that was published, with the tokens it would have had."""
    holder = PolicyHolder(0, tied[0])
    backends: list[VllmBackend] = []

    def make(version: int, path: str) -> VllmBackend:
        backends.append(VllmBackend(path, SETTINGS, version=version, stop_ids=(EOS,)))
        return backends[-1]

    request = order("e/0", [5, 6, 7, 8], 11, Sampling(1.0, max_tokens=8))

    async def persist(inference: ActorRef, deaths: list[str]) -> Completion:
        while True:
            try:
                return await inference.ask(request, Completion)
            except ActorRestarted as error:
                deaths.append(str(error))

    async def run() -> None:
        async with ActorSystem(seed=1) as system:
            inference = await system.start(
                ChildSpec("inference", lambda: Inference(make, holder, start_seconds=120))
            )
            await publish(inference, holder, 1, tied[1])
            before = await inference.ask(request, Completion)

            def broken() -> None:
                raise RuntimeError("the device is gone")

            deaths: list[str] = []
            backends[0]._thread._engine._engine.step = broken
            with trio.fail_after(120):
                after = await persist(inference, deaths)
            assert len(deaths) >= 1
            assert after == before
            assert after.policy_version == 1
            status = await inference.ask(DescribeInference(), InferenceStatus)
            assert (status.policy_version, status.incarnation) == (1, 1)
            ids = unpack_tokens(after.token_ids).tolist()
            assert unpack_floats(after.logprobs).tolist() == pytest.approx(
                expected(tied[1], [5, 6, 7, 8], ids, 1.0), abs=1e-3
            )

    trio.run(run)
    assert len(backends) == 2


async def test_what_cannot_be_served_is_refused_at_the_start(tied, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    too_long = VllmSettings(max_model_len=10 * CONTEXT, kv_cache_gib=0.0625)
    for path, settings, reason in (
        (str(adapter), SETTINGS, "LoRA adapter: merge it"),
        (str(tmp_path), SETTINGS, "no safetensors"),
        (tied[0], too_long, "vLLM cannot serve"),
    ):
        backend = VllmBackend(path, settings)
        with pytest.raises(ConfigError, match=reason):
            await backend.run(task_status=trio.TASK_STATUS_IGNORED)


# -- tests of the shared engine ----------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_log_probs_are_those_of_the_sampling_distribution(server, tied, temperature):
    asked = prompts(8, seed=int(temperature * 10))
    sampling = Sampling(temperature, max_tokens=12)
    requests = [order(f"lp{temperature}/{i}", p, i, sampling) for i, p in enumerate(asked)]
    answers = server.call(ask_all, server.backend, requests)
    assert_served(tied[0], asked, answers, temperature or 1.0)
    assert {answer.policy_version for answer in answers} == {5}


def test_a_completion_ends_with_the_closer_or_the_limit(server):
    sampling = Sampling(2.0, max_tokens=40)
    requests = [order(f"end/{i}", p, i, sampling) for i, p in enumerate(prompts(24, seed=3))]
    answers = server.call(ask_all, server.backend, requests)
    assert {answer.finish for answer in answers} == {FinishReason.STOP, FinishReason.LENGTH}
    for answer in answers:
        ids = unpack_tokens(answer.token_ids)
        assert EOS not in ids[:-1]
        assert (ids[-1] == EOS) == (answer.finish is FinishReason.STOP)
        assert answer.finish is FinishReason.STOP or len(ids) == 40
        assert answer.text == ""  # the session decodes


def test_a_stop_string_ends_a_turn_that_is_not_closed(server, tied):
    prompt = prompts(1, seed=4)[0]
    plain = server.call(
        ask, server.backend, order("plain", prompt, 7, Sampling(1.0, max_tokens=12))
    )
    ids = unpack_tokens(plain.token_ids).tolist()
    place = next(i for i, token in enumerate(ids) if i > 2 and 0 < token <= len(LETTERS))
    stop = LETTERS[ids[place] - 1]
    sampling = Sampling(1.0, max_tokens=12, stop=(stop,))
    answer = server.call(ask, server.backend, order("stopped", prompt, 7, sampling))
    stopped = unpack_tokens(answer.token_ids).tolist()
    assert stopped == ids[: ids.index(ids[place]) + 1]
    assert answer.finish is FinishReason.LENGTH
    assert stop not in answer.text
    assert answer.text.split() == [LETTERS[i - 1] for i in stopped[:-1] if 0 < i <= len(LETTERS)]


def test_a_request_is_drawn_from_its_own_seed_in_any_company(server):
    """Alone, among others, in another order, with others cancelled: the same tokens."""
    sampling = Sampling(1.0, max_tokens=16)
    requests = [order(f"s/{i}", p, 100 + i, sampling) for i, p in enumerate(prompts(24, seed=5))]
    together = server.call(ask_all, server.backend, requests)
    alone = [server.call(ask, server.backend, request) for request in requests[:6]]
    reversed_order = server.call(ask_all, server.backend, requests[::-1])[::-1]
    assert [a.token_ids for a in alone] == [a.token_ids for a in together[:6]]
    assert [a.token_ids for a in reversed_order] == [a.token_ids for a in together]
    assert len({a.token_ids for a in together}) > 12


def test_a_long_conversation_is_served_from_the_prefix_cache_unchanged(server, tied):
    prompt = prompts(1, shortest=80, longest=81, seed=6)[0]
    sampling = Sampling(1.0, max_tokens=8)
    first = server.call(ask, server.backend, order("turn/0", prompt, 1, sampling))
    longer = [*prompt, *unpack_tokens(first.token_ids), 7, 8, 9]
    second = server.call(ask, server.backend, order("turn/1", longer, 2, sampling))
    again = server.call(ask, server.backend, order("turn/1", longer, 2, sampling))
    assert second.token_ids == again.token_ids
    ids = unpack_tokens(second.token_ids).tolist()
    assert unpack_floats(second.logprobs).tolist() == pytest.approx(
        expected(tied[0], longer, ids, 1.0), abs=1e-3
    )


def test_a_prompt_that_does_not_fit_is_refused_alone(server):
    async def run() -> Completion:
        good: list[Completion] = []

        async def fits() -> None:
            good.append(await ask(server.backend, order("fits", [5] * 10, 0, Sampling())))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fits)
            for name, prompt, reason in (
                ("long", [5] * CONTEXT, f"{CONTEXT} tokens leaves no room"),
                ("empty", [], "refuses empty"),
                ("foreign", [WORDS + 5], "refuses foreign"),
            ):
                with pytest.raises(BackendError, match=reason):
                    await ask(server.backend, order(name, prompt, 0, Sampling()))
        return good[0]

    assert server.call(run).request_id == "fits"


def test_a_completion_that_reaches_the_end_of_the_context_is_cut_there(server):
    prompt = [5] * (CONTEXT - 3)
    for seed in range(20):
        request = order("edge", prompt, seed, Sampling(1.0, max_tokens=50))
        answer = server.call(ask, server.backend, request)
        ids = unpack_tokens(answer.token_ids)
        if EOS not in ids:
            assert (len(ids), answer.finish) == (3, FinishReason.LENGTH)
            return
    pytest.fail("the model closed its turn with every seed")


def test_prompts_beyond_one_steps_budget_wait_whole(server):
    """40 × 100 tokens against 2048 a step: cut prompts would kill a CPU engine with seeds."""
    asked = prompts(40, shortest=100, longest=101, seed=8)
    requests = [order(f"b/{i}", p, i, Sampling(1.0, 4)) for i, p in enumerate(asked)]
    answers = server.call(ask_all, server.backend, requests)
    assert len(answers) == 40


def test_cancelled_requests_leave_nothing_behind(server):
    engine = server.backend._thread._engine

    async def run() -> None:
        called: list[object] = []
        for i in range(30):  # more than a batch holds: some run, some wait
            server.backend.submit(order(f"c/{i}", [5] * 20, i, Sampling(0.0)), called.append)
            if i % 3 == 0:
                server.backend.cancel(f"c/{i}")  # before the engine has seen it
        await trio.lowlevel.checkpoint()
        for i in range(30):
            server.backend.cancel(f"c/{i}")
        server.backend.cancel("never submitted")
        # A request behind them shows that the engine thread has gone past them.
        await ask(server.backend, order("behind", [5] * 4, 0, Sampling(1.0, 2)))
        assert called == []

    server.call(run)
    assert engine._engine.get_num_unfinished_requests() == 0
    assert not engine._engine.has_unfinished_requests()
    assert engine._requests == {}
    assert server.backend._requests == server.backend._keys == {}


def test_statistics_count_tokens_and_batches(server):
    statistics = server.backend.statistics
    before = statistics.requests, statistics.sampled_tokens, statistics.batch_requests
    requests = [order(f"n/{i}", [5] * 10, i, Sampling(1.0, 4)) for i in range(8)]
    answers = server.call(ask_all, server.backend, requests)
    sampled = sum(len(unpack_tokens(a.token_ids)) for a in answers)
    assert statistics.requests - before[0] == 8
    assert statistics.sampled_tokens - before[1] == sampled
    # One place in a batch for every token, prompts included in the first one's step.
    assert statistics.batch_requests - before[2] == sampled
    assert statistics.batch_capacity == 16
    assert 0 < statistics.batch_fill <= 1
    assert statistics.extra["start_seconds"] > 0


def test_a_swap_is_a_barrier_and_a_bad_one_is_refused(server, tied, tmp_path):
    """What was submitted before ends under the old weights, what comes after waits."""

    async def run() -> None:
        backend = server.backend
        versions: dict[str, int] = {}

        async def session(name: str) -> None:
            answer = await ask(backend, order(name, [5] * 30, 1, Sampling(0.0, max_tokens=60)))
            versions[name] = answer.policy_version

        async with trio.open_nursery() as nursery:
            nursery.start_soon(session, "before")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(backend.swap_weights, 6, tied[1])
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(session, "after")
        assert versions == {"before": 5, "after": 6}
        with pytest.raises(WeightSwapFailed, match="no safetensors"):
            await backend.swap_weights(7, str(tmp_path))
        assert backend.policy_version == 6
        await backend.swap_weights(5, tied[0])

    server.call(run)


def test_a_second_engine_in_the_process_is_refused(server, tied, monkeypatch):
    monkeypatch.setattr("rollwave.actors.backends.vllm._ALIVE_SECONDS", 0.05)

    async def second() -> None:
        with pytest.raises(ConfigError, match="another vLLM engine is running in this process"):
            await VllmBackend(tied[0], SETTINGS).run(task_status=trio.TASK_STATUS_IGNORED)

    trio.run(second)
    answer = server.call(ask, server.backend, order("alive", [5] * 4, 0, Sampling(1.0, 2)))
    assert answer.request_id == "alive"
