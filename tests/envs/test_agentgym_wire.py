"""The shapes of AgentGym's wire, call by call, as its own clients send and read them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rollwave.engine.errors import ConfigError
from rollwave.envs.agentgym.dialects import DIALECTS, Dialect, dialect_for
from rollwave.envs.agentgym.server import Request, WireServer
from rollwave.envs.agentgym.sessions import Limits
from rollwave.envs.base import Environment, EnvSpec, StepResult, Task
from rollwave.envs.registry import resolve


class Countdown(Environment):
    """Task n is solved by the n-th action; each earns an equal part of 1."""

    def reset(self, task: Task, seed: int) -> str:
        if task.index > 9:
            raise ConfigError(f"tasks are 0 to 9, not {task.index}")
        self.left = task.index + 1
        self.share = 1 / self.left
        return f"Your task: {self.left} actions.\nBegin."

    def step(self, action: str) -> StepResult:
        self.left -= 1
        over = not self.left
        return StepResult(f"You said {action}.", self.share, over, success=over)

    def observation(self) -> str:
        return ""

    def available_actions(self) -> list[str]:
        return ["a b", "c d"]


def world(dialect: Dialect) -> EnvSpec:
    """A world that is served in that dialect."""
    name = dialect.world or dialect.name
    return EnvSpec(id=f"{name}-v1", make=Countdown, splits={"test": range(10)})


class Caller:
    """Calls a server as `requests` would, and insists on the status."""

    def __init__(self, wire: WireServer, prefix: str) -> None:
        self.wire = wire
        self.prefix = prefix

    async def post(self, path: str, body: object = None, status: int = 200) -> Any:
        raw = b"" if body is None else json.dumps(body).encode()
        reply = await self.wire.answer(Request(b"POST", (self.prefix + path).encode(), b"", raw))
        assert reply.status == status, reply.body
        return json.loads(reply.body)

    async def get(self, path: str, query: str = "", status: int = 200) -> Any:
        target = (self.prefix + path).encode()
        reply = await self.wire.answer(Request(b"GET", target, query.encode()))
        assert reply.status == status, reply.body
        return json.loads(reply.body)


def caller(spec: EnvSpec, prefix: str = "") -> Caller:
    return Caller(WireServer([spec]), prefix)


async def test_textcraft_speaks_as_its_server() -> None:
    call = caller(resolve("textcraft-v1"))
    assert await call.get("/") == "This is environment TextCraft."
    extra = {"minecraft_dir": "agentenv_textcraft/", "commands": None, "goal": None}
    made = await call.post("/create", extra)
    assert list(made) == ["id", "observation", "done", "reward"]
    assert (made["id"], made["done"], made["reward"]) == (0, False, 0)
    assert made["observation"].startswith("Crafting commands:\n")
    begun = await call.post("/reset", {"id": 0, "data_idx": 3})
    assert list(begun) == ["id", "observation", "done", "reward"]
    assert await call.get("/observation", "id=0") == begun["observation"]
    stepped = await call.post("/step", {"id": 0, "action": "inventory"})
    assert stepped == {
        "observation": "Inventory: You are not carrying anything.",
        "reward": 0,
        "done": False,
    }
    assert await call.get("/observation", "id=0") == stepped["observation"]
    assert await call.post("/close", {"id": 0}) is True
    assert await call.post("/close", {"id": 0}) is False


async def test_textcraft_counts_task_numbers_on_from_the_last() -> None:
    call = caller(resolve("textcraft-v1"))
    await call.post("/create", {})
    first = await call.post("/reset", {"id": 0, "data_idx": 5})
    again = await call.post("/reset", {"id": 0, "data_idx": 5 + 562})
    assert first == again
    assert await call.post("/reset", {"id": 0}) == await call.post(
        "/reset", {"id": 0, "data_idx": None}
    )


async def test_maze_gives_the_place_without_the_rules() -> None:
    call = caller(resolve("maze-v1"), "/maze")
    assert await call.post("/create") == {"id": 0}
    begun = await call.post("/reset", {"id": 0, "game": 3})
    assert list(begun) == ["observation"]
    assert begun["observation"].startswith("The goal is at position 8, 6.")
    stepped = await call.post("/step", {"id": 0, "action": "move up"})
    assert list(stepped) == ["observation", "reward", "done"]
    actions = await call.get("/available_actions", "id=0")
    assert actions == ["move up", "move down", "move left", "move right"]


async def test_wordle_lists_its_words_before_the_first_game() -> None:
    call = caller(resolve("wordle-v1?words=30"), "/wordle")
    assert await call.post("/create") == {"id": 0}
    words = await call.get("/filtered_vocab", "id=0")
    assert len(words) == 30
    assert {len(word) for word in words} == {5}
    begun = await call.post("/reset", {"id": 0, "seed": 7})
    assert begun == {"id": 0, "observation": "Let's start Wordle!"}
    stepped = await call.post("/step", {"id": 0, "action": " ".join(words[0])})
    assert list(stepped) == ["observation", "reward", "done"]


async def test_babyai_pays_a_score_that_adds_up() -> None:
    call = caller(world(DIALECTS["babyai"]))
    assert await call.post("/create") == {"id": 0}
    begun = await call.post("/reset", {"id": 0, "data_idx": 1})
    assert list(begun) == ["observation", "reward", "score", "deleted", "done"]
    await call.post("/step", {"id": 0, "action": "x"})
    last = await call.post("/step", {"id": 0, "action": "y"})
    assert last == {"observation": "You said y.", "reward": 0.5, "score": 1, "done": True}
    seen = await call.get("/observation", "id=0")
    assert list(seen) == ["observation", "reward", "score", "done", "deleted"]


async def test_sciworld_tells_the_task_apart_and_scores_in_hundredths() -> None:
    call = caller(world(DIALECTS["sciworld"]))
    await call.post("/create")
    begun = await call.post("/reset", {"id": 0, "data_idx": 4})
    assert begun["task_description"] + "\n" + begun["observation"] == (
        "Your task: 5 actions.\nBegin."
    )
    assert list(begun)[:4] == ["task_name", "var_num", "task_description", "observation"]
    assert begun["var_num"] == 4
    stepped = await call.post("/step", {"id": 0, "action": "x"})
    assert stepped["score"] == 20


async def test_alfworld_lists_the_commands_with_every_answer() -> None:
    call = caller(world(DIALECTS["alfworld"]))
    await call.post("/create")
    begun = await call.post("/reset", {"id": 0, "game": 0, "world_type": "Text"})
    assert list(begun) == ["id", "observation", "available_actions", "task_type"]
    stepped = await call.post("/step", {"id": 0, "action": "x"})
    assert stepped["available_actions"] == ["a b", "c d"]
    assert stepped["done"] is True


async def test_index_dialects_answer_bare_values() -> None:
    shop = caller(world(DIALECTS["webshop"]))
    assert await shop.post("/create") == 0
    assert await shop.post("/reset", {"env_idx": 0, "session_id": 0}) == [
        "Your task: 1 actions.\nBegin.",
        None,
    ]
    assert await shop.post("/step", {"env_idx": 0, "action": "search[x]"}) == {
        "state": "You said search[x].",
        "reward": 1.0,
        "done": True,
        "info": None,
    }
    tool = caller(world(DIALECTS["weather"]))
    assert await tool.post("/create", {"id": 0}) == 0
    assert await tool.post("/reset", {"env_idx": 0, "id": 1}) == "Your task: 2 actions.\nBegin."
    assert await tool.get("/observation", "env_idx=0") == "Your task: 2 actions.\nBegin."
    arena = caller(world(DIALECTS["webarena"]))
    assert await arena.post("/create") == {"env_idx": 0}
    begun = await arena.post("/reset", {"env_idx": 0, "seed": 0, "idx": 0})
    assert list(begun) == ["observation", "sites", "object"]
    stepped = await arena.post("/step", {"env_idx": 0, "action": "x"})
    assert stepped["terminated"] is True
    assert "done" not in stepped
    assert await arena.post("/close", {"env_idx": 0}) == {"closed": "closed"}


@pytest.mark.parametrize("name", DIALECTS)
async def test_every_dialect_plays_and_closes(name: str) -> None:
    dialect = DIALECTS[name]
    call = caller(world(dialect), dialect.prefix)
    made = await call.post("/create", {"id": 0, "surplus": [1]})
    key = dialect.id_field
    session = made if isinstance(made, int) else made[key]
    for index in (0, 1):
        await call.post("/reset", {key: session, dialect.task_field: index})
        await call.post("/step", {key: session, "action": "x"})
    assert await call.post("/close", {key: session})
    assert len(call.wire.sessions) == 0


@pytest.mark.parametrize("name", DIALECTS)
async def test_an_unusable_session_is_answered_as_the_dialect_does(name: str) -> None:
    dialect = DIALECTS[name]
    hidden = dialect.id_field == "id"
    call = caller(world(dialect), dialect.prefix)
    key = dialect.id_field
    body = {key: 7, "action": "x", dialect.task_field: 0} | {key: 7}
    for path in ("/step", "/reset"):
        answer = await call.post(path, body, 200 if hidden else 404)
        assert (answer["error"], answer["kind"]) == ("The id 7 is not valid.", "unknown")
    await call.get("/observation", f"{key}=7", 200 if hidden else 404)
    made = await call.post("/create", {})
    session = made if isinstance(made, int) else made[key]
    if "observation" not in dialect.created:
        answer = await call.post("/step", {key: session, "action": "x"}, 200 if hidden else 409)
        assert answer["kind"] == "not_reset"
    await call.post("/reset", {key: session, dialect.task_field: 0})
    await call.post("/step", {key: session, "action": "x"})
    answer = await call.post("/step", {key: session, "action": "x"}, 200 if hidden else 409)
    assert answer["error"] == f"The task with environment {session} has finished."
    if not dialect.wraps:
        answer = await call.post(
            "/reset", {key: session, dialect.task_field: 10}, 200 if hidden else 422
        )
        assert answer["kind"] == "task"
    await call.post("/close", {key: session})
    answer = await call.post(
        "/reset", {key: session, dialect.task_field: 0}, 200 if hidden else 404
    )
    assert answer["error"] == f"The task with environment {session} has been deleted."


async def test_a_wrong_body_is_named_and_has_the_status_of_fastapi() -> None:
    call = caller(resolve("textcraft-v1"))
    await call.post("/create", {})
    for body in ([], {"id": 0}, {"id": "0", "action": "x"}, {"id": 0, "action": 1}, {"id": 2**80}):
        answer = await call.post("/step", body, 422)
        assert answer["detail"][0]["msg"] == answer["error"]
    await call.post("/create", [], 422)
    await call.get("/observation", "", 422)
    await call.get("/observation", "id=0&id=0", 422)
    await call.get("/nowhere", "", 404)
    reply = await call.wire.answer(Request(b"GET", b"/step"))
    assert (reply.status, reply.headers) == (405, ((b"allow", b"POST"),))


async def test_several_worlds_have_a_path_each_and_share_no_session() -> None:
    wire = WireServer([resolve("maze-v1"), resolve("textcraft-v1")])
    maze, craft = Caller(wire, "/maze"), Caller(wire, "/textcraft")
    assert await maze.post("/create") == {"id": 0}
    assert (await craft.post("/create", {}))["id"] == 1
    answer = await craft.post("/step", {"id": 0, "action": "inventory"})
    assert answer["kind"] == "unknown"
    assert await craft.post("/close", {"id": 0}) is False
    await Caller(wire, "").post("/create", {}, 404)
    with pytest.raises(ConfigError, match="served as /maze"):
        WireServer([resolve("maze-v1"), resolve("maze-v1")])


async def test_a_world_without_a_dialect_of_its_own_speaks_the_plain_one() -> None:
    assert dialect_for("maze-grid-v1?size=4").name == "maze-grid"
    call = caller(resolve("maze-grid-v1?size=4"))
    assert await call.post("/create") == {"id": 0}
    begun = await call.post("/reset", {"id": 0, "data_idx": 0})
    assert list(begun) == ["id", "observation", "done", "reward"]


async def test_ids_cannot_be_guessed_where_that_is_asked_for() -> None:
    wire = WireServer([resolve("maze-v1")], limits=Limits(random_ids=True))
    call = Caller(wire, "/maze")
    ids = {(await call.post("/create"))["id"] for _ in range(20)}
    assert len(ids) == 20
    assert max(ids) > 1_000_000
    assert max(ids) < 2**53  # exact in every reader of JSON


async def test_a_whole_number_may_be_written_with_a_point() -> None:
    call = caller(resolve("textcraft-v1"))
    await call.post("/create", {})
    assert "Goal" in (await call.post("/reset", {"id": 0.0, "data_idx": 3.0}))["observation"]
    assert (
        "Inventory" in (await call.post("/step", {"id": 0.0, "action": "inventory"}))["observation"]
    )
    for wrong in (0.5, 1e300, "0", True, None):
        answer = await call.post(
            "/step", {"id": wrong, "action": "x"}, 200 if wrong == 1e300 else 422
        )
        assert answer["kind"] == ("unknown" if wrong == 1e300 else "malformed")
    assert await call.post("/close", {"id": 0.0}) is True
