"""The transformers backend: its sampler against arithmetic, its loop against the model."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.actors.backends.transformers import (
    TransformersBackend,
    TransformersSettings,
    sample,
)
from rollwave.actors.protocol import Completion, Generate, Sampling
from rollwave.engine.codec import pack_tokens, unpack_floats, unpack_tokens
from rollwave.engine.errors import BackendError, ConfigError, WeightSwapFailed
from rollwave.engine.seeds import generator
from rollwave.engine.trajectory import FinishReason
from rollwave.learners.model.tiny import make_tiny_model

pytestmark = [
    pytest.mark.learn,
    pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None,
        reason="torch and transformers are not installed",
    ),
]

WORDS = [f"w{i}" for i in range(26)]
CONTEXT = 96
SETTINGS = TransformersSettings(max_batch=6, threads=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two of one shape with peaked distributions, so that wrong weights show; one of another."""
    import torch
    from transformers import AutoModelForCausalLM

    root = tmp_path_factory.mktemp("models")
    paths = [
        make_tiny_model(
            root / str(seed),
            vocabulary=WORDS,
            width=32 if seed < 2 else 48,
            layers=2,
            heads=2,
            context=CONTEXT,
            seed=seed,
        )
        for seed in range(3)
    ]
    for path in paths:
        model: Any = AutoModelForCausalLM.from_pretrained(path)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(6.0)
        model.save_pretrained(path)
    return [str(path) for path in paths]


@asynccontextmanager
async def serving(
    model: str, settings: TransformersSettings = SETTINGS, stop_ids: Sequence[int] = ()
) -> AsyncIterator[TransformersBackend]:
    backend = TransformersBackend(model, settings, version=2, stop_ids=stop_ids)
    async with trio.open_nursery() as nursery:
        await nursery.start(backend.run)
        yield backend
        nursery.cancel_scope.cancel()


async def ask(backend: TransformersBackend, request: Generate) -> Completion:
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


async def ask_all(backend: TransformersBackend, requests: Sequence[Generate]) -> list[Completion]:
    answers: dict[str, Completion] = {}

    async def one(request: Generate) -> None:
        answers[request.request_id] = await ask(backend, request)

    async with trio.open_nursery() as nursery:
        for request in requests:
            nursery.start_soon(one, request)
    return [answers[request.request_id] for request in requests]


def orders(count: int, sampling: Sampling, seed: int = 0) -> list[Generate]:
    draw = generator(seed, "prompts")
    return [
        Generate(
            f"{seed}/{i}",
            pack_tokens([draw.randrange(4, 26) for _ in range(draw.randrange(1, 50))]),
            (),
            sampling,
            100 * seed + i,
        )
        for i in range(count)
    ]


def assert_served(
    model_dir: str, requests: Sequence[Generate], answers: Sequence[Completion]
) -> None:
    """The log-probs are those of the model, unpadded, one prompt at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(model_dir)
    spread = set()
    for request, answer in zip(requests, answers, strict=True):
        prompt = unpack_tokens(request.prompt_ids).tolist()
        ids = unpack_tokens(answer.token_ids).tolist()
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + ids])).logits[0].float()
        rows = (logits / (request.sampling.temperature or 1.0)).log_softmax(-1)
        expected = [float(rows[len(prompt) - 1 + i, token]) for i, token in enumerate(ids)]
        assert unpack_floats(answer.logprobs).tolist() == pytest.approx(expected, abs=1e-3)
        spread.update(round(value, 2) for value in expected)
    assert len(spread) > 10


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
async def test_log_probs_are_those_of_the_sampling_distribution(models, temperature):
    requests = orders(8, Sampling(temperature, max_tokens=10))  # more than a block holds
    async with serving(models[0]) as backend:
        answers = await ask_all(backend, requests)
    assert_served(models[0], requests, answers)
    assert {answer.policy_version for answer in answers} == {2}


async def test_a_request_is_drawn_from_its_own_seed_in_any_company(models):
    requests = orders(14, Sampling(1.0, max_tokens=12), seed=1)
    async with serving(models[0]) as backend:
        together = await ask_all(backend, requests)
        alone = [await ask(backend, request) for request in requests]
        reversed_order = await ask_all(backend, requests[::-1])
    assert [a.token_ids for a in alone] == [a.token_ids for a in together]
    assert [a.token_ids for a in reversed_order[::-1]] == [a.token_ids for a in together]
    assert len({a.token_ids for a in together}) > 7


async def test_a_completion_ends_with_a_closer_or_the_limit(models):
    requests = orders(16, Sampling(1.5, max_tokens=20), seed=2)
    closer = 7
    async with serving(models[0], stop_ids=(closer,)) as backend:
        answers = await ask_all(backend, requests)
    assert {answer.finish for answer in answers} == {FinishReason.STOP, FinishReason.LENGTH}
    for answer in answers:
        ids = unpack_tokens(answer.token_ids).tolist()
        assert closer not in ids[:-1]
        if answer.finish is FinishReason.LENGTH:
            assert len(ids) == 20


async def test_the_context_ends_a_completion(models):
    prompt = pack_tokens([5] * (CONTEXT - 2))
    async with serving(models[0]) as backend:
        request = Generate("edge", prompt, (), Sampling(0.0, max_tokens=50), 0)
        assert len(unpack_tokens((await ask(backend, request)).token_ids)) <= 2
        with pytest.raises(BackendError, match=f"{CONTEXT} tokens leaves no room"):
            await ask(backend, Generate("full", pack_tokens([5] * CONTEXT), (), Sampling(), 0))


@pytest.mark.parametrize(
    ("prompt", "sampling", "reason"),
    [
        ([], Sampling(), "needs token ids"),
        ([4000], Sampling(), "needs token ids"),
        ([5], Sampling(temperature=-1.0), "cannot be sampled with"),
        ([5], Sampling(top_p=0.0), "cannot be sampled with"),
        ([5], Sampling(max_tokens=0), "cannot be sampled with"),
    ],
)
async def test_what_cannot_be_served_is_refused_alone(models, prompt, sampling, reason):
    async with serving(models[0]) as backend:
        with pytest.raises(BackendError, match=reason):
            await ask(backend, Generate("bad", pack_tokens(prompt), (), sampling, 0))
        await ask(backend, orders(1, Sampling(1.0, 2))[0])


async def test_a_stop_string_ends_a_turn_that_is_not_closed(models):
    (request,) = orders(1, Sampling(1.0, max_tokens=12), seed=3)
    async with serving(models[0]) as backend:
        ids = unpack_tokens((await ask(backend, request)).token_ids).tolist()
        from transformers import AutoTokenizer

        word = AutoTokenizer.from_pretrained(models[0]).decode([ids[2]])
        stopped = await ask(
            backend,
            Generate("stop", request.prompt_ids, (), Sampling(1.0, 12, stop=(word,)), request.seed),
        )
    kept = unpack_tokens(stopped.token_ids).tolist()
    assert kept == ids[: len(kept)]
    assert len(kept) <= 3
    assert stopped.finish is FinishReason.LENGTH
    assert word not in stopped.text


async def test_a_swap_is_exact(models):
    requests = orders(6, Sampling(1.0, max_tokens=8), seed=4)
    async with serving(models[0]) as backend:
        for version, model in ((3, models[1]), (4, models[0])):
            await backend.swap_weights(version, model)
            answers = await ask_all(backend, requests)
            assert_served(model, requests, answers)
            assert {answer.policy_version for answer in answers} == {version}
        with pytest.raises(WeightSwapFailed, match="does not hold the weights"):
            await backend.swap_weights(5, models[2])


async def test_cancelled_requests_leave_the_block(models):
    async with serving(models[0]) as backend:
        called: list[object] = []
        long = Sampling(1.0, max_tokens=60)
        for request in orders(9, long, seed=5):
            backend.submit(request, called.append)
        await trio.testing.wait_all_tasks_blocked()
        for request in orders(9, long, seed=5):
            backend.cancel(request.request_id)
        await ask(backend, orders(1, Sampling(1.0, 2), seed=6)[0])
        await ask(backend, orders(1, Sampling(1.0, 2), seed=7)[0])
        engine = backend._thread._engine
        assert [row.request_id for row in engine._rows if not row.gone] == []
        assert not engine._waiting
    assert called == []


async def test_a_directory_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    backend = TransformersBackend(str(tmp_path), SETTINGS)
    with pytest.raises(ConfigError, match="LoRA adapter: merge it"):
        await backend.run(task_status=trio.TASK_STATUS_IGNORED)


# -- the sampler -------------------------------------------------------------------------

ROW = st.lists(st.floats(-8, 8, width=32), min_size=5, max_size=5)


@given(
    rows=st.lists(ROW, min_size=1, max_size=4),
    temperature=st.one_of(st.just(0.0), st.floats(0.2, 3.0)),
    top_p=st.one_of(st.just(1.0), st.floats(0.1, 0.95)),
    uniform=st.floats(0.0, 1.0, exclude_max=True),
)
@settings(max_examples=80, deadline=None)
def test_the_sampler_inverts_the_distribution(rows, temperature, top_p, uniform):
    import torch

    n = len(rows)
    tokens, logprobs = sample(torch.tensor(rows), [temperature] * n, [top_p] * n, [uniform] * n)
    for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
        scale = temperature or 1.0
        weights = [math.exp((value - max(row)) / scale) for value in row]
        probabilities = [w / sum(weights) for w in weights]
        if temperature == 0.0:
            assert row[token] == pytest.approx(max(row), abs=1e-5)
            assert logprob == pytest.approx(math.log(probabilities[token]), abs=1e-4)
            continue
        if top_p < 1:
            kept, share = set(), 0.0
            for index in sorted(range(5), key=lambda i: -probabilities[i]):
                if share >= top_p:
                    break
                kept.add(index)
                share += probabilities[index]
            edge = min(probabilities[i] for i in kept)
            if any(i not in kept and abs(p - edge) < 1e-5 for i, p in enumerate(probabilities)):
                continue  # a tie at the edge: either may be kept
            if abs(share - probabilities[min(kept, key=lambda i: probabilities[i])] - top_p) < 1e-5:
                continue  # float noise decides whether the last one is kept
            assert token in kept
            total = sum(probabilities[i] for i in kept)
            probabilities = [p / total if i in kept else 0.0 for i, p in enumerate(probabilities)]
        assert logprob == pytest.approx(math.log(probabilities[token]), abs=1e-4)
        below = sum(probabilities[:token])
        assert below - 1e-5 <= uniform <= below + probabilities[token] + 1e-5


def test_rows_are_sampled_apart():
    """Greedy, cut and full rows in one call: each as if it were alone."""
    import torch

    draw = generator(0, "rows")
    logits = torch.tensor([[draw.uniform(-3, 3) for _ in range(12)] for _ in range(9)])
    temperatures = [0.0, 1.0, 0.5] * 3
    top_ps = [1.0, 0.5, 1.0, 0.7, 1.0, 0.3, 1.0, 1.0, 0.9]
    uniforms = [draw.random() for _ in range(9)]
    tokens, logprobs = sample(logits, temperatures, top_ps, uniforms)
    for i in range(9):
        token, logprob = sample(
            logits[i : i + 1], temperatures[i : i + 1], top_ps[i : i + 1], uniforms[i : i + 1]
        )
        assert (token, logprob) == ([tokens[i]], pytest.approx([logprobs[i]], abs=1e-6))


def test_many_draws_have_the_distributions_frequencies():
    import torch

    row = torch.tensor([0.0, 1.0, 2.0, -1.0])
    n = 4000
    uniforms = [(i + 0.5) / n for i in range(n)]  # a grid: no luck involved
    tokens, _ = sample(row.repeat(n, 1), [1.0] * n, [1.0] * n, uniforms)
    wanted = row.softmax(-1).tolist()
    for token in range(4):
        assert tokens.count(token) / n == pytest.approx(wanted[token], abs=1 / n)


def test_shapes_of_a_sharded_directory_are_those_of_all_its_files(tmp_path: Path):
    import torch
    from rollwave.actors.backends import checkpoint
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2, 3)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.ones(4)}, tmp_path / "model-2.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"b": "model-2.safetensors", "a": "model-1.safetensors"}}'
    )
    assert checkpoint.shapes(str(tmp_path)) == {"a": (2, 3), "b": (4,)}
    assert [name for name, _ in checkpoint.tensors(str(tmp_path))] == ["a", "b"]
    for served, reason in (
        ({"a": (2, 3)}, "b is .* there and missing here"),
        ({"a": (2, 3), "b": (4,), "c": (1,)}, "c is missing there"),
        ({"a": (3, 2), "b": (4,)}, r"a is \(2, 3\) there and \(3, 2\) here"),
    ):
        with pytest.raises(WeightSwapFailed, match=reason):
            checkpoint.require_same(str(tmp_path), served)
    checkpoint.require_same(
        str(tmp_path), {"a": (2, 3), "b": (4,), "lm_head.weight": (9, 9)}
    )  # tied: saved or left out at will
