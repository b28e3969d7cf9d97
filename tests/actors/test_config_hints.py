"""What a campaign's file could have said in place of a key or value that is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect
from rollwave.actors.config import CampaignConfig, parse_config
from rollwave.actors.config_hints import explained
from rollwave.engine.errors import ConfigError
from rollwave.learners.settings import ALGORITHMS

MINIMAL: dict[str, Any] = {"environment": {"id": "maze-v1"}, "model": {"path": "models/base"}}


def refusal(document: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(MINIMAL | document)
    text = str(caught.value)
    assert "\n" not in text
    return text


def at(path: str, value: Any, algorithm: str = "") -> dict[str, Any]:
    """A document with one value at a dotted path."""
    document: dict[str, Any] = {"learner": {"algorithm": algorithm}} if algorithm else {}
    *sections, key = path.split(".")
    inner = document
    for section in sections:
        inner = inner.setdefault(section, dict(MINIMAL.get(section, {})))
    inner[key] = value
    return document


@pytest.mark.parametrize(
    ("document", "hint"),
    [
        (at("enviroment", {}), "did you mean environment?"),
        (at("run.concurency", 3), "did you mean concurrency?"),
        (at("model.tiny.widht", 3), "did you mean width?"),
        (at("cloning.lora.rnak", 3), "did you mean rank?"),
        (at("learner.trainng", {}, "eto"), "did you mean training?"),
        (at("learner.training.schedul", "linear", "grpo"), "did you mean schedule?"),
        (at("learner.opening_training.lora.rnak", 3, "eto"), "did you mean rank?"),
        (at("learner.importance.corection", "token", "ppo"), "did you mean correction?"),
        # What is right elsewhere.
        (at("run.attempts", 3), "there is rollout.attempts"),
        (at("learner.lr", 0.1, "dpo"), "there is cloning.lr and learner.training.lr of "),
        (at("learner.beta", 0.1, "grpo"), "there is learner.beta of agent_evol, dpo, eto"),
        # What is right nowhere.
        (at("track.zzz", 3), "its keys are tensorboard, wandb, project, name, offline"),
    ],
)
def test_a_key_that_is_not_there_hints_at_the_one_that_is(
    document: dict[str, Any], hint: str
) -> None:
    assert hint in refusal(document)


def literals(kind: inspect.Type, path: str = "", tag: str = "") -> Iterator[tuple[str, str, str]]:
    """Path, algorithm and one accepted value of every key that takes some values only."""
    for member in kind.types if isinstance(kind, inspect.UnionType) else (kind,):
        if isinstance(member, inspect.LiteralType):
            yield path, tag, str(member.values[0])
        for field in member.fields if isinstance(member, inspect.StructType) else ():
            below = f"{path}.{field.encode_name}".removeprefix(".")
            yield from literals(field.type, below, str(getattr(member, "tag", None) or tag))


CHOICES = sorted(set(literals(inspect.type_info(CampaignConfig))))


def test_the_choices_are_those_of_every_algorithm() -> None:
    assert {tag for _, tag, _ in CHOICES if tag} == set(ALGORITHMS)
    assert {"inference.backend", "learner.kl.where"} <= {path for path, _, _ in CHOICES}


@pytest.mark.parametrize(("path", "algorithm", "accepted"), CHOICES)
@pytest.mark.parametrize("value", ["nothing of all", 7])
def test_a_value_that_is_no_choice_is_told_the_choices(
    path: str, algorithm: str, accepted: str, value: Any
) -> None:
    text = refusal(at(path, value, algorithm))
    assert f"`$.{path}`" in text
    assert f'"{accepted}"' in text.partition("it must be one of ")[2]


words = st.text(st.sampled_from("abc`$.-[] "), max_size=12)


@settings(max_examples=30, deadline=None)
@given(words, words)
def test_a_hint_is_only_ever_added(message: str, path: str) -> None:
    for text in (message, f"unknown field `{message}` - at `$.{path}`", f"Expected - at `${path}`"):
        assert explained(text, CampaignConfig, {}).startswith(text)
