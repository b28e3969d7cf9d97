"""Every message the cast exchanges, in the order of the straight line.

    RunRollout → dispatcher → RunEpisode → session ─ Generate → inference
                                              │    ← Completion
                                              └─ EpisodeEnded → collector → consumer
    UpdatePolicy → learner → PolicyUpdated ; SwapWeights → inference → WeightsSwapped

Invariant: a message holds values only, so that it can cross a process boundary
or be journalled without a change.

Not here: the records inside the messages (`engine.trajectory`, `envs.base`).
"""

from __future__ import annotations

from ..engine.codec import Message
from ..engine.trajectory import ChatMessage, FinishReason, Trajectory, Turn
from ..envs.base import Task


class Sampling(Message, frozen=True):
    """How completions are drawn."""

    temperature: float = 1.0
    """0 is greedy."""
    max_tokens: int = 256
    """Per turn."""
    top_p: float = 1.0
    """Below 1 the stored log-probs are no longer those of the sampling distribution."""
    stop: tuple[str, ...] = ()
    """Extra stop strings; the model's own closer always stops."""


class Generate(Message, frozen=True):
    """Session → inference: continue this prompt."""

    request_id: str
    """`<trajectory id>/<turn>`: the same id asked twice is the same request."""
    prompt_ids: bytes
    """uint32; empty where the backend takes text."""
    messages: tuple[ChatMessage, ...]
    """The same prompt as text; empty where the backend takes token ids."""
    sampling: Sampling
    seed: int


class Completion(Message, frozen=True):
    """Inference → session: what was sampled, token for token."""

    request_id: str
    text: str
    """Without stop strings; empty where the session decodes the token ids itself."""
    token_ids: bytes
    """uint32, closer included if it was sampled; empty where the server gives no ids."""
    logprobs: bytes
    """float32, one for each id: log-probability under the sampling distribution."""
    finish: FinishReason
    policy_version: int


class TurnTaken(Message, frozen=True):
    """Session → journal: one turn of an episode that has not ended yet.

    All of an episode's turns, in order, are enough to rebuild it in another process.
    """

    episode: str
    number: int
    """Of the turn, from 0."""
    seed: int
    """Of the episode: turns of another seed belong to another episode of that id."""
    turn: Turn
    token_ids: bytes
    """uint32: what this turn added to the episode's tokens, observation and completion."""
    logprobs: bytes
    """float32, one for each id; 0 where the agent did not sample it."""


class Opening(Message, frozen=True):
    """How an episode begins where somebody else has played its first turns: an expert's, behind
    which the agent goes on."""

    turns: tuple[TurnTaken, ...]
    """None of their tokens counts as sampled; empty: the agent plays from the start."""
    environment_seed: int
    """What they were played with."""


class RunEpisode(Message, frozen=True):
    """Dispatcher → session: play this, once."""

    id: str
    """The trajectory's id."""
    rollout: int
    """Which rollout of this engine it belongs to; the collector routes by it."""
    task: Task
    wave: int
    attempt: int
    seed: int
    """Of this attempt: turn seeds hang below it."""
    environment_seed: int
    """Of this task: every attempt of a group meets the same environment."""
    turns: tuple[TurnTaken, ...] = ()
    """What was played of it before a crash, or by another: it goes on behind them."""
    opening: int = 0
    """So many of them belong to it: without them it cannot begin anew."""


class EpisodeEnded(Message, frozen=True):
    """Session → collector: the one record of the episode."""

    rollout: int
    trajectory: Trajectory
    resumed: int = 0
    """Turns that were not played but rebuilt, after a crash of the run or of a worker."""
    restarted: str = ""
    """Why it began anew, where its earlier turns could not be rebuilt."""


class RunRollout(Message, frozen=True):
    """Engine → dispatcher: play every task `attempts` times."""

    rollout: int
    tasks: tuple[Task, ...]
    attempts: int
    wave: int
    seed: int
    sampling: Sampling
    skip: tuple[str, ...] = ()
    """Trajectory ids that are already in the store (resume)."""


class CancelRollout(Message, frozen=True):
    """Engine → dispatcher: admit no more of it and stop its sessions."""

    rollout: int


class Accepted(Message, frozen=True):
    """The answer to a message that asks for nothing back but order."""


class SwapWeights(Message, frozen=True):
    """Weights → inference: serve these from now on."""

    version: int
    path: str
    """A Hugging Face model directory."""


class WeightsSwapped(Message, frozen=True):
    """Inference → weights: confirmed; the prefix cache is empty."""

    version: int
    seconds: float


class DescribeInference(Message, frozen=True):
    """Anyone → inference: how is it going?"""


class InferenceStatus(Message, frozen=True):
    """The answer. Counters are those of the backend that serves now, since it started."""

    policy_version: int
    path: str
    waiting: int
    """Requests accepted and not answered."""
    swapping: bool
    incarnation: int
    """Restarts before the actor that answers."""
    requests: int
    completions: int
    failures: int
    prompt_tokens: int
    sampled_tokens: int
    batches: int
    batch_capacity: int
    batch_requests: int
    batch_fill: float
    """Mean share of the batch capacity in use, in [0, 1]; 0 where it is unbounded."""
    extra: dict[str, float]
    """Figures of this kind of backend, such as `start_seconds` and `step_seconds`."""


class UpdatePolicy(Message, frozen=True):
    """Campaign → learner: run one evolution step and write its model directory."""

    algorithm: str
    """"clone" (the experts alone) or "evolve" (by the algorithm that the settings name)."""
    settings: bytes
    """JSON of `TrainingSettings`, or of an algorithm's settings with its tag."""
    experts: tuple[str, ...]
    """Paths of wave files with expert trajectories."""
    waves: tuple[str, ...]
    """Paths of this campaign's sealed waves, oldest first."""
    starts: dict[str, str]
    """Model directories by role: "base_bc", "pretrained", "last"."""
    evaluation: tuple[Task, ...]
    """Tasks that must never be learned from."""
    out: str
    wave: int = 0
    """Number of the newest of the waves."""


class PolicyUpdated(Message, frozen=True):
    """Learner → campaign: the step is done and saved."""

    path: str
    metrics: dict[str, float]
    kept: int
    dropped: dict[str, int]
