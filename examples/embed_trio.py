"""Rollwave inside a trio program: open an engine, stream trajectories, leave when you like.

    python examples/embed_trio.py                       # the environment's own expert
    python examples/embed_trio.py models/base           # a model directory, served by vLLM

The engine is a value, not a global: open one or several, anywhere in your tree of tasks.
Whatever ends the block (an exception, a deadline, Ctrl-C) stops every session first.

Not here: asyncio (`embed_fastapi.py`).
"""

from __future__ import annotations

import sys
from collections import Counter

import rollwave
import trio


async def play(
    policy: str | rollwave.PolicySource, *, env: str, tasks: int, seconds: float
) -> Counter[str]:
    """Play some test tasks twice each, for at most so many seconds, and count the outcomes."""
    counts: Counter[str] = Counter()
    async with rollwave.open_engine(policy, concurrency=32, seed=7) as engine:
        chosen = engine.tasks(env, "test", limit=tasks)
        sampling = rollwave.Sampling(temperature=0.7, max_tokens=128)
        with trio.move_on_after(seconds):
            # Leaving the inner block early cancels the episodes that still run.
            async with engine.rollout(chosen, attempts=2, sampling=sampling) as rollout:
                async for trajectory in rollout:
                    counts[trajectory.outcome] += 1
                    print(f"{trajectory.id:24} {trajectory.outcome:10} {trajectory.reward}")
    return counts


async def main(policy: str = "expert") -> None:
    """Play beside the other work of a program: here, a clock."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_clock)
        counts = await play(policy, env="textcraft-v1", tasks=8, seconds=60)
        nursery.cancel_scope.cancel()
    print(dict(counts))


async def _clock() -> None:
    """Stand for the rest of your program."""
    while True:
        await trio.sleep(10)
        print("still here: the engine blocks nobody")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "expert")
