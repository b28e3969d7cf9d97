"""Experts from files: which are taken, which are left out and why, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollwave.actors.arena import curriculum
from rollwave.actors.config import CampaignConfig, parse_config
from rollwave.actors.expert_files import digest
from rollwave.actors.imported import GivenUp, Imported, read_experts
from rollwave.engine.errors import BadDataFile, ConfigError
from rollwave.engine.store import Store
from rollwave.engine.trajectory import FinishReason, Outcome, Trajectory
from rollwave.envs.registry import resolve
from rollwave.learners.exchange import Reading, Tally, find_format, read

GRID = "maze-grid-v1?size=3&style=terse"
PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "agenttraj"

ExpertFile = Callable[..., str]


def config(path: str | list[str], env: str = GRID, **sections: Any) -> CampaignConfig:
    experts = {"path": path, **sections.pop("experts", {})}
    base = {
        "environment": {"id": env},
        "model": {"path": "models/base"},
        "rollout": {"tasks": 10},
        "evaluate": {"dev_tasks": 3, "test_tasks": 2},
    }
    return parse_config({**base, **sections, "experts": experts})


def taken(settings: CampaignConfig) -> Imported:
    return read_experts(settings, curriculum(settings))


def refusal(settings: CampaignConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        taken(settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_experts_become_the_first_wave_of_the_campaigns_environment(
    expert_file: ExpertFile,
) -> None:
    path = expert_file("experts.json", GRID, [5, 9, 5])
    found = taken(config(path))
    assert [t.id for t in found.trajectories] == [
        "w0/maze-grid_5/0",
        "w0/maze-grid_9/0",
        "w0/maze-grid_5/1",
    ]
    for t in found.trajectories:
        t.check()
        assert (t.env, t.split, t.wave, t.policy, t.outcome) == (
            resolve(GRID).id,
            "train",
            0,
            "expert",
            Outcome.SUCCESS,
        )
        assert all(turn.action and not turn.format_error for turn in t.turns)
    assert found.record.assumed == {"reward": 3}
    assert [source.path for source in found.record.sources] == [path]


def test_evaluation_tasks_and_other_splits_are_left_out_and_counted(
    expert_file: ExpertFile,
) -> None:
    # Test 4500 and dev 4400 are not among the few that this campaign plays: the split decides.
    path = expert_file("experts.json", GRID, [1, 4000, 4400, 4500, 5500, 2])
    found = taken(config(path))
    assert [t.task_id for t in found.trajectories] == ["maze-grid_1", "maze-grid_2"]
    assert found.record.left_out == {"evaluation": 3, "other_split": 1}
    unseen = taken(config(path, experts={"split": "unseen"}))
    assert [t.task_id for t in unseen.trajectories] == ["maze-grid_5500"]


def test_textcraft_tasks_are_told_by_their_goals_whatever_their_numbers(
    expert_file: ExpertFile,
) -> None:
    """Published numbers are of another order: a test goal must not pass under a train number."""
    spec = resolve("textcraft-v1")
    train, test = spec.splits["train"][0], spec.splits["test"][0]
    path = expert_file("experts.json", "textcraft-v1", [train, test], item_id=f"textcraft_{train}")
    found = taken(config(path, "textcraft-v1"))
    assert found.record.left_out == {"evaluation": 1}
    assert [t.task_id for t in found.trajectories] == [f"textcraft_{train}"]


def test_other_environments_failures_and_more_than_was_asked_for_are_counted(
    expert_file: ExpertFile,
) -> None:
    paths = [
        expert_file("a.json", GRID, [1, 2]),
        expert_file("b.json", "maze-v1", [1]),
        expert_file("c.json", GRID, [3, 4], reward=0.0),
        expert_file("d.json", GRID, [5, 6, 7, 1]),
    ]
    found = taken(config(paths, experts={"first": 1, "tasks": 3}))
    names = [t.task_id for t in found.trajectories]
    assert names == ["maze-grid_2", "maze-grid_5", "maze-grid_6"]
    counts = {"other_environment": 1, "no_success": 2, "over_tasks": 3}
    assert found.record.left_out == counts
    assert found.record.read == sum(counts.values()) + found.record.kept


def test_a_record_of_no_task_can_be_cloned_and_is_counted(tmp_path: Path) -> None:
    row = {
        "messages": [{"role": "user", "content": "goal"}, {"role": "assistant", "content": "up"}]
    }
    path = tmp_path / "sft.jsonl"
    path.write_text(json.dumps(row))
    found = taken(config(str(path)))
    assert found.record.assumed == {"reward": 1, "env": 1, "task": 1}
    # It is not mistaken for the task of the row's number.
    assert found.trajectories[0].task_id == "record_0"
    assert "name no task" in refusal(config(str(path), experts={"replay": True}))
    asked = config(str(path), learner={"scope": "expert_tasks"})
    with pytest.raises(ConfigError, match=r"name 0 tasks of .*all_tasks"):
        curriculum(asked).following(found.trajectories, asked)


@pytest.mark.parametrize("form", ["agenttraj", "openmanus", "sharegpt", "trl", "store"])
def test_every_format_brings_the_same_experts(
    expert_file: ExpertFile, tmp_path: Path, form: str
) -> None:
    path = expert_file("experts.json", GRID, [1, 2, 3])
    wanted = taken(config(path)).trajectories
    target = find_format(form)
    out = tmp_path / f"out{target.suffixes[0] if target.suffixes else ''}"
    target.write(out, read(Path(path), "", Reading()), Tally())
    assert taken(config(str(out))).trajectories == wanted


def test_tokens_of_another_model_are_not_taken_over(
    expert_file: ExpertFile, tmp_path: Path
) -> None:
    plain = next(read(Path(expert_file("a.json", GRID, [1]))))
    turns = [
        msgspec.structs.replace(turn, start=0, end=0, finish=FinishReason.STOP)
        for turn in plain.turns
    ]
    ids = b"\x01\0\0\0" * 3
    sampled = msgspec.structs.replace(
        plain, turns=tuple(turns), token_ids=ids, loss_mask=b"\0\0\0", logprobs=bytes(12)
    )
    with Store.open(tmp_path / "run", settings={}) as store:
        store.seal(0, 0, [sampled])
    (found,) = taken(config(str(tmp_path / "run"))).trajectories
    assert (found.token_ids, found.loss_mask, found.logprobs) == (b"", b"", b"")
    assert {turn.finish for turn in found.turns} == {FinishReason.SCRIPTED}


def test_replay_gives_what_this_environment_answers(expert_file: ExpertFile) -> None:
    path = expert_file("experts.json", GRID, [1, 2])
    items = json.loads(Path(path).read_text())
    items[0]["conversations"][0]["value"] = "seen through other eyes"
    items[1]["conversations"] = [*items[1]["conversations"][:1], {"from": "gpt", "value": "up"}]
    Path(path).write_text(json.dumps(items))
    found = taken(config(path, experts={"replay": True}))
    assert found.record.left_out == {"not_replayed": 1}
    (expert,) = found.trajectories
    session = resolve(GRID).make()
    assert expert.turns[0].observation == session.reset(resolve(GRID).numbered([1])[0], 0)
    assert expert.reward == sum(turn.reward for turn in expert.turns) == 1.0


@pytest.mark.parametrize(
    ("learner", "replays"),
    [
        ({"algorithm": "agent_evol"}, False),
        ({"algorithm": "rft"}, False),
        ({"algorithm": "eto", "self_play": True}, False),
        ({"algorithm": "dpo"}, False),
        ({"algorithm": "grpo"}, False),
        ({"algorithm": "eto"}, True),
        ({"algorithm": "eto", "contrast": "step"}, True),
        ({"algorithm": "dpo", "pairing": "expert"}, True),
    ],
)
def test_who_compares_with_experts_has_them_played_again(
    expert_file: ExpertFile, learner: dict[str, Any], replays: bool
) -> None:
    path = expert_file("experts.json", GRID, [1])
    items = json.loads(Path(path).read_text())
    items[0]["conversations"][1]["value"] = "dig"  # solves nothing
    Path(path).write_text(json.dumps(items))
    settings = config(path, learner=learner)
    if replays:
        assert "their actions do not solve these tasks" in refusal(settings)
    else:
        assert len(taken(settings).trajectories) == 1


def test_branches_go_on_behind_one_expert_of_a_task(expert_file: ExpertFile) -> None:
    path = expert_file("experts.json", GRID, [1, 2, 1])
    found = taken(config(path, learner={"algorithm": "eto", "contrast": "step"}))
    assert [t.task_id for t in found.trajectories] == ["maze-grid_1", "maze-grid_2"]
    assert found.record.left_out == {"same_task": 1}


def test_what_brings_no_expert_says_why_and_what_to_do(
    expert_file: ExpertFile, tmp_path: Path
) -> None:
    other = refusal(config(expert_file("a.json", "maze-v1", [1, 2])))
    assert "none can be an expert (2 other_environment): they are of maze; set" in other
    assert "rollwave data convert FILE OUT --to store --env" in other
    evaluated = refusal(config(expert_file("b.json", GRID, [4000])))
    assert "(1 evaluation): their tasks are in 'dev' and 'test'" in evaluated
    split = refusal(config(expert_file("c.json", GRID, [5500])))
    assert "outside the split 'train': set experts.split" in split
    failed = refusal(config(expert_file("d.json", GRID, [1], success=0)))
    assert "(1 no_success): only successes are cloned" in failed
    late = refusal(config(expert_file("e.json", GRID, [1]), experts={"first": 1}))
    assert "(1 over_tasks): lower experts.first" in late
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "folder").mkdir()
    for name, complaint in {
        "missing.json": "cannot read .*missing.json: No such file",
        "empty.json": "holds no records",
        "folder": "neither a run directory",
    }.items():
        with pytest.raises(BadDataFile, match=complaint):
            taken(config(str(tmp_path / name)))
    (tmp_path / "bad.json").write_text('[{"item_id": "maze-grid_1", "conversations": 3}]')
    with pytest.raises(BadDataFile, match="item 0 is not in the format agenttraj"):
        taken(config(str(tmp_path / "bad.json")))


def test_words_that_a_closed_vocabulary_lacks_are_named(
    expert_file: ExpertFile, tmp_path: Path
) -> None:
    words = expert_file("a.json", GRID, [1])
    assert taken(config(words, model={"tiny": {}})).record.kept == 1
    items = json.loads(Path(words).read_text())
    items[0]["conversations"][1]["value"] += " Hooray"
    Path(words).write_text(json.dumps(items))
    complaint = refusal(config(words, model={"tiny": {}}))
    assert (
        "whole words, and the experts of experts.path use 1 others, such as 'Hooray'" in complaint
    )
    model = tmp_path / "model"
    model.mkdir()
    vocabulary = {"[UNK]": 0, "goal": 1}
    (model / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "WordLevel", "vocab": vocabulary}})
    )
    assert "the model knows 2 whole words" in refusal(config(words, model={"path": str(model)}))
    (model / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {}}}))
    assert taken(config(words, model={"path": str(model)})).record.kept == 1


def test_nobody_waits_for_a_reading_that_was_given_up(expert_file: ExpertFile) -> None:
    settings = config(expert_file("a.json", GRID, [1]))
    with pytest.raises(GivenUp):
        read_experts(settings, curriculum(settings), lambda: True)


def test_a_digest_is_of_content_and_names_not_of_places(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "a").write_bytes(b"x")
    assert digest(one) == digest(other)
    (other / "a").rename(other / "b")
    assert digest(one) != digest(other)
    # Of a run only what is sealed counts: it may be going on.
    for name in ("run.json", "journal.msgpack"):
        (one / name).write_bytes(b"")
    (one / "waves").mkdir()
    before = digest(one)
    (one / "journal.msgpack").write_bytes(b"more")
    assert digest(one) == before
    (one / "waves" / "wave-0000.parquet").write_bytes(b"1")
    assert digest(one) != before
    with pytest.raises(BadDataFile, match="cannot read"):
        digest(tmp_path / "none")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(["maze-grid", "lmrlgym_maze", "babyai"]),
            st.sampled_from([0, 1, 3999, 4000, 4999, 5500, 9000, 999_999_999]),
            st.sampled_from([0.0, 1.0]),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_whatever_a_file_holds_adds_up_and_nothing_evaluated_passes(
    tmp_path: Path, rows: list[tuple[str, int, float]]
) -> None:
    talk = [{"from": "human", "value": "goal"}, {"from": "gpt", "value": "up"}]
    items = [
        {"item_id": f"{env}_{n}", "conversations": talk, "reward": reward}
        for env, n, reward in rows
    ]
    path = tmp_path / "experts.json"
    path.write_text(json.dumps(items))
    asked = config(str(path))
    trained = resolve(GRID).splits["train"]
    everything = {n for members in resolve(GRID).splits.values() for n in members}
    if not any(
        env == "maze-grid" and reward and (n in trained or n not in everything)
        for env, n, reward in rows
    ):
        assert refusal(asked).startswith(f"of {len(rows)} trajectories")
        return
    found = taken(asked)
    record, spec = found.record, resolve(GRID)
    assert record.read == len(rows) == record.kept + sum(record.left_out.values())
    assert len({t.id for t in found.trajectories}) == record.kept
    evaluated = {f"maze-grid_{n}" for split in ("dev", "test") for n in spec.splits[split]}
    assert not evaluated & {t.task_id for t in found.trajectories}
    named = Counter(t.split for t in found.trajectories)
    assert set(named) <= {"train", ""}


@pytest.mark.parametrize(
    ("name", "env", "kept", "left_out"),
    [
        # Its numbers are of another order: by number others would pass than by goal.
        ("textcraft", "textcraft-v1", 118, {"evaluation": 52, "other_split": 9}),
        ("maze", "maze-v1", 108, {}),
        ("babyai", "babyai-v1", 383, {}),
    ],
)
def test_published_files_bring_experts(
    name: str, env: str, kept: int, left_out: dict[str, int]
) -> None:
    source = PUBLISHED / f"{name}.json.gz"
    if not source.exists():
        pytest.skip(f"the published trajectories are not at {source}")
    found = taken(config(str(source), env))
    assert (found.record.kept, found.record.left_out) == (kept, left_out)
    assert "Instruction:" not in "".join(turn.observation for turn in _turns(found.trajectories))


def test_published_textcraft_solves_the_tasks_here() -> None:
    source = PUBLISHED / "textcraft.json.gz"
    if not source.exists():
        pytest.skip(f"the published trajectories are not at {source}")
    found = taken(config(str(source), "textcraft-v1", experts={"replay": True}))
    assert found.record.kept == 118
    assert "not_replayed" not in found.record.left_out


def _turns(trajectories: tuple[Trajectory, ...]) -> list[Any]:
    return [turn for t in trajectories for turn in t.turns]
