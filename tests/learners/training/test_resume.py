"""A run that was killed goes on from its last checkpoint, to bit-equal weights."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="cloning trains a torch model")
pytestmark = pytest.mark.learn

from rollwave.engine.errors import (  # noqa: E402
    CheckpointCorrupt,
    LearnerError,
    RunLocked,
    StorageFailed,
)
from rollwave.learners.cloning.behaviour_cloning import BehaviourCloning  # noqa: E402
from rollwave.learners.settings import LoraSettings, TrainingSettings  # noqa: E402
from rollwave.learners.training import checkpoint as module  # noqa: E402
from rollwave.learners.training import optimiser  # noqa: E402
from rollwave.learners.training.cadence import Cadence  # noqa: E402
from rollwave.learners.training.directories import claimed  # noqa: E402

EIGHT = {"max_steps": 8, "checkpoint_every": 2, "schedule": "cosine"}


@pytest.fixture(scope="module")
def experts(make) -> list:
    """Eight trajectories of different lengths and actions."""
    actions = ("up", "up right left", "down down", "left up down right up")
    return [make.expert(i, actions[i % 4]) for i in range(8)]


def clone(start: str, trajectories, out: Path, evaluate=None, progress=None, **settings):
    quick = {"max_steps": 4, "batch": 4, "device": "cpu", "lr": 3e-3}
    learner = BehaviourCloning(TrainingSettings(**(quick | settings)), start)
    return learner.update(trajectories, out=str(out), evaluate=evaluate, progress=progress)


def weights(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


class Killed(BaseException):
    """Not an error of ours: nothing catches it on its way."""


def kill_at(step: int):
    def progress(done: int, steps: int, metrics) -> None:
        if done == step:
            raise Killed

    return progress


class Steps(list):
    """What was told: (step, whether it was resumed at)."""

    def __call__(self, step: int, steps: int, metrics) -> None:
        self.append((step, metrics.get("resumed") == step))


@pytest.mark.parametrize("killed_at", [1, 4, 5, 7])
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2, dropout=0.2)], ids=["full", "lora"])
def test_a_killed_run_resumes_to_bit_equal_weights(tiny, experts, tmp_path, killed_at, lora):
    """Also with dropout, whose random state is part of the checkpoint."""
    options = EIGHT | {"lora": lora}
    straight = clone(tiny, experts, tmp_path / "straight", **options)
    with pytest.raises(Killed):
        clone(tiny, experts, tmp_path / "m", progress=kill_at(killed_at), **options)
    assert not (tmp_path / "m").exists()
    told = Steps()
    report = clone(tiny, experts, tmp_path / "m", progress=told, **options)
    # A checkpoint is written after the progress of its step was told.
    at = (killed_at - 1) // 2 * 2
    assert told == [(at, True)] * (at > 0) + [(n, False) for n in range(at + 1, 9)]
    assert report.metrics["steps"] == 8
    assert report.metrics["tokens"] == straight.metrics["tokens"]
    assert report.metrics.get("resumed", 0) == at
    assert weights(tmp_path / "m") == weights(tmp_path / "straight")
    assert not (tmp_path / "m.training").exists()


def test_checkpoints_are_taken_by_time_where_nobody_asks_for_more(
    tiny, experts, tmp_path, monkeypatch
):
    """The default: a long training loses seconds, a short one writes nothing."""
    assert TrainingSettings().checkpoint_every == 0
    assert TrainingSettings().checkpoint_seconds == 30
    time = 0.0

    def ticking(step: int, steps: int, metrics) -> None:
        nonlocal time
        time += 12.0
        if step == 7:
            raise Killed

    monkeypatch.setattr(
        "rollwave.learners.training.loop.Cadence", partial(Cadence, clock=lambda: time)
    )
    with suppress(Killed):
        clone(tiny, experts, tmp_path / "m", max_steps=8, progress=ticking)
    told = Steps()
    clone(tiny, experts, tmp_path / "m", max_steps=8, progress=told)
    assert told[0] == (6, True)


def test_when_checkpoints_are_taken_and_where_the_start_lies_is_no_other_run(
    tiny, experts, tmp_path
):
    with pytest.raises(Killed):
        clone(tiny, experts, tmp_path / "m", progress=kill_at(5), **EIGHT)
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in Path(tiny).iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    told = Steps()
    options = EIGHT | {"checkpoint_every": 0, "checkpoint_seconds": 5.0}
    clone(str(moved), experts, tmp_path / "m", progress=told, **options)
    assert told[0] == (4, True)


def test_another_runs_checkpoint_is_not_resumed(tiny, experts, tmp_path):
    with pytest.raises(Killed):
        clone(tiny, experts, tmp_path / "m", checkpoint_every=1, progress=kill_at(3))
    told = Steps()
    clone(tiny, experts[:6], tmp_path / "m", checkpoint_every=1, progress=told)
    assert told == [(step, False) for step in (1, 2, 3, 4)]


def test_a_damaged_checkpoint_of_this_run_is_a_clear_error(tiny, experts, tmp_path):
    with pytest.raises(Killed):
        clone(tiny, experts, tmp_path / "m", checkpoint_every=1, progress=kill_at(3))
    checkpoint = tmp_path / "m.training" / "checkpoint"
    (checkpoint / "weights.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointCorrupt) as caught:
        clone(tiny, experts, tmp_path / "m", checkpoint_every=1)
    for word in (str(checkpoint), "weights.safetensors", "Delete this directory"):
        assert word in str(caught.value)
    for file in checkpoint.iterdir():
        file.unlink()
    checkpoint.rmdir()  # what the sentence says
    assert clone(tiny, experts, tmp_path / "m").metrics["steps"] == 4


def test_a_run_killed_between_evaluations_keeps_its_best(tiny, experts, tmp_path):
    options = {"max_steps": 6, "evaluate_every": 2, "checkpoint_every": 2}

    def evaluate(step: int, path: str) -> float:
        return {2: 0.9, 4: 0.3, 6: 0.2}[step]

    clone(tiny, experts, tmp_path / "straight", evaluate=evaluate, **options)
    with pytest.raises(Killed):
        clone(tiny, experts, tmp_path / "m", evaluate=evaluate, progress=kill_at(5), **options)
    report = clone(tiny, experts, tmp_path / "m", evaluate=evaluate, **options)
    assert report.metrics["dev_step"] == 2
    assert weights(tmp_path / "m") == weights(tmp_path / "straight")


def test_a_lost_candidate_is_a_clear_error(tiny, experts, tmp_path):
    options = {"max_steps": 6, "evaluate_every": 2, "checkpoint_every": 2, "evaluate": lambda *_: 1}
    with pytest.raises(Killed):
        clone(tiny, experts, tmp_path / "m", progress=kill_at(3), **options)
    (tmp_path / "m.training" / "step-2" / "config.json").unlink()
    with pytest.raises(CheckpointCorrupt, match=r"step-2 is gone.*Delete .*m\.training "):
        clone(tiny, experts, tmp_path / "m", **options)


@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("checkpoint", [1, 2])
@pytest.mark.parametrize("file", [0, 1])
def test_what_breaks_off_a_checkpoint_costs_that_checkpoint(
    tiny, experts, tmp_path, monkeypatch, error, checkpoint, file
):
    import safetensors.torch

    clone(tiny, experts, tmp_path / "straight", **EIGHT)
    real, calls = safetensors.torch.save_file, []

    def torn(tensors, path, metadata=None):
        calls.append(path)
        real(tensors, path, metadata)
        if len(calls) == 2 * (checkpoint - 1) + file + 1:
            path.write_bytes(path.read_bytes()[:100])
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", torn)
        expected = Killed if isinstance(error, Killed) else StorageFailed
        with pytest.raises(expected):
            clone(tiny, experts, tmp_path / "m", **EIGHT)
    told = Steps()
    clone(tiny, experts, tmp_path / "m", progress=told, **EIGHT)
    assert told[0] == ((2, True) if checkpoint == 2 else (1, False))
    assert weights(tmp_path / "m") == weights(tmp_path / "straight")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "straight"]


def test_a_disk_that_is_full_for_the_model_keeps_the_checkpoints(tiny, experts, tmp_path):
    """The real thing: the system refuses, and safetensors has its own word for it."""
    clone(tiny, experts, tmp_path / "straight", **EIGHT)
    with pytest.raises(Killed):
        clone(tiny, experts, tmp_path / "m", progress=kill_at(8), **EIGHT)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StorageFailed, match=r"cannot write .*m: File too large; free some"):
            clone(tiny, experts, tmp_path / "m", **EIGHT | {"checkpoint_every": 0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "m").exists()
    told = Steps()
    clone(tiny, experts, tmp_path / "m", progress=told, **EIGHT)
    assert told[0] == (6, True)
    assert weights(tmp_path / "m") == weights(tmp_path / "straight")


def test_an_error_of_torch_in_mid_step_costs_that_step(tiny, experts, tmp_path, monkeypatch):
    clone(tiny, experts, tmp_path / "straight", **EIGHT)
    steps = []

    def failing(*args, **kwargs):
        steps.append(args)
        if len(steps) == 6:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return real(*args, **kwargs)

    real = optimiser.clip_grads_with_norm_
    with monkeypatch.context() as patch:
        patch.setattr(optimiser, "clip_grads_with_norm_", failing)
        with pytest.raises(RuntimeError, match="device-side"):
            clone(tiny, experts, tmp_path / "m", **EIGHT)
    told = Steps()
    clone(tiny, experts, tmp_path / "m", progress=told, **EIGHT)
    assert told[0] == (4, True)
    assert weights(tmp_path / "m") == weights(tmp_path / "straight")


def test_a_run_that_is_still_held_by_another_thread_is_refused(tiny, experts, tmp_path):
    with claimed(tmp_path / "m.training"), pytest.raises(RunLocked, match="in use"):
        clone(tiny, experts, tmp_path / "m")
    assert clone(tiny, experts, tmp_path / "m").metrics["steps"] == 4


def test_divergence_leaves_the_checkpoint_before_it(tiny, experts, tmp_path):
    with pytest.raises(LearnerError, match="lower the learning rate"):
        clone(tiny, experts, tmp_path / "m", lr=1e30, clip=0.0, max_steps=8, checkpoint_every=1)
    assert module.read_state(tmp_path / "m.training" / "checkpoint") is not None
    assert not (tmp_path / "m").exists()


KILLS = """
import os, signal, sys
from pathlib import Path
from rollwave.engine.trajectory import Outcome, Trajectory, Turn
from rollwave.learners.cloning.behaviour_cloning import BehaviourCloning
from rollwave.learners.model.policy import configure_threads
from rollwave.learners.settings import TrainingSettings
import safetensors.torch, shutil

start, folder = sys.argv[1], Path(sys.argv[2])
configure_threads(1)
settings = TrainingSettings(max_steps=6, batch=2, checkpoint_every=2, device="cpu", lr=1e-2)

def expert(n):
    turns = tuple(Turn(f"at {n} door", word, word, 0.0) for word in ("up", "left")[: 1 + n % 2])
    return Trajectory(f"w0/g_{n}/0", "g-v1", f"g_{n}", "train", 0, 0, 0, Outcome.SUCCESS, 1.0,
                      terminated=True, turns=turns, policy="expert")

def train(out, progress=None):
    BehaviourCloning(settings, start).update(
        [expert(n) for n in range(4)], out=str(out), progress=progress)
    return (out / "model.safetensors").read_bytes()

def dying(owner, name, after, tear):
    # Die at the operation `after`, having done half of it where it can be halved.
    real = getattr(owner, name)
    def call(*args, **kwargs):
        if count[0] == after:
            if tear:
                real(*args, **kwargs)
                path = Path(args[1])
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        count[0] += 1
        return real(*args, **kwargs)
    setattr(owner, name, call)

wanted = train(folder / "straight")
told, kills = set(), 0
for after in range(1000):
    out = folder / str(after) / "m"
    pid = os.fork()
    if pid == 0:
        count = [0]
        for owner, name, tear in (
            (safetensors.torch, "save_file", True), (os, "fsync", False), (Path, "rename", False),
            (Path, "mkdir", False), (shutil, "rmtree", False), (os, "unlink", False),
        ):
            dying(owner, name, after, tear)
        def progress(step, steps, metrics):
            if count[0] == after:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1
        train(out, progress)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
    kills += 1
    if (out / "training.json").exists():
        assert (out / "model.safetensors").read_bytes() == wanted
        told.add("done")
        continue
    first = []
    def progress(step, steps, metrics):
        first.append(int(metrics.get("resumed", 0)))
    assert train(out, progress) == wanted, after
    told.add(first[0])
    left = sorted(p.name for p in out.parent.iterdir())
    assert left == ["m"], (after, left)
assert told == {0, 2, 4, "done"}, told
print(kills)
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_of_a_training_loses_steps_and_nothing_else(tiny, tmp_path):
    """A child of a warm process dies, for real, at each file operation and each step in turn."""
    done = subprocess.run(
        [sys.executable, "-c", KILLS, tiny, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40
