"""The loop that most trainers of agents use: all sessions step in unison, a fault is reward 0.

    reset all ─▶ [ generate for all that are not done ─▶ step all of them ]* ─▶ scores

It does what AgentGym-RL's rollout does (commit 82402a9,
`verl/workers/rollout/agent_vllm_rollout/vllm_rollout.py`, `generate_sequences`): each round
generates for every live session in one call, steps all their environments in threads and
waits for the last; whatever exception a step raises sets the score to 0 and the session to
done, and both go to the trainer like any other; a time-out of a reset does the same.

Where that code would do worse, this loop is kinder, so that what is compared is the loop and
not its omissions:

* a step that hangs is given up at the deadline that Rollwave's turns have (there: the
  environment client's time-out, `verl/utils/agentgym/client.py`, 2,400 s);
* an engine that dies fails the whole round; it is restarted, as fast as Rollwave's, and the
  round is generated once more with the same seeds, its environments untouched (there:
  nothing catches it, `verl/agent_trainer/ppo/ray_trainer.py`, and the training ends);
* one request that is refused costs its own session only (there: the call, hence as above);
* garbage from an environment is noticed, and counts as 0 (there: it is the score).

A loop has no permits: as many sessions start together as Rollwave keeps live, and the next
ones start when the last of them is done.

Invariant: an episode that no fault strikes ends with the reward that it has in Rollwave.

Not here: the workload and its faults (`disturbance`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from ..actors.protocol import RunEpisode
from ..engine.seeds import derive
from ..envs.base import Environment
from .disturbance import GENERATE, RESET, RESTART_SECONDS, STEP, Workload


@dataclass
class Score:
    """How one episode ended, for its trainer and for us."""

    reward: float = 0.0
    turns: int = 0
    faulted: bool = False
    """The trainer is not told."""


@dataclass
class _Session:
    episode: RunEpisode
    environment: Environment
    number: int
    observation: str = ""
    done: bool = False
    score: Score = field(default_factory=Score)

    @property
    def task(self) -> str:
        return self.episode.task.id

    @property
    def turn(self) -> int:
        return self.score.turns

    @property
    def seed(self) -> int:
        """Of this turn's request: the same as in Rollwave."""
        return derive(derive(self.episode.seed, "turn"), self.turn)

    def give_up(self) -> None:
        """A fault: reward 0 and done."""
        self.score.reward = 0.0
        self.score.faulted = self.done = True


async def play(workload: Workload, together: int) -> dict[str, Score]:
    """Play every episode of the workload, so many in unison; scores by episode id."""
    scores: dict[str, Score] = {}
    episodes = workload.episodes()
    for first in range(0, len(episodes), together):
        sessions = await _reset(workload, episodes[first : first + together])
        for _ in range(workload.spec.turn_limit):
            live = [session for session in sessions if not session.done]
            if not live:
                break
            began = trio.current_time()
            await _generate(workload, live)
            await _step(workload, live, began + workload.turn_seconds)
        for session in sessions:
            session.environment.close()
            scores[session.episode.id] = session.score
    return scores


async def _reset(workload: Workload, episodes: list[RunEpisode]) -> list[_Session]:
    sessions = [_Session(e, workload.spec.make(), workload.open()) for e in episodes]
    await trio.sleep(max(workload.seconds(RESET, s.task, -1) for s in sessions))
    for s in sessions:
        s.observation = s.environment.reset(s.episode.task, s.episode.environment_seed)
    return sessions


async def _generate(workload: Workload, live: list[_Session]) -> None:
    """One call for all of them, which returns with the slowest; from its start if it died."""
    while True:
        deadly = [s for s in live if workload.kills(s.task, s.turn)]
        if not deadly:
            break
        await trio.sleep(min(GENERATE.draw(s.seed) / 2 for s in deadly))
        workload.died.append(trio.current_time())
        await trio.sleep(RESTART_SECONDS)
    await trio.sleep(max(GENERATE.draw(s.seed) for s in live))


async def _step(workload: Workload, live: list[_Session], deadline: float) -> None:
    """Step all of them, each with its own completion, and wait for the last."""
    now = trio.current_time()
    ends = [now]
    for session in live:
        fault = workload.fault(session.task, session.turn)
        if fault == "hang":
            ends.append(max(now, deadline))
        elif fault != "refuse":
            ends.append(now + workload.seconds(STEP, session.task, session.turn))
        action = workload.choose(session.episode.task.index, session.observation, session.seed)
        session.score.turns += 1
        if fault:
            session.give_up()
            continue
        result = session.environment.step(action)
        session.observation = result.observation
        session.score.reward += result.reward
        session.done = result.done
    await trio.sleep_until(max(ends))
    for session in live:
        workload.moved(session.number)
