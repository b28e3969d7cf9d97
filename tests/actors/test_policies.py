"""Token in, token out: what the model policy asks for, what it keeps, and what it refuses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.actors.policies import (
    Act,
    ContextFull,
    ExpertPolicy,
    ModelPolicy,
    RandomPolicy,
)
from rollwave.actors.protocol import Completion, Generate, Sampling
from rollwave.engine.codec import pack_floats, pack_tokens, unpack_floats, unpack_tokens
from rollwave.engine.errors import BackendError, EnvironmentFault
from rollwave.engine.ref import ActorRef
from rollwave.engine.system import ActorSystem, ChildSpec
from rollwave.engine.testing import EventLog, MessageFaults, ProbeActor, run_simulated
from rollwave.engine.trajectory import ChatMessage, FinishReason
from rollwave.envs.formats import get_format
from rollwave.envs.hosting import _Inline
from rollwave.envs.registry import resolve

CLOSER, USER, AGENT = 256, 257, 258
PROMPT = (ChatMessage("system", "Go."), ChatMessage("user", "?"), ChatMessage("assistant", "!"))


class ByteRenderer:
    """One token a byte, and one for each turn of speech."""

    def opening(self, messages: Sequence[ChatMessage]) -> list[int]:
        ids: list[int] = []
        for message in messages:
            ids += [USER, *message.text.encode(), CLOSER]
        return [*ids, AGENT]

    def following(self, observation: str, *, closed: bool) -> list[int]:
        return [*([] if closed else [CLOSER]), USER, *observation.encode(), CLOSER, AGENT]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < CLOSER).decode("utf-8", "replace")


@dataclass
class Model:
    """What an inference actor answers, turn by turn, and what it was asked."""

    completions: list[Completion] = field(default_factory=list)
    requests: list[Generate] = field(default_factory=list)

    def says(
        self,
        ids: Sequence[int],
        *,
        text: str = "",
        finish: FinishReason = FinishReason.STOP,
        logprobs: Sequence[float] | None = None,
        version: int = 0,
    ) -> Model:
        drawn = pack_floats([-0.5 - i for i in range(len(ids))] if logprobs is None else logprobs)
        self.completions.append(Completion("", text, pack_tokens(ids), drawn, finish, version))
        return self

    def answer(self, request: Generate) -> Completion:
        self.requests.append(request)
        return self.completions[len(self.requests) - 1]


def with_model(
    model: Model,
    scenario: Callable[[Callable[..., ModelPolicy]], Awaitable[None]],
    faults: MessageFaults | None = None,
) -> None:
    """Run a scenario that is given a maker of model policies in front of that model."""

    async def main() -> None:
        async with ActorSystem() as system:
            probe = ProbeActor.of(Generate)
            answers = {Generate: model.answer}
            spec = ChildSpec("inference", lambda: probe(EventLog(), answers=answers, faults=faults))
            inference: ActorRef = await system.start(spec)

            def make(
                renderer: ByteRenderer | None = None, context: int = 0, max_tokens: int = 50
            ) -> ModelPolicy:
                policy = ModelPolicy(inference, Sampling(0.7, max_tokens), renderer, context)
                policy.open(PROMPT, "w0/maze_1/2", 77)
                return policy

            await scenario(make)

    run_simulated(main)


turns = st.lists(
    st.tuples(
        st.text(max_size=8),
        st.lists(st.integers(0, 255), max_size=6),
        st.booleans(),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=6,
)


@given(turns)
@settings(max_examples=60, deadline=None)
def test_tokens_are_kept_as_sampled_and_each_prompt_is_a_prefix_of_the_next(
    said: list[tuple[str, list[int], bool, int]],
) -> None:
    model = Model()
    for _, ids, closes, version in said:
        closed = [*ids, CLOSER] if closes else ids
        finish = FinishReason.STOP if closes else FinishReason.LENGTH
        model.says(closed, finish=finish, version=version)
    renderer = ByteRenderer()
    acts: list[Act] = []
    kept: list[tuple[bytes, bytes, bytes]] = []

    async def scenario(make: Callable[..., ModelPolicy]) -> None:
        policy = make(renderer)
        for number, (observation, *_) in enumerate(said):
            acts.append(await policy.act(observation, number))
        kept.append(policy.tokens())

    with_model(model, scenario)
    token_ids, mask, logprobs = kept[0]
    ids, drawn = list(unpack_tokens(token_ids)), list(unpack_floats(logprobs))
    expected = renderer.opening([*PROMPT, ChatMessage("user", said[0][0])])
    for number, (act, request) in enumerate(zip(acts, model.requests, strict=True)):
        sampled = list(unpack_tokens(model.completions[number].token_ids))
        assert list(unpack_tokens(request.prompt_ids)) == expected == ids[: act.start]
        assert ids[act.start : act.end] == sampled
        assert drawn[act.start : act.end] == [-0.5 - i for i in range(len(sampled))]
        assert set(mask[act.start : act.end]) <= {1}
        assert act.policy_version == said[number][3]
        assert act.completion == renderer.decode(sampled)
        expected = expected + sampled
        if number + 1 < len(said):
            # A closer that was not sampled is ours: mask 0.
            expected += renderer.following(said[number + 1][0], closed=said[number][2])
    assert ids == expected
    assert mask.count(1) == sum(act.end - act.start for act in acts)
    assert all(p == 0.0 for p, m in zip(drawn, mask, strict=True) if not m)


def test_a_server_of_messages_gets_the_whole_conversation_and_no_tokens() -> None:
    model = Model().says([], text="one").says([], text="two")

    async def scenario(make: Callable[..., ModelPolicy]) -> None:
        policy = make()
        assert (await policy.act("first", 0)).completion == "one"
        assert await policy.act("second", 1) == Act("two", FinishReason.STOP)
        assert policy.tokens() == (b"", b"", b"")

    with_model(model, scenario)
    assert [r.request_id for r in model.requests] == ["w0/maze_1/2/0", "w0/maze_1/2/1"]
    assert [m.text for m in model.requests[1].messages] == [
        "Go.",
        "?",
        "!",
        "first",
        "one",
        "second",
    ]
    assert model.requests[1].messages[4].loss is True
    assert model.requests[0].prompt_ids == b""
    assert model.requests[0].seed != model.requests[1].seed


def test_a_completion_never_outgrows_the_context_and_a_full_one_ends_the_episode() -> None:
    opening = len(ByteRenderer().opening([*PROMPT, ChatMessage("user", "here")]))
    model = Model().says([65] * 10, finish=FinishReason.LENGTH)

    async def scenario(make: Callable[..., ModelPolicy]) -> None:
        policy = make(ByteRenderer(), context=opening + 12, max_tokens=50)
        await policy.act("here", 0)
        with pytest.raises(ContextFull):
            await policy.act("too much", 1)

    with_model(model, scenario)
    (request,) = model.requests
    assert request.sampling == Sampling(0.7, 12)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (Model().says([1, 2], logprobs=[-1.0]), "2 tokens with 1 log-probs"),
        (Model().says([1], logprobs=[float("nan")]), "no finite number"),
        (Model().says([1], logprobs=[float("-inf")]), "no finite number"),
        (Model().says([], text="words without tokens"), "text without its tokens"),
    ],
)
def test_what_could_not_be_learned_from_is_refused(model: Model, complaint: str) -> None:
    async def scenario(make: Callable[..., ModelPolicy]) -> None:
        policy = make(ByteRenderer())
        with pytest.raises(BackendError, match=complaint):
            await policy.act("here", 0)

    with_model(model, scenario)


def test_a_restart_of_inference_is_asked_again_with_the_same_seed() -> None:
    model = Model().says([65, CLOSER])
    faults = MessageFaults(at={0: "raise", 1: "raise"})

    async def scenario(make: Callable[..., ModelPolicy]) -> None:
        act = await make(ByteRenderer()).act("here", 0)
        assert act.completion == "A"

    with_model(model, scenario, faults)
    assert faults.count == 3
    assert len(model.requests) == 1


# -- without a model ------------------------------------------------------------------


def test_the_random_policy_depends_on_its_seed_and_turn_alone() -> None:
    spec = resolve("maze-grid-v1?style=terse")

    async def chosen(seed: int) -> list[str]:
        environment = spec.make()
        environment.reset(spec.tasks("train", limit=1)[0], 0)
        policy = RandomPolicy(_Inline(environment), get_format("raw"))
        policy.open((), "e", seed)
        return [(await policy.act("", turn)).completion for turn in range(8)]

    first = run_simulated(chosen, 5)
    assert first == run_simulated(chosen, 5, seed=9)
    assert first != run_simulated(chosen, 6)
    assert len(set(first)) > 1


def test_an_environment_without_actions_or_expert_is_at_fault() -> None:
    environment = resolve("maze-grid-v1?style=terse").make()

    class Mute(type(environment)):  # type: ignore[misc]
        def available_actions(self) -> Sequence[str]:
            return ()

        def expert(self) -> str | None:
            return None

    async def act(kind: type[ExpertPolicy | RandomPolicy]) -> None:
        await kind(_Inline(Mute.__new__(Mute)), get_format("raw")).act("", 0)

    for kind, complaint in ((RandomPolicy, "no available action"), (ExpertPolicy, "no action")):
        with pytest.raises(EnvironmentFault, match=complaint):
            run_simulated(act, kind)
