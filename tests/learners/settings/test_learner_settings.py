"""Settings: unknown keys and impossible values are refused by name."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.engine.errors import ConfigError
from rollwave.learners.settings import EvolSettings, LoraSettings, TrainingSettings


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: TrainingSettings(lr=0.0), "lr"),
        (lambda: TrainingSettings(lr=float("inf")), "lr"),
        (lambda: TrainingSettings(lr=float("nan")), "lr"),
        (lambda: TrainingSettings(device="gpu"), "device"),
        (lambda: TrainingSettings(device="cuda:x"), "device"),
        (lambda: TrainingSettings(epochs=0), "epochs"),
        (lambda: TrainingSettings(batch=0), "batch"),
        (lambda: TrainingSettings(warmup=1.5), "warmup"),
        (lambda: TrainingSettings(max_steps=-1), "max_steps"),
        (lambda: TrainingSettings(clip=-1.0), "clip"),
        (lambda: TrainingSettings(patience=0), "patience"),
        (lambda: LoraSettings(rank=0), "lora.rank"),
        (lambda: LoraSettings(dropout=1.0), "lora.dropout"),
        (lambda: EvolSettings(beta=0.0), "beta"),
        (lambda: EvolSettings(per_task_cap=-1), "per_task_cap"),
        (lambda: EvolSettings(max_new_ratio=0.0), "max_new_ratio"),
    ],
)
def test_impossible_values_are_refused_by_name(make, key):
    with pytest.raises(ConfigError, match=f"^{key} = "):
        make()


def test_unknown_keys_are_refused_by_name():
    with pytest.raises(msgspec.ValidationError, match="learning_rate"):
        msgspec.convert({"learning_rate": 1.0}, TrainingSettings)
    with pytest.raises(msgspec.ValidationError, match="merge"):
        msgspec.convert({"merge": "all"}, EvolSettings)


@given(
    lr=st.floats(1e-6, 1.0),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    lora=st.none() | st.builds(LoraSettings, rank=st.integers(1, 64)),
)
def test_settings_survive_the_way_through_plain_values(lr, schedule, lora):
    settings = EvolSettings(training=TrainingSettings(lr=lr, schedule=schedule, lora=lora))
    assert msgspec.convert(msgspec.to_builtins(settings), EvolSettings) == settings


def test_settings_filters_and_chat_load_no_torch():
    """The command line and the config reader use them where torch is not installed."""
    names = ["settings", "evidence.filters", "model.chat", "stopping", "cloning.agent_evol"]
    code = "import sys\n" + "\n".join(f"import rollwave.learners.{name}" for name in names)
    code += "\nsys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
