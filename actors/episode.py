"""One episode: observation → completion → action → step, until an outcome.

    order ─▶ open, or rebuild from recorded turns ─▶ turn, turn, … ─▶ close ─▶ trajectory

Invariants:

* exactly one outcome: whatever the environment, the backend or a cancellation does,
  `record` gives one trajectory;
* a fault is never a reward;
* one deadline a turn covers inference and environment together, and names the
  stage that was late; making, resetting and closing the environment have the same;
* an episode that had begun before a crash goes on behind its recorded turns, with the
  same seeds, if the environment answers them as it did; else it begins anew, and says so;
* an episode that goes on behind another's turns never begins anew: it is a fault then.

This is the boundary where foreign exceptions become faults. Not here: who acts
(`policies`), what an action looks like (`envs.formats`), where the environment runs
(`envs.hosting`), and to whom the record is told (`session`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from ..engine.clock import rolling_deadline
from ..engine.errors import ActorDead, BadSample, EnvironmentFault, FaultKind, classify
from ..engine.trajectory import Fault, FinishReason, Outcome, Trajectory, Turn
from ..envs.answers import require_result, require_text
from ..envs.base import EnvSpec, StepResult
from ..envs.formats import ActionFormat
from ..envs.hosting import Host, Hosted
from .policies import ContextFull, Policy
from .protocol import EpisodeEnded, RunEpisode, TurnTaken
from .turnlog import TurnLog

_REWARD_SLACK: Final = 1e-6
"""Room for float sums around the declared reward range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """What all sessions of a rollout share."""

    spec: EnvSpec
    host: Host
    """Opens its sessions."""
    action_format: ActionFormat
    policy_name: str
    """Written into the trajectories: a model directory or URL, "expert" or "random"."""
    make_policy: Callable[[Hosted], Policy]
    temperature: float = 0.0
    turn_limit: int = 0
    """0 takes the environment's own."""
    turn_seconds: float = 120.0
    """Deadline of one turn: completion and environment step together."""
    episode_seconds: float = math.inf
    """Deadline of the whole episode."""
    turn_log: TurnLog | None = None
    """Keeps the turns of live episodes, so that a crash does not cost them."""
    live: dict[str, rolling_deadline] = field(default_factory=dict)
    """The deadlines of live episodes by id, for whoever wants to know what is stuck."""


class Episode:
    """The live state of one episode; `record` turns it into a trajectory."""

    def __init__(self, settings: SessionSettings, order: RunEpisode) -> None:
        self._settings = settings
        self._order = order
        self._environment: Hosted | None = None
        self._policy: Policy | None = None
        self._turns: list[Turn] = []
        self._number = 0
        self._observation = ""
        self._reward = 0.0
        self._outcome = Outcome.CANCELLED
        self._truncation = ""
        self._fault: Fault | None = None
        self._stage = FaultKind.ENVIRONMENT
        self._resumed = 0
        self._restarted = ""
        self._now = trio.lowlevel.current_clock().current_time
        self._started = self._now()

    async def play(self) -> None:
        """Run to an outcome. Only cancellation escapes."""
        try:
            with rolling_deadline(
                f"episode {self._order.id}", self._settings.episode_seconds
            ) as limit:
                self._settings.live[self._order.id] = limit
                await self._run(limit)
                await self._close(limit)
        except ActorDead:
            # Who answers is gone for good, so the engine is ending: the episode is cancelled
            # with it, and the next run plays it. A fault would be kept as its result.
            self._outcome = Outcome.CANCELLED
        except (Exception, SystemExit) as error:  # noqa: BLE001 (the boundary: faults become data)
            # SystemExit too: worlds written as scripts call sys.exit.
            kind, text = classify(error, unknown=self._stage)
            self._outcome = Outcome.FAULT
            self._fault = Fault(kind, text, self._number)
        finally:
            self._settings.live.pop(self._order.id, None)
            if self._environment is not None:
                self._environment.abandon()

    async def _run(self, limit: rolling_deadline) -> None:
        settings, order = self._settings, self._order
        turn_limit = settings.turn_limit or settings.spec.turn_limit
        result = await self._begin(limit)
        environment, policy = self._environment, self._policy
        assert environment is not None  # `_begin` opened both
        assert policy is not None
        done = result is not None and result.done  # it crashed after its last turn
        now = self._now()
        while not done and len(self._turns) < turn_limit:
            number = len(self._turns)
            limit.stage(f"turn {number} of {order.id}", settings.turn_seconds, now)
            try:
                result, now = await self._turn(environment, policy, number, now)
            except ContextFull:
                self._truncation = "tokens"
                break
            done = result.done
        self._require_range()
        if not self._truncation:
            assert result is not None  # a turn limit is at least 1
            self._truncation = _truncation(result)
        if self._truncation:
            self._outcome = Outcome.TRUNCATED
        else:
            assert result is not None
            self._outcome = Outcome.SUCCESS if result.success else Outcome.FAILURE

    async def _begin(self, limit: rolling_deadline) -> StepResult | None:
        """Open environment and policy, where the episode was or at its start.

        Returns the answer to the last turn, if any was taken.
        """
        turns = self._order.turns
        if turns:
            try:
                return await self._resume(limit, turns)
            except (_Different, BadSample) as why:
                if self._order.opening:
                    raise EnvironmentFault(
                        f"the opening of {self._order.opening} turns cannot be rebuilt: {why}"
                    ) from why
                self._restarted = str(why)
                self._policy = None  # with whatever tokens it has taken over
                self._reward = 0.0
                if self._environment is not None:
                    await self._close(limit)
        await self._open(limit)
        return None

    async def _open(self, limit: rolling_deadline) -> None:
        settings, order = self._settings, self._order
        limit.stage(f"reset of {order.id}", settings.turn_seconds, self._now())
        environment = self._environment = await settings.host.open()
        self._observation = await environment.reset(order.task, order.environment_seed)
        require_text("reset", self._observation)
        policy = self._policy = settings.make_policy(environment)
        policy.open(settings.spec.prompt, order.id, order.seed)

    async def _resume(self, limit: rolling_deadline, turns: Sequence[TurnTaken]) -> StepResult:
        """Rebuild the episode as it was after these turns; gives the answer to the last."""
        if not self._settings.spec.deterministic:
            raise _Different("the environment is not deterministic")
        if turns[0].seed != self._order.seed and not self._order.opening:
            raise _Different("its recorded turns have another seed")
        await self._open(limit)
        assert self._policy is not None
        for taken in turns:
            name = f"replay of turn {taken.number} of {self._order.id}"
            limit.stage(name, self._settings.turn_seconds, self._now())
            result = await self._again(taken.turn, taken.number)
        # Turns and tokens in one step: who is stopped in the middle of a replay has neither.
        self._policy.resume(turns)
        self._turns = [taken.turn for taken in turns]
        self._resumed = 0 if self._order.opening else len(turns)
        return result

    async def _again(self, turn: Turn, number: int) -> StepResult:
        """Take a recorded turn in the environment; refuses another answer than it gave."""
        assert self._environment is not None
        await trio.lowlevel.checkpoint()  # inline worlds do not yield to others
        self._number = number
        if turn.observation != self._observation:
            raise _Different(f"turn {number} began with another observation")
        if turn.format_error:
            result = StepResult(self._settings.action_format.parse(turn.completion).error)
        else:
            result = require_result(await self._environment.step(turn.action))
        if result.reward != turn.reward:
            raise _Different(f"turn {number} earned {result.reward}, not {turn.reward}")
        self._observation = result.observation
        self._reward += result.reward
        return result

    async def _turn(
        self, environment: Hosted, policy: Policy, number: int, began: float
    ) -> tuple[StepResult, float]:
        """Play one turn that began then; returns the result and when it ended."""
        self._number = number
        self._stage = policy.blame
        act = await policy.act(self._observation, number)
        completed = self._now()
        self._stage = FaultKind.INTERNAL
        action, broken, result = "", False, None
        try:
            parsed = self._settings.action_format.parse(act.completion)
            if parsed.action is None:
                broken, result = True, StepResult(parsed.error)
            else:
                action = parsed.action
                self._stage = FaultKind.ENVIRONMENT
                result = require_result(await environment.step(action))
        finally:
            # Also where no result came: its tokens were sampled, and it may be what broke the
            # world.
            ended = trio.current_time()
            self._turns.append(
                Turn(
                    self._observation,
                    act.completion,
                    action,
                    float(result.reward) if result is not None else 0.0,
                    act.start,
                    act.end,
                    act.policy_version,
                    act.finish,
                    broken,
                    completed - began,
                    ended - completed,
                )
            )
            self._observation = result.observation if result is not None else ""
        self._reward += result.reward
        if self._settings.turn_log is not None:
            self._settings.turn_log.record(
                TurnTaken(
                    self._order.id, number, self._order.seed, self._turns[-1], *policy.added()
                )
            )
        return result, ended

    def _require_range(self) -> None:
        low, high = self._settings.spec.reward_range
        if not low - _REWARD_SLACK <= self._reward <= high + _REWARD_SLACK:
            raise EnvironmentFault(
                f"the episode's reward {self._reward} is outside [{low}, {high}]"
            )

    async def _close(self, limit: rolling_deadline) -> None:
        """Close the environment as part of the episode.

        The reward was earned before, but a world that cannot be closed is leaking: the
        episode counts as a fault, so that it is seen.
        """
        assert self._environment is not None  # the episode has an outcome
        self._stage = FaultKind.ENVIRONMENT
        limit.stage(f"close of {self._order.id}", self._settings.turn_seconds, self._now())
        await self._environment.close()
        self._environment = None

    def ended(self) -> EpisodeEnded:
        """The message to the collector."""
        return EpisodeEnded(self._order.rollout, self.record(), self._resumed, self._restarted)

    def record(self) -> Trajectory:
        """The trajectory as it stands: complete after `play`, else CANCELLED."""
        settings, order = self._settings, self._order
        ids, mask, logprobs = self._policy.tokens() if self._policy else (b"", b"", b"")
        earlier = self._turns[: self._resumed]
        acted = [turn for turn in self._turns if turn.finish is not FinishReason.SCRIPTED]
        versions = [turn.policy_version for turn in acted] or [0]
        outcome = self._outcome
        before = sum(turn.generate_seconds + turn.step_seconds for turn in earlier)
        return Trajectory(
            id=order.id,
            env=order.task.env,
            task_id=order.task.id,
            split=order.task.split,
            wave=order.wave,
            attempt=order.attempt,
            seed=order.seed,
            environment_seed=order.environment_seed,
            outcome=outcome,
            reward=self._reward if outcome.scored else None,
            terminated=outcome in (Outcome.SUCCESS, Outcome.FAILURE),
            truncation=self._truncation if outcome is Outcome.TRUNCATED else "",
            fault=self._fault if outcome is Outcome.FAULT else None,
            prompt=settings.spec.prompt,
            turns=tuple(self._turns),
            final_observation=self._observation if self._turns else "",
            token_ids=ids,
            loss_mask=mask,
            logprobs=logprobs,
            policy=settings.policy_name,
            versions=(min(versions), max(versions)),
            temperature=settings.temperature,
            started=self._started,
            seconds=self._now() - self._started + before,
        )


def _truncation(last: StepResult) -> str:
    """Which limit ended an episode whose last answer this is; empty if it ended itself."""
    if not last.done:
        return "turns"
    return "" if last.terminated else "environment"


class _Different(Exception):
    """The episode cannot be rebuilt: it has to begin anew."""
