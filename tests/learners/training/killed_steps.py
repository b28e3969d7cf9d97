"""Run evolution steps in children of a warm process, kill the children, run the steps again.

    python killed_steps.py JOBS.json SEED    prints one JSON object a job, as a line

A child dies by SIGKILL at moments that the seed draws: from outside, after so many lines of
progress; or by its own hand, at one of its file operations, or with the model written and the
checkpoint not yet cleared. torch is imported once: a fork costs milliseconds.

Not here: which steps (`test_kill`, which starts this).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import safetensors.torch
from rollwave.engine.store import read_wave
from rollwave.learners.algorithms import evolve
from rollwave.learners.base import Evidence
from rollwave.learners.cloning.behaviour_cloning import clone
from rollwave.learners.distributed import Order
from rollwave.learners.model.policy import configure_threads
from rollwave.learners.training.loop import Training

OPERATIONS = (
    (safetensors.torch, "save_file"),
    (os, "fsync"),
    (os, "unlink"),
    (Path, "rename"),
    (Path, "mkdir"),
    (Path, "write_bytes"),
    (shutil, "rmtree"),
)
MAY_DIFFER = {"seconds", "resumed"}
"""Metrics that an interruption may change."""


class Job(msgspec.Struct):
    """One step that is to be killed, and what it says in the end."""

    name: str
    order: Order
    first: Order | None = None
    """A step before it, which is its start."""
    operations: int = 0
    """Further stories, each of which dies at a file operation that is drawn."""


class Said(msgspec.Struct):
    """What became of a job: of the story of many deaths, and of each further one."""

    name: str
    steps: int
    resumed: list[int]
    """The step at which the last run of each story went on."""
    deaths: int
    differ: list[str]
    """Files and metrics in which a story ended otherwise than the undisturbed run."""
    left: list[str]
    """What lies beside the policies at the end."""


def main() -> None:
    jobs = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=list[Job])
    configure_threads(1)
    for job in jobs:
        said = story(job, random.Random(f"{sys.argv[2]} {job.name}"))
        sys.stdout.write(msgspec.json.encode(said).decode() + "\n")


def story(job: Job, drawn: random.Random) -> Said:
    order, folder = job.order, Path(job.order.out)
    if job.first is not None:
        run(job.first, folder / "first")
        order.starts["last"] = str(folder / "first")
    straight = run(order, folder / "straight")
    steps = int(straight["metrics"]["steps"])
    said = Said(job.name, steps, [], 0, [], [])

    out = folder / "many"
    for lines in (drawn.randrange(1, steps - 1), drawn.randrange(1, 3)):
        said.deaths += in_child(partial(told, order, out), lines)
    said.deaths += in_child(partial(before_clearing, order, out))
    end(said, order, out, straight)

    names = {"first", "straight", "many"}
    if job.operations:
        out = folder / "counted"
        count = counted(partial(saying, order, out))
        for number in drawn.sample(range(count), job.operations):
            out = folder / f"operation-{number}"
            said.deaths += in_child(partial(at_operation, order, out, number))
            end(said, order, out, straight)
            names.add(out.name)
        names.add("counted")
    said.left = sorted({path.name for path in folder.iterdir()} - names)
    return said


def run(order: Order, out: Path, progress: Any = None) -> dict[str, Any]:
    """Do an order; gives what training.json says."""
    experts = [t for path in order.experts for t in read_wave(path).trajectories]
    waves = [read_wave(path).trajectories for path in order.waves]
    if order.learner is None:
        start, settings = order.starts["last"], order.clone
        clone(experts, settings=settings, start=start, out=str(out), progress=progress)
    else:
        evidence = Evidence(starts=order.starts, experts=experts, waves=waves, number=order.number)
        evolve(order.learner, evidence, out=str(out), progress=progress)
    return msgspec.json.decode((out / "training.json").read_bytes())


def end(said: Said, order: Order, out: Path, straight: dict[str, Any]) -> None:
    """Run a story to its end, and compare it with the undisturbed run."""
    found = run(order, out)
    said.resumed.append(int(found["metrics"].get("resumed", 0)))
    made, wanted = files(out), files(out.parent / "straight")
    said.differ += [f"{out.name}/{n}" for n in made.keys() | wanted if made.get(n) != wanted.get(n)]
    for part in ("metrics", "dropped"):
        one, other = found[part], straight[part]
        said.differ += [
            f"{out.name}: {name}"
            for name in (one.keys() | other.keys()) - MAY_DIFFER
            if one.get(name) != other.get(name)
        ]
    if found["kept"] != straight["kept"]:
        said.differ.append(f"{out.name}: kept")


def files(path: Path) -> dict[str, bytes]:
    """All that a policy is, but the report, which has times in it."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "training.json"
    }


def in_child(work: Callable[[int], object], lines: int = 0) -> bool:
    """Do it in a child, with a pipe to write into; whether the child was killed.

    Args:
        lines: kill it once it has written so many bytes; 0: it dies by itself, or does not.
    """
    return _child(work, lines)[0]


def counted(work: Callable[[int], object]) -> int:
    """Do it in a child; the number that it wrote."""
    killed, said = _child(work, 0)
    assert not killed
    return int(said)


def _child(work: Callable[[int], object], lines: int) -> tuple[bool, bytes]:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work(write)
        except BaseException as error:
            sys.stderr.write(f"child: {type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    os.close(write)
    said = b""
    while not (lines and len(said) == lines) and (got := os.read(read, 1)):
        said += got
    if lines and len(said) == lines:
        os.kill(pid, signal.SIGKILL)  # wherever in the next step it is by now
    _, status = os.waitpid(pid, 0)
    os.close(read)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True, said
    assert os.WEXITSTATUS(status) == 0, "a child failed"
    return False, said


def told(order: Order, out: Path, pipe: int) -> None:
    """In the child: say whenever a step is done."""
    run(order, out, lambda *_: os.write(pipe, b"."))


def saying(order: Order, out: Path, pipe: int) -> None:
    """In the child: say how many file operations a run has."""
    os.write(pipe, b"%d" % at_operation(order, out, -1))


def die(*args: object) -> None:
    """In the child."""
    os.kill(os.getpid(), signal.SIGKILL)


def before_clearing(order: Order, out: Path, pipe: int) -> None:
    """In the child: die with the model written and the checkpoint still there."""
    real = Training.save

    def save(self: Any, draft: Path) -> None:
        real(self, draft)
        Training.clear = die  # at the beginning of a run, it removes another's

    Training.save = save
    run(order, out)


def at_operation(order: Order, out: Path, number: int, pipe: int = -1) -> int:
    """In the child: die at its file operation of this number, what it writes half written.

    Returns:
        How many there are, if none has the number.
    """
    count = 0

    def dying(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if count == number:
                if name == "save_file":
                    real(*args, **kwargs)
                    path = Path(args[1])
                    os.truncate(path, path.stat().st_size // 2)
                die()
            count += 1
            return real(*args, **kwargs)

        setattr(owner, name, call)

    for owner, name in OPERATIONS:
        dying(owner, name)
    run(order, out)
    return count


if __name__ == "__main__":
    main()
