"""One episode: observation → completion → action → step, until an outcome.

A session actor is made for one episode, handed one `RunEpisode`, tells the
collector one `EpisodeEnded`, and stops when that is accepted. It is a temporary
child: nobody restarts it, because the episode's record says what happened instead.

Invariants:

* exactly one outcome: whatever the environment, the backend or a cancellation
  does, one trajectory leaves the session (if the session cannot tell it, its
  dispatcher does);
* a fault is never a reward;
* one deadline a turn covers inference and environment together, and names the
  stage that was late; making, resetting and closing the environment have the same.

This is the boundary where foreign exceptions become faults. Not here: who acts
(`policies`), what an action looks like (`envs.formats`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar

import trio

from ..engine.actor import Actor
from ..engine.clock import rolling_deadline
from ..engine.errors import ActorError, ActorRestarted, EnvironmentFault, FaultKind, classify
from ..engine.ref import ActorRef
from ..engine.trajectory import Fault, Outcome, Trajectory, Turn
from ..envs.base import Environment, EnvSpec, StepResult
from ..envs.formats import ActionFormat
from .policies import ContextFull, Policy, require_text
from .protocol import Accepted, EpisodeEnded, RunEpisode

T = TypeVar("T")
_REWARD_SLACK: Final = 1e-6
"""Room for float sums around the declared reward range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """What all sessions of a rollout share."""

    spec: EnvSpec
    action_format: ActionFormat
    policy_name: str
    """Written into the trajectories: a model directory or URL, "expert" or "random"."""
    make_policy: Callable[[Environment], Policy]
    temperature: float = 0.0
    turn_limit: int = 0
    """0 takes the environment's own."""
    turn_seconds: float = 120.0
    """Deadline of one turn: completion and environment step together."""
    episode_seconds: float = math.inf
    """Deadline of the whole episode."""
    threads: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(math.inf))
    """Of environments that run in threads. The permits bound them already; trio's default
    limiter would let the few threads of worlds that hang for ever starve all others."""


class Session(Actor):
    """Plays one episode and tells the collector."""

    receives = (RunEpisode,)
    mailbox_capacity = 1

    def __init__(self, settings: SessionSettings, collector: ActorRef) -> None:
        self._settings = settings
        self._collector = collector

    async def receive(self, message: RunEpisode) -> None:  # type: ignore[override]
        """Play, record, tell, stop."""
        episode = Episode(self._settings, message)
        try:
            await episode.play()
            await self._report(EpisodeEnded(message.rollout, episode.record()))
        except trio.Cancelled:
            # If the mailbox is full or gone, our dispatcher tells the collector instead.
            with suppress(ActorError):
                self._collector.tell_nowait(EpisodeEnded(message.rollout, episode.record()))
            raise
        self.stop()

    async def _report(self, record: EpisodeEnded) -> None:
        """Tell the collector until an incarnation of it has accepted the record."""
        while True:
            try:
                await self._collector.ask(record, Accepted)
            except ActorRestarted:
                continue
            return


class Episode:
    """The live state of one episode; `record` turns it into a trajectory."""

    def __init__(self, settings: SessionSettings, order: RunEpisode) -> None:
        self._settings = settings
        self._order = order
        self._inline = settings.spec.cost == "inline"
        self._environment: Environment | None = None
        self._over = False
        self._policy: Policy | None = None
        self._turns: list[Turn] = []
        self._number = 0
        self._observation = ""
        self._reward = 0.0
        self._outcome = Outcome.CANCELLED
        self._truncation = ""
        self._fault: Fault | None = None
        self._stage = FaultKind.ENVIRONMENT
        self._now = trio.lowlevel.current_clock().current_time
        self._started = self._now()

    async def play(self) -> None:
        """Run to an outcome. Only cancellation escapes."""
        try:
            with rolling_deadline(
                f"episode {self._order.id}", self._settings.episode_seconds
            ) as limit:
                await self._run(limit)
                await self._close(limit)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (the boundary: faults become data)
            # SystemExit too: worlds written as scripts call sys.exit.
            kind, text = classify(error, unknown=self._stage)
            self._outcome = Outcome.FAULT
            self._fault = Fault(kind, text, self._number)
        finally:
            self._abandon()

    async def _run(self, limit: rolling_deadline) -> None:
        settings, order = self._settings, self._order
        turn_limit = settings.turn_limit or settings.spec.turn_limit
        limit.stage(f"reset of {order.id}", settings.turn_seconds, self._started)
        environment = await self._call(self._make)
        self._observation = await self._call(environment.reset, order.task, order.environment_seed)
        require_text("reset", self._observation)
        policy = self._policy = settings.make_policy(environment)
        policy.open(settings.spec.prompt, order.id, order.seed)
        now = self._now()
        for number in range(turn_limit):
            limit.stage(f"turn {number} of {order.id}", settings.turn_seconds, now)
            try:
                result, now = await self._turn(environment, policy, number, now)
            except ContextFull:
                self._truncation = "tokens"
                break
            if result.done:
                self._truncation = "environment" if not result.terminated else ""
                break
        else:
            self._truncation = "turns"
        self._require_range()
        if self._truncation:
            self._outcome = Outcome.TRUNCATED
        else:
            self._outcome = Outcome.SUCCESS if result.success else Outcome.FAILURE

    async def _turn(
        self, environment: Environment, policy: Policy, number: int, began: float
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
                if self._inline:
                    result = self._checked(environment.step(action))
                else:
                    result = self._checked(await self._call(environment.step, action))
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
        return result, ended

    def _checked(self, result: StepResult) -> StepResult:
        """Refuse garbage before it becomes a reward."""
        if type(result) is not StepResult:
            raise EnvironmentFault(f"step answered {type(result).__name__}, not a StepResult")
        require_text("step", result.observation)
        if not isinstance(result.reward, int | float) or not math.isfinite(result.reward):
            raise EnvironmentFault(f"step answered the reward {result.reward!r}")
        for flag in (result.terminated, result.truncated, result.success):
            if type(flag) is not bool:
                raise EnvironmentFault(f"step answered the flag {flag!r}, not a bool")
        return result

    def _require_range(self) -> None:
        low, high = self._settings.spec.reward_range
        if not low - _REWARD_SLACK <= self._reward <= high + _REWARD_SLACK:
            raise EnvironmentFault(
                f"the episode's reward {self._reward} is outside [{low}, {high}]"
            )

    def _make(self) -> Environment:
        """Make the environment; if that was so late that nobody wants it, close it."""
        environment = self._environment = self._settings.spec.make()
        if self._over:
            environment.close()
        return environment

    async def _call(self, function: Callable[..., T], *arguments: object) -> T:
        """Call the environment where its cost class says: here, or in a thread.

        A call that is late in a thread is abandoned together with its environment,
        which nobody uses again.
        """
        if self._inline:
            return function(*arguments)
        return await trio.to_thread.run_sync(
            function, *arguments, abandon_on_cancel=True, limiter=self._settings.threads
        )

    async def _close(self, limit: rolling_deadline) -> None:
        """Close the environment as part of the episode.

        The reward was earned before, but a world that cannot be closed is leaking: the
        episode counts as a fault, so that it is seen.
        """
        assert self._environment is not None  # the episode has an outcome
        self._stage = FaultKind.ENVIRONMENT
        limit.stage(f"close of {self._order.id}", self._settings.turn_seconds, self._now())
        await self._call(self._environment.close)
        self._environment = None

    def _abandon(self) -> None:
        """Close an environment that is left behind, without waiting for it.

        A thread may still be in it, or on its way out of `make`: `close` is what
        releases the one, and `_make` sees to the other.
        """
        self._over = True
        environment, self._environment = self._environment, None
        if environment is None:
            return
        if self._inline:
            with suppress(Exception):  # the record says already what went wrong
                environment.close()
        else:
            trio.lowlevel.start_thread_soon(environment.close, lambda _: None, "close")

    def record(self) -> Trajectory:
        """The trajectory as it stands: complete after `play`, else CANCELLED."""
        settings, order = self._settings, self._order
        ids, mask, logprobs = self._policy.tokens() if self._policy else (b"", b"", b"")
        versions = [turn.policy_version for turn in self._turns] or [0]
        outcome = self._outcome
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
            seconds=self._now() - self._started,
        )
