"""`examples/embed_trio.py` does what it says: it streams, and a deadline cancels the rest."""

from __future__ import annotations

import pytest
import trio


async def test_it_plays_every_episode(example, capsys) -> None:
    await example("embed_trio").main()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 8 * 2 + 1
    assert all(" success " in line for line in printed[:-1])
    assert "16" in printed[-1]


async def test_a_deadline_ends_what_still_runs(example, half_silent, autojump_clock) -> None:
    backend, source = half_silent
    counts = await example("embed_trio").play(source, env="textcraft-v1", tasks=3, seconds=60)
    assert counts == {"truncated": 3}, "first attempts were counted before the deadline"
    assert trio.current_time() < 3600, "nothing waited for the silent backend"
    assert backend.waiting == set()
    assert {name.split("/")[2] for name in backend.abandoned} == {"1"}


async def test_an_error_of_the_host_stops_the_engine(example, half_silent, autojump_clock) -> None:
    backend, source = half_silent
    play = example("embed_trio").play

    async def fail() -> None:
        await trio.sleep(5)
        raise KeyError("the host's own")

    with pytest.RaisesGroup(KeyError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await play(source, env="textcraft-v1", tasks=2, seconds=1e9)
    assert backend.waiting == set()
    assert len(backend.abandoned) == 2
