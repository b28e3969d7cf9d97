"""Who acts in an episode: a model behind the inference actor, the expert, or chance.

A policy lives for one episode. It is given what the agent sees and returns what
the agent writes; the model policy also keeps the episode's tokens.

Invariant (token in, token out): the model policy only ever appends to its token
ids. Observations are encoded once, completions are kept exactly as sampled, and
the prompt of turn k is a prefix of the prompt of turn k+1.

Not here: stepping the environment and deciding outcomes (`session`).
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

import trio

from ..engine.codec import pack_mask, unpack_floats, unpack_tokens
from ..engine.errors import ActorRestarted, BackendError, BadSample, EnvironmentFault, FaultKind
from ..engine.ref import ActorRef
from ..engine.seeds import derive
from ..engine.trajectory import ChatMessage, FinishReason
from ..envs.answers import require_text
from ..envs.formats import ActionFormat
from ..envs.hosting import Hosted
from .protocol import Completion, Generate, Sampling, TurnTaken

_NOTHING: Final[tuple[array[int], array[float]]] = (array("I"), array("f"))


class Renderer(Protocol):
    """What a model policy needs of a chat template (`learners.model.chat.ChatRenderer`)."""

    def opening(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Token ids of the messages and the header of the agent's turn."""

    def following(self, observation: str, *, closed: bool) -> list[int]:
        """Token ids between two completions."""

    def completion(self, text: str) -> list[int]:
        """Token ids of what an expert wrote, closer included."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids, closer stripped."""


@dataclass(slots=True)
class Act:
    """What the agent wrote in one turn."""

    completion: str
    finish: FinishReason = FinishReason.SCRIPTED
    start: int = 0
    end: int = 0
    policy_version: int = 0


class ContextFull(Exception):
    """A signal to the session, not to a user: no room is left for another completion."""


class Policy(ABC):
    """Who acts, for one episode."""

    blame: ClassVar[FaultKind] = FaultKind.ENVIRONMENT
    """Whose fault an exception of no known class is while the policy acts."""

    def open(  # noqa: B027 (the default needs nothing)
        self, prompt: tuple[ChatMessage, ...], episode: str, seed: int
    ) -> None:
        """Begin the episode."""

    def resume(self, turns: Sequence[TurnTaken]) -> None:  # noqa: B027 (most remember nothing)
        """Take over what was written in these turns, before a crash. After `open`.

        Raises:
            BadSample: it cannot go on behind them.
        """

    @abstractmethod
    async def act(self, observation: str, turn: int) -> Act:
        """Write the completion of this turn."""

    def tokens(self) -> tuple[bytes, bytes, bytes]:
        """The episode's packed token ids, loss mask and log-probs; empty without a model."""
        return b"", b"", b""

    def added(self) -> tuple[bytes, bytes]:
        """Packed token ids and log-probs that the last turn added; empty without a model."""
        return b"", b""


class ExpertPolicy(Policy):
    """The environment's own expert, written in the action format."""

    def __init__(self, environment: Hosted, action_format: ActionFormat) -> None:
        self._environment = environment
        self._format = action_format

    async def act(self, observation: str, turn: int) -> Act:
        """Ask the environment's expert.

        Raises:
            EnvironmentFault: the environment has no expert, or it is at a loss here.
        """
        await trio.lowlevel.checkpoint()  # nothing else in such an episode yields to others
        action = await self._environment.expert()
        if action is None:
            raise EnvironmentFault("the environment's expert has no action from here")
        require_text("expert", action)
        return Act(self._format.render(f'The next step is "{action}".', action))


class RandomPolicy(Policy):
    """A uniformly random available action, seeded by the episode and the turn."""

    def __init__(self, environment: Hosted, action_format: ActionFormat) -> None:
        self._environment = environment
        self._format = action_format
        self._seed = 0

    def open(self, prompt: tuple[ChatMessage, ...], episode: str, seed: int) -> None:
        """Take the episode's seed."""
        self._seed = seed

    async def act(self, observation: str, turn: int) -> Act:
        """Choose among the available actions."""
        await trio.lowlevel.checkpoint()
        actions = await self._environment.available_actions()
        if not actions:
            raise EnvironmentFault("the environment lists no available action")
        choice = random.Random(derive(self._seed, "turn", turn)).choice(actions)  # noqa: S311
        require_text("available_actions", choice)
        return Act(self._format.render("I try something.", choice))


class ModelPolicy(Policy):
    """A model behind the inference actor, token in and token out.

    Without a renderer the backend takes messages as text (an HTTP server that
    renders the template itself); then no tokens are kept unless it returns them.
    """

    blame = FaultKind.BACKEND

    def __init__(
        self,
        inference: ActorRef,
        sampling: Sampling,
        renderer: Renderer | None,
        context: int = 0,
    ) -> None:
        """`context` is the model's context length in tokens; 0 = not known here."""
        self._inference = inference
        self._sampling = sampling
        self._renderer = renderer
        self._context = context
        self._messages: list[ChatMessage] = []
        self._ids: array[int] = array("I")
        self._logprobs: array[float] = array("f")
        self._mask = bytearray()
        self._before = 0  # tokens there were before this turn
        self._closed = True
        self._episode = ""
        self._turn_seeds = 0

    def open(self, prompt: tuple[ChatMessage, ...], episode: str, seed: int) -> None:
        """Begin with the environment's prompt."""
        self._messages = list(prompt)
        self._episode = episode
        self._turn_seeds = derive(seed, "turn")

    def resume(self, turns: Sequence[TurnTaken]) -> None:
        """Append what these turns added, token for token."""
        for taken in turns:
            turn = taken.turn
            if self._renderer is None:
                self._messages.append(ChatMessage("user", turn.observation))
                self._messages.append(ChatMessage("assistant", turn.completion, True))
            self._ids.frombytes(taken.token_ids)
            self._logprobs.frombytes(taken.logprobs)
            sampled = turn.end - turn.start
            if turn.start < len(self._mask) or turn.end != len(self._ids):
                raise BadSample(f"turn {taken.number} of {taken.episode} lacks its tokens")
            scripted = turn.finish is FinishReason.SCRIPTED  # an expert's: rendered, not sampled
            if sampled == 0 and self._renderer is not None and turn.completion and not scripted:
                raise BadSample(f"turn {taken.number} of {taken.episode} was kept as text alone")
            self._mask += bytes(turn.start - len(self._mask)) + b"\x01" * sampled
            self._closed = scripted or turn.finish is FinishReason.STOP

    async def act(self, observation: str, turn: int) -> Act:
        """Append the observation, ask for a completion, append what was sampled.

        Raises:
            ContextFull: the prompt leaves no room for a completion.
            BackendError, ActorError, DeadlineExceeded: no completion can be had.
        """
        completion = await self._ask(self._request(observation, turn))
        ids, logprobs = self._sampled(completion)
        if self._renderer is None:
            self._messages.append(ChatMessage("assistant", completion.text, True))
        start, sampled = len(self._ids), len(ids)
        self._ids.extend(ids)
        self._logprobs.extend(logprobs)
        self._mask += b"\x01" * sampled
        self._closed = completion.finish is FinishReason.STOP
        text = completion.text
        if self._renderer is not None and not text and sampled:
            text = self._renderer.decode(self._ids[start:])
        return Act(text, completion.finish, start, start + sampled, completion.policy_version)

    def _sampled(self, completion: Completion) -> tuple[array[int], array[float]]:
        """The sampled tokens and their log-probs; refuses what could not be learned from."""
        if not completion.token_ids and not completion.logprobs and self._renderer is None:
            return _NOTHING  # text in, text out
        ids = unpack_tokens(completion.token_ids)
        logprobs = unpack_floats(completion.logprobs)
        wrong = ""
        if len(logprobs) != len(ids):
            wrong = f"{len(ids)} tokens with {len(logprobs)} log-probs"
        elif not math.isfinite(sum(logprobs)):
            wrong = "a log-prob that is no finite number"
        elif self._renderer is not None and completion.text and not ids:
            wrong = "text without its tokens, which the next prompt needs"
        if wrong:
            raise BackendError(f"the backend answered {completion.request_id} with {wrong}")
        return ids, logprobs

    def _request(self, observation: str, turn: int) -> Generate:
        """The request of this turn; the observation joins the prompt here, once."""
        sampling = self._sampling
        self._before = len(self._ids)
        if self._renderer is None:
            self._messages.append(ChatMessage("user", observation))
            prompt, messages = b"", tuple(self._messages)
        else:
            if turn == 0:
                self._messages.append(ChatMessage("user", observation))
                new = self._renderer.opening(self._messages)
            else:
                new = self._renderer.following(observation, closed=self._closed)
            self._ids.extend(new)
            self._logprobs.extend([0.0] * len(new))
            self._mask += bytes(len(new))
            if self._context:
                room = self._context - len(self._ids)
                if room < 1:
                    raise ContextFull
                if room < sampling.max_tokens:
                    sampling = Sampling(sampling.temperature, room, sampling.top_p, sampling.stop)
            prompt, messages = self._ids.tobytes(), ()
        return Generate(
            f"{self._episode}/{turn}",
            prompt,
            messages,
            sampling,
            derive(self._turn_seeds, turn),
        )

    async def _ask(self, request: Generate) -> Completion:
        """Ask until an incarnation of the inference actor answers.

        The same request with the same seed is asked again, so a restart of the
        backend changes nothing in the episode. The turn's deadline ends it.
        """
        while True:
            try:
                return await self._inference.ask(request, Completion)
            except ActorRestarted:
                continue

    def tokens(self) -> tuple[bytes, bytes, bytes]:
        """Packed token ids, loss mask and log-probs so far."""
        return self._ids.tobytes(), pack_mask(self._mask), self._logprobs.tobytes()

    def added(self) -> tuple[bytes, bytes]:
        """Packed token ids and log-probs of the last turn, its observation's included."""
        return self._ids[self._before :].tobytes(), self._logprobs[self._before :].tobytes()
