"""What another process can make, it makes the same way; the rest is refused with the reason."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from rollwave.engine.errors import ConfigError
from rollwave.envs.importable import importable, pack, unpack
from rollwave.envs.registry import BUILT_IN, Registry, resolve
from rollwave.envs.wrappers import TurnLimit, wrap


@pytest.mark.parametrize("id", sorted(BUILT_IN))
def test_every_built_in_environment_can_be_made_elsewhere(id: str) -> None:
    spec = resolve(id)
    made = unpack(pack(spec))()
    task = next(spec.tasks(split)[0] for split in spec.splits)
    assert made.reset(task, 5) == spec.make().reset(task, 5)


def test_options_go_with_it() -> None:
    spec = resolve("maze-grid-v1?size=3&style=terse")
    task = spec.tasks("train")[0]
    assert unpack(pack(spec))().reset(task, 1) == spec.make().reset(task, 1)
    assert spec.make().reset(task, 1) != resolve("maze-grid-v1").make().reset(task, 1)


def test_a_family_that_a_user_registered(troubled: Any) -> None:
    worlds = Registry(built_in={})
    worlds.register(troubled.FAMILY)
    spec = worlds.resolve("late-v1?start=7")
    made = unpack(pack(spec))()
    assert type(made) is troubled.Late
    assert made.start == 7


def test_what_is_wrapped_stays_wrapped(troubled: Any) -> None:
    loud = wrap(resolve("maze"), troubled.Loud)
    made = unpack(pack(loud))()
    assert type(made) is troubled.Loud
    task = loud.tasks("train")[0]
    made.reset(task, 0)
    assert made.step("move up").observation.endswith("!")
    limited = wrap(loud, partial(TurnLimit, limit=2))
    twice = unpack(pack(limited))()
    twice.reset(task, 0)
    assert not twice.step("x").truncated
    assert twice.step("x").truncated


def test_a_changed_spec_does_not_fall_back_to_the_registry() -> None:
    spec = resolve("maze")
    assert importable(spec) is not spec.make
    with pytest.raises(ConfigError, match=r"maze-v1 cannot run in a worker process.*top of a mod"):
        pack(wrap(spec, lambda env: env))


def test_what_the_running_script_defines_is_refused(
    troubled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(troubled.Troubled, "__module__", "__main__")
    with pytest.raises(ConfigError, match=r"Troubled is defined in the script that is run.*module"):
        pack(troubled.spec())
