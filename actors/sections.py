"""The sections of a campaign's file: every key with its default and its reason.

Invariant: an unknown key is refused where a section is read.

Not here: how a file is read (`config`), which keys contradict each other (`config_rules`),
and the learners' own settings (`learners.settings`).
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the sections."""


class RunSection(Section, frozen=True):
    """Where and how big."""

    out: str = "runs/campaign"
    seed: int = 0
    concurrency: int = 128
    """Live sessions at most."""
    workers: int = 0
    """Worker processes to run the environment in; 0 = where it says itself."""
    turn_seconds: float = 120.0
    """Deadline of one turn: completion and step."""
    episode_seconds: float = 3600.0
    """Deadline of one episode."""
    wave_seconds: float = 86_400.0
    """Deadline of one wave, of experts, exploration or evaluation."""
    step_seconds: float = 86_400.0
    """Deadline of one evolution step, cloning and control included."""
    swap_seconds: float = 600.0
    """Deadline of one weight swap: running requests end, and the weights are loaded."""
    shutdown_seconds: float = 30.0
    """Deadline for stopping everything at the end, or after an error."""
    max_fault_share: float = 0.05
    """A wave with more faults than this stops the campaign: a broken world teaches nothing."""
    threads: int = 1
    """torch threads of the learner. Two busy threads on two cores spin: 1 is faster there."""
    learner_processes: int = 1
    """Processes of this machine that train together, each on a GPU of its own where there are
    GPUs; they are started for every evolution step. 1: the campaign's own trains, in a thread."""
    max_staleness: int = 0
    """Waves that may be explored ahead of the learner: a trajectory is then at most so many
    policies old when it is trained on. 0: exploring and learning take turns, and the same
    seed gives the same run."""


class EnvironmentSection(Section, frozen=True):
    """What is played."""

    id: str
    turn_limit: int = 0
    """0 = the environment's own."""


class TinySection(Section, frozen=True):
    """A small Llama made on the spot, with the environment's closed vocabulary."""

    width: int = 128
    layers: int = 3
    heads: int = 4
    context: int = 256
    tie_embeddings: bool = True


class ModelSection(Section, frozen=True):
    """The policy to start from: a model directory, or a tiny one."""

    path: str = ""
    tiny: TinySection | None = None


class InferenceSection(Section, frozen=True):
    """What serves the policy."""

    backend: Literal["auto", "vllm", "transformers"] = "auto"
    batch: int = 256
    context: int = 0
    """0 = the model's own."""
    kv_cache_gib: float = 0.0
    """vLLM's KV cache; 0 = 1 GiB on a CPU, a share of the memory on a GPU."""


class ExpertsSection(Section, frozen=True):
    """Where demonstrations come from: the environment's expert on some tasks of a split, or
    files of others."""

    split: str = "train"
    first: int = 0
    """Skip so many tasks of the split: other seeds of an experiment take other tasks."""
    tasks: int = 40
    """So many tasks of the split; 0 = no experts, and no cloning. With `path`: so many tasks of
    the files, and 0, which is the default there, all of them."""
    path: str | tuple[str, ...] = ()
    """Files and directories with trajectories, in any format that `rollwave data` reads."""
    replay: bool = False
    """Play what the files hold again in the environment, and leave out what does not solve its
    task here. Where an algorithm compares with experts, or goes on behind their turns, it is
    done in any case."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The files; none where the environment's own expert is asked."""
        return (self.path,) * bool(self.path) if isinstance(self.path, str) else self.path


class RolloutSection(Section, frozen=True):
    """The exploration of a wave."""

    split: str = "train"
    first: int = 0
    """Skip so many tasks of the split."""
    tasks: int = 300
    """So many tasks of the split; never evaluation tasks."""
    attempts: int = 6
    """K: episodes a task and wave."""
    batch: int = 0
    """B: tasks of a wave, drawn from these without replacement until all had their turn; 0: all
    of them in every wave."""
    rounds: int = 1
    """Above 1, groups whose rewards are all equal do not count: they are made up for with
    further tasks until there are B others, in at most so many rounds (dynamic sampling)."""
    horizon: tuple[int, ...] = ()
    """Most turns of an episode, by stage (ScalingInter); evaluation has the last of them.
    Empty: `environment.turn_limit` throughout."""
    horizon_waves: int = 1
    """Waves of a stage of `horizon`."""
    temperature: float = 1.0
    max_tokens: int = 4
    """Per turn."""


class EvaluateSection(Section, frozen=True):
    """Greedy evaluation after each step."""

    dev_split: str = "dev"
    dev_first: int = 0
    dev_tasks: int = 100
    """Chooses the wave to keep. Never the test split."""
    test_split: str = "test"
    test_first: int = 0
    test_tasks: int = 200
    """Only reported. 0 = none."""
    max_tokens: int = 0
    """Per turn; 0 = as in the rollout."""
    every: int = 1
    """Waves between evaluations. The first policy and the last are evaluated in any case."""


class StopSection(Section, frozen=True):
    """When to stop, beside the waves: what is evaluated decides, a budget, or a collapse. Each
    of them ends the campaign with the policy that dev tasks chose."""

    waves: int = 3
    """M: at most so many."""
    min_gain: float = 0.005
    """An evaluation that gains less on dev than this counts as one without a gain."""
    patience: int = 2
    """Stop after so many evaluations without a gain in a row."""
    rollback_errors: float = 2.0
    """Stop, and go back to the best, when dev falls by more standard errors than this."""
    steps: int = 0
    """Budget of optimiser steps, cloning not counted; 0: none."""
    episodes: int = 0
    """Budget of explored episodes; 0: none."""
    max_kl: float = 10.0
    """Stop when the KL to the reference, where it is measured, rises above so many times its
    running median; 0: never."""
    min_entropy: float = 0.0
    """Stop when the entropy of what is explored falls below this share of the first wave's. 0.1
    suits policy gradients; 0: never."""
    max_format_errors: float = 1.0
    """Stop when more than this share of explored turns breaks the action format. 0.5 suits
    policy gradients."""


class ControlSection(Section, frozen=True):
    """The honest comparison: the same base and optimiser steps, experts only."""

    enabled: bool = False


class TrackSection(Section, frozen=True):
    """Who is told what is measured, beside metrics.jsonl, which always is."""

    tensorboard: bool = False
    """Write curves for TensorBoard into the run directory."""
    wandb: bool = False
    """Log to Weights & Biases."""
    project: str = "rollwave"
    """Project at Weights & Biases."""
    name: str = ""
    """Of the run there; empty: the run directory's."""
    offline: bool = False
    """Send nothing to Weights & Biases; `wandb sync` does it later."""
