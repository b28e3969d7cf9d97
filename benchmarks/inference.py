"""What the inference actor costs: tokens per second beside vLLM's own offline `LLM.generate`.

    python -m rollwave.benchmarks.inference

One tiny Llama, made on the spot (a large model hides the cost of an actor behind its
arithmetic), the same prompts, seeds and engine options on both sides, one engine at a
time in one process, the sides in turn. Offline gets all prompts in one call. The actor
gets each in an ask of its own, as MessagePack, from as many tasks, and its engine runs in
a thread beside the loop. The bar: 0.9 of offline.

The second table plays conversations: every session asks for two tokens, appends twelve,
and asks again, as the maze of the demo does.

Not here: the engine without a model (`engine`), other systems (`throughput`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import trio

from ..actors.backends.vllm import ENGINE_ALIVE, VllmBackend, VllmSettings, engine_arguments
from ..actors.inference import Inference, PolicyHolder
from ..actors.protocol import (
    Completion,
    DescribeInference,
    Generate,
    InferenceStatus,
    Sampling,
)
from ..cli.output import Output
from ..engine.child import ChildSpec
from ..engine.codec import pack_tokens, unpack_tokens
from ..engine.ref import ActorRef
from ..engine.seeds import derive, generator
from ..engine.system import ActorSystem
from .report import Spread, write

BAR: Final = 0.9
CONTEXT: Final = 512
SETTINGS: Final = VllmSettings(max_model_len=CONTEXT, kv_cache_gib=0.5)
UNITS: Final = ("second", "CPU second")
CONCURRENCY: Final = (64, 256)
WORDS: Final = tuple(f"w{i}" for i in range(60))


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of one size."""

    name: str
    requests: int
    prompt_tokens: int
    new_tokens: int

    def prompts(self, seed: int) -> list[list[int]]:
        """Random token ids: no two prompts share a cached block."""
        draw = generator(seed, self.name)
        return [
            [draw.randrange(4, len(WORDS)) for _ in range(self.prompt_tokens)]
            for _ in range(self.requests)
        ]


WORKLOADS: Final = (
    Workload("64 tokens in, 32 out", 768, 64, 32),
    Workload("64 tokens in, 2 out", 4096, 64, 2),
)

Figures = dict[str, list[float]]
"""Values of each round by name."""

Rates = tuple[float, float]
"""Tokens per second of wall time, and of this process's CPU time.

The second hardly depends on what else a shared machine is doing."""


class _Watch:
    """Runs from its making."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def rates(self, tokens: int) -> Rates:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return tokens / wall, tokens / cpu


def note(figures: Figures, name: str, rates: Rates) -> None:
    """Keep both rates."""
    for unit, value in zip(UNITS, rates, strict=True):
        figures.setdefault(f"{name}, per {unit}", []).append(value)


def offline(model: str, round_: int, figures: Figures) -> None:
    """One round of `LLM.generate`, once the actor's engine has ended."""
    with ENGINE_ALIVE:
        _offline(model, round_, figures)


def _offline(model: str, round_: int, figures: Figures) -> None:
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, on importing itself
        engine: Any = LLM(**engine_arguments(model, SETTINGS))

    def run(workload: Workload, seed: int) -> Rates:
        prompts = workload.prompts(seed)
        params = [
            SamplingParams(
                temperature=1.0,
                max_tokens=workload.new_tokens,
                ignore_eos=False,
                seed=derive(seed, index),
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for index in range(len(prompts))
        ]
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        watch = _Watch()
        outputs = engine.generate(inputs, params, use_tqdm=False)
        return watch.rates(sum(len(output.outputs[0].token_ids) for output in outputs))

    for workload in WORKLOADS:
        run(replace(workload, requests=64), -1 - round_)
        note(figures, f"offline, {workload.name}", run(workload, round_))
    engine.llm_engine.engine_core.shutdown()


def through_the_actor(model: str, round_: int, figures: Figures, turns: int) -> None:
    """One round through the inference actor: single requests, then conversations."""

    async def run(inference: ActorRef, workload: Workload, seed: int) -> Rates:
        tokens = 0
        sampling = Sampling(1.0, workload.new_tokens)

        async def ask(index: int, prompt: bytes) -> None:
            nonlocal tokens
            order = Generate(f"{seed}/{index}", prompt, (), sampling, derive(seed, index))
            answer = await inference.ask(order, Completion)
            tokens += len(answer.token_ids) // 4

        prompts = [pack_tokens(prompt) for prompt in workload.prompts(seed)]
        watch = _Watch()
        async with trio.open_nursery() as nursery:
            for index, prompt in enumerate(prompts):
                nursery.start_soon(ask, index, prompt)
        return watch.rates(tokens)

    async def serve() -> None:
        holder = PolicyHolder(0, model)
        async with ActorSystem() as system:
            inference = await system.start(
                ChildSpec(
                    "inference",
                    lambda: Inference(lambda v, p: VllmBackend(p, SETTINGS, version=v), holder),
                )
            )
            for workload in WORKLOADS:
                await run(inference, replace(workload, requests=64), -1 - round_)
                rates = await run(inference, workload, round_)
                note(figures, f"actor, {workload.name}", rates)
            for sessions in CONCURRENCY:
                await _conversations(inference, sessions, turns, round_, figures)

    trio.run(serve)


async def _conversations(
    inference: ActorRef, sessions: int, turns: int, seed: int, figures: Figures
) -> None:
    """Sessions that talk in turns of two tokens, each at its own pace."""
    sampling = Sampling(1.0, 2)

    async def session(number: int) -> None:
        draw = generator(seed, sessions, number)
        ids = [draw.randrange(4, len(WORDS)) for _ in range(20)]
        for turn in range(turns):
            name = f"{seed}/{sessions}/{number}/{turn}"
            order = Generate(name, pack_tokens(ids), (), sampling, draw.getrandbits(62))
            answer = await inference.ask(order, Completion)
            ids += unpack_tokens(answer.token_ids)
            ids += [draw.randrange(4, len(WORDS)) for _ in range(12)]

    before = await inference.ask(DescribeInference(), InferenceStatus)
    began, cpu = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        for number in range(sessions):
            nursery.start_soon(session, number)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    after = await inference.ask(DescribeInference(), InferenceStatus)
    requests = sessions * turns
    batches = after.batches - before.batches
    stepping = after.extra["step_seconds"] - before.extra["step_seconds"]
    fill = (
        (after.batch_requests - before.batch_requests)
        / batches
        / min(after.batch_capacity, sessions)
    )
    for name, value in (
        ("requests per second", requests / seconds),
        ("CPU µs a request", cpu / requests * 1e6),
        ("batch fill", fill),
        ("share in vLLM's step", stepping / seconds),
    ):
        figures.setdefault(f"{sessions} sessions, {name}", []).append(value)


def main() -> None:
    """Measure, print two tables, write one JSON file."""
    parser = argparse.ArgumentParser(description="The inference actor beside LLM.generate.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=12, help="of each conversation")
    parser.add_argument("--model", default="", help="a model directory (default: a tiny Llama)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/inference.json"))
    options = parser.parse_args()
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or _tiny(Path(folder) / "tiny")
        for round_ in range(options.rounds):
            # In turn, and in both orders: a busy moment of the machine, or a warm process,
            # helps neither side.
            if round_ % 2:
                offline(model, round_, figures)
            through_the_actor(model, round_, figures, options.turns)
            if not round_ % 2:
                offline(model, round_, figures)
    report(figures, options.out)


def _tiny(path: Path) -> str:
    from ..learners.model.tiny import make_tiny_model

    return str(make_tiny_model(path, vocabulary=WORDS, context=CONTEXT))


def report(figures: Figures, out: Path) -> None:
    """Print the tables and write the file."""
    spread = {name: Spread.of(values) for name, values in figures.items()}
    ratios: dict[str, Spread] = {}
    rows = []
    for workload in WORKLOADS:
        for unit in UNITS:
            name = f"{workload.name}, per {unit}"
            pairs = zip(figures[f"actor, {name}"], figures[f"offline, {name}"], strict=True)
            ratio = ratios[name] = Spread.of([actor / alone for actor, alone in pairs])
            verdict = "met" if ratio.median >= BAR else "missed"
            rows.append(
                [
                    name,
                    str(spread[f"offline, {name}"]),
                    str(spread[f"actor, {name}"]),
                    str(ratio),
                    verdict if unit == "second" else "",
                ]
            )
    output = Output()
    header = ["tokens", "LLM.generate offline", "inference actor", "ratio", f"bar {BAR}"]
    output.table(header, rows)
    columns = ("requests per second", "CPU µs a request", "batch fill", "share in vLLM's step")
    output.table(
        ["two-token turns", *columns],
        [
            [f"{n} sessions", *(str(spread[f"{n} sessions, {column}"]) for column in columns)]
            for n in CONCURRENCY
        ],
    )
    write(
        out,
        {
            "bar": BAR,
            "figures": {name: asdict(value) for name, value in spread.items()},
            "ratios": {name: asdict(value) for name, value in ratios.items()},
        },
    )


if __name__ == "__main__":
    main()
