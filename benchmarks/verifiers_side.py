"""The other side of `throughput`: MultiTurnEnv of verifiers, in its fastest honest form.

Run by `throughput` with the interpreter of the virtual environment that has
verifiers; it imports nothing of ours. Three ways to reach a model:

* `stock`: verifiers' own client, as its ClientConfig builds it (httpx);
* `tuned`: the same client class over openai's aiohttp transport, with room for every
  connection;
* `inprocess`: no HTTP at all, a client that sleeps and answers.

Rollouts run as `run_rollout` under one `asyncio.gather`: measured, that is faster than
`generate` with its progress bar and its growing result lists. uvloop and an older
openai made no difference (480 turns/s each).

The world is that of `benchmarks/engine.py`: "k turns are left.", whatever the action.

Not here: repeats, spread and comparison (`throughput`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import time
import warnings
from importlib import import_module
from importlib.metadata import version
from typing import Any

warnings.simplefilter("ignore")

# By name: they are installed in the other environment, not in ours.
vf: Any = import_module("verifiers")
openai: Any = import_module("openai")
clients: Any = import_module("verifiers.clients")
types: Any = import_module("verifiers.types")

SAMPLING = {"temperature": 1.0, "max_tokens": 4}
SECONDS = 600.0


class Countdown(vf.MultiTurnEnv):  # type: ignore[misc]
    """Counts down, whatever the action."""

    async def env_response(self, messages: Any, state: Any, **kwargs: Any) -> Any:
        """Answer with the turns that are left."""
        return [
            vf.UserMessage(content=f"{self.max_turns - len(state['trajectory'])} turns are left.")
        ]


class Sleeper(clients.Client):  # type: ignore[misc]
    """A model that takes its latency and says "go"."""

    def __init__(self, latency: float) -> None:
        self.latency = latency
        self._config = None
        self._client = None

    def setup_client(self, config: Any) -> None:
        """There is none."""

    async def to_native_tool(self, tool: Any) -> Any:
        """Pass through."""
        return tool

    async def to_native_prompt(self, messages: Any) -> Any:
        """Pass through."""
        return messages, {}

    async def get_native_response(self, *args: Any, **kwargs: Any) -> None:
        """Take the latency."""
        await asyncio.sleep(self.latency)

    async def raise_from_native_response(self, response: Any) -> None:
        """Nothing goes wrong."""

    async def from_native_response(self, response: Any) -> Any:
        """Answer."""
        message = types.ResponseMessage(content="go", finish_reason="stop", is_truncated=False)
        usage = types.Usage(
            prompt_tokens=64, reasoning_tokens=0, completion_tokens=1, total_tokens=65
        )
        return types.Response(id="1", created=1, model="stub", usage=usage, message=message)

    async def close(self) -> None:
        """There is nothing to close."""


def make_client(kind: str, url: str, sessions: int, latency: float) -> Any:
    """The client of that kind."""
    if kind == "inprocess":
        return Sleeper(latency)
    if kind == "stock":
        return clients.OpenAIChatCompletionsClient(vf.ClientConfig(api_base_url=f"{url}/v1"))
    room = type(openai.DEFAULT_CONNECTION_LIMITS)  # httpx's, or that of its successor
    limits = room(max_connections=2 * sessions, max_keepalive_connections=2 * sessions)
    http_client = openai.DefaultAioHttpClient(limits=limits, timeout=SECONDS)
    return clients.OpenAIChatCompletionsClient(
        openai.AsyncOpenAI(api_key="none", base_url=f"{url}/v1", http_client=http_client)
    )


async def play(kind: str, url: str, sessions: int, turns: int, latency: float) -> dict[str, Any]:
    """Play `sessions` episodes of `turns` turns at once, after a few that are not counted."""
    datasets: Any = import_module("datasets")

    async def reward(**_: Any) -> float:
        return 1.0

    prompt = [
        {"role": "system", "content": "Count down."},
        {"role": "user", "content": f"{turns} turns are left."},
    ]
    row: dict[str, Any] = {"prompt": prompt, "answer": "", "info": {}}
    environment = Countdown(
        dataset=datasets.Dataset.from_list([row]), rubric=vf.Rubric(funcs=[reward]), max_turns=turns
    )
    client = make_client(kind, url, sessions, latency)

    async def rollouts(count: int) -> int:
        inputs = [row | {"example_id": k} for k in range(count)]
        outputs = await asyncio.gather(
            *(environment.run_rollout(item, client, "stub", SAMPLING) for item in inputs)
        )
        return sum(int(output["metrics"]["num_turns"]) for output in outputs)

    await rollouts(8)
    started, cpu = time.perf_counter(), time.process_time()
    played = await rollouts(sessions)
    seconds, used = time.perf_counter() - started, time.process_time() - cpu
    await client.close()
    if played != sessions * turns:
        raise RuntimeError(f"{played} of {sessions * turns} turns were played")
    names = ("verifiers", "openai", "aiohttp", "httpx")
    return {
        "seconds": seconds,
        "turns": played,
        "turns_per_second": played / seconds,
        "cpu_microseconds_per_turn": used / played * 1e6,
        "versions": {name: version(name) for name in names},
    }


def main() -> None:
    """Read the options, play, print one JSON line."""
    parser = argparse.ArgumentParser(description="verifiers against a stub server.")
    parser.add_argument("kind", choices=("stock", "tuned", "inprocess"))
    parser.add_argument("--url", default="")
    parser.add_argument("--sessions", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    figures = asyncio.run(
        play(options.kind, options.url, options.sessions, options.turns, options.latency_ms / 1000)
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
