"""Two processes train what one trains: the same losses and weights, and they resume."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="processes train a torch model")
pytestmark = pytest.mark.learn

from rollwave.engine.errors import ConfigError, EvaluationLeak  # noqa: E402
from rollwave.engine.store import Store  # noqa: E402
from rollwave.learners.cloning.behaviour_cloning import BehaviourCloning  # noqa: E402
from rollwave.learners.distributed import Order, carry_out, joined, read_order  # noqa: E402
from rollwave.learners.settings import TrainingSettings  # noqa: E402
from rollwave.learners.training.checkpoint import read_state  # noqa: E402
from rollwave.learners.training.processes import Processes  # noqa: E402

SETTINGS = TrainingSettings(
    max_steps=4, batch=4, device="cpu", lr=3e-3, checkpoint_every=2, schedule="cosine"
)


class Killed(BaseException):
    """Not an error of ours: nothing catches it on its way."""


@pytest.fixture(scope="module")
def experts(make) -> list:
    actions = ("up", "up right left", "down down", "left up down right up")
    return [make.expert(i, actions[i % 4]) for i in range(8)]


@pytest.fixture
def sealed(experts, tmp_path) -> str:
    """The experts as a wave on disk."""
    with Store.open(tmp_path / "run") as store:
        return str(store.seal(0, 0, experts).path)


def killed(step: int, steps: int, metrics) -> None:
    if step == 3:
        raise Killed


def torchrun(order: Path, processes: int = 2) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", "rollwave.learners.distributed", str(order)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def same(one: Path, two: Path, tolerance: float) -> bool:
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(
        torch.allclose(a[n], b[n], rtol=0, atol=tolerance) for n in a
    )


@pytest.mark.parametrize(
    "resumed", [0, pytest.param(2, marks=pytest.mark.slow)], ids=["anew", "resumed"]
)
def test_two_processes_end_where_one_does(tiny, experts, sealed, tmp_path, resumed):
    """From the beginning, or from the checkpoint of one process that was killed."""
    straight, told = tmp_path / "straight", []
    BehaviourCloning(SETTINGS, tiny).update(
        experts, out=str(straight), progress=lambda *step: told.append(step[2])
    )

    def killed(step: int, steps: int, metrics) -> None:
        if step == 3:
            raise Killed

    out = tmp_path / "both"
    if resumed:
        with pytest.raises(Killed):
            BehaviourCloning(SETTINGS, tiny).update(experts, out=str(out), progress=killed)
        assert read_state(f"{out}.training/checkpoint").step == resumed
    order = tmp_path / "order.json"
    what = Order(out=str(out), starts={"last": tiny}, clone=SETTINGS, experts=(sealed,))
    order.write_bytes(msgspec.json.encode(what))
    done = torchrun(order)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["metrics"].get("resumed", 0) == resumed
    assert report["metrics"]["loss"] == pytest.approx(told[-1]["loss"], abs=1e-6)
    assert report["metrics"]["grad_norm"] == pytest.approx(told[-1]["grad_norm"], abs=1e-5)
    assert report["metrics"]["loss_tokens"] == told[-1]["loss_tokens"]
    assert same(out, straight, 1e-6)
    assert done.stderr.count("step 4 of 4") == 1  # the first alone speaks
    assert not Path(f"{out}.training").exists()


def test_an_order_says_either_or(tmp_path):
    file = tmp_path / "order.json"
    for text in ("{}", '{"out": "m", "starts": {}}', '{"out": "m", "starts": {}, "cloned": {}}'):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"order\.json"):
            read_order(str(file))
    file.write_text('{"out": "m", "starts": {}, "learner": {"algorithm": "agent_evol"}}')
    assert read_order(str(file)).learner.merge == "initial"


@pytest.mark.parametrize(
    "what",
    [
        '"clone": {"evaluate_every": 5}',
        '"learner": {"algorithm": "dpo", "training": {"evaluate_every": 5}}',
        '"learner": {"algorithm": "eto", "opening_training": {"evaluate_every": 5}}',
    ],
)
def test_an_order_that_asks_for_evaluations_is_refused(tmp_path, what):
    """Nobody plays dev tasks in its middle: they would be left out in silence."""
    file = tmp_path / "order.json"
    file.write_text(f'{{"out": "m", "starts": {{}}, {what}}}')
    with pytest.raises(ConfigError, match="evaluate_every must be 0"):
        read_order(str(file))


def test_one_process_carries_out_an_order_too(tiny, sealed, tmp_path):
    order = Order(out=str(tmp_path / "m"), starts={"last": tiny}, clone=SETTINGS, experts=(sealed,))
    assert carry_out(order).metrics["steps"] == 4
    assert (tmp_path / "m" / "config.json").exists()


def test_an_order_to_clone_evaluation_tasks_is_refused(tiny, experts, sealed, tmp_path):
    order = Order(
        out=str(tmp_path / "m"),
        starts={"last": tiny},
        clone=SETTINGS,
        experts=(sealed,),
        evaluation=((experts[3].env, experts[3].task_id),),
    )
    with pytest.raises(EvaluationLeak, match=experts[3].task_id):
        carry_out(order)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_part_is_dealt_once_and_the_loads_are_even(size):
    parts = [[n] * n for n in (1, 2, 3, 4, 5, 6, 7)]
    shares = [Processes(rank, size).share(parts, lambda n: 1) for rank in range(size)]
    assert sorted(map(len, (part for share in shares for part in share))) == [1, 2, 3, 4, 5, 6, 7]
    loads = [sum(map(len, share)) for share in shares]
    assert max(loads) - min(loads) <= 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing ends them")
def test_processes_end_with_a_torchrun_that_is_killed(tmp_path):
    """Else they train on, and the same command finds their lock."""
    order = tmp_path / "order.json"
    os.mkfifo(order)
    script = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"
    command = [sys.executable, "-c", script, "-m", "rollwave.learners.distributed", str(order)]
    with subprocess.Popen(command, env=os.environ | {"TORCHELASTIC_RUN_ID": "1"}) as parent:
        writing = os.open(order, os.O_WRONLY)  # returns when the process reads its order
        try:
            parent.kill()
            gone = select.poll()
            gone.register(writing, 0)  # an error is told in any case: nobody reads any more
            assert gone.poll(60_000)
        finally:
            os.close(writing)


@pytest.mark.parametrize("others", [0.0, 1.0])
def test_what_no_process_has_a_gradient_of_keeps_none(monkeypatch, others):
    """AdamW would decay it, and give it moments that one process does not have."""

    def summed(tensor: torch.Tensor) -> None:
        tensor += others

    monkeypatch.setattr(torch.distributed, "all_reduce", summed)
    one, two = (torch.ones(2, requires_grad=True) for _ in range(2))
    two.sum().backward()
    Processes(0, 2).add_gradients([one, two])
    assert torch.equal(two.grad, torch.full((2,), 1.0 + others))
    if others:
        assert torch.equal(one.grad, torch.full((2,), others))
    else:
        assert one.grad is None


def test_alone_nothing_is_sent():
    alone = Processes.current()
    assert (alone.rank, alone.size, alone.first) == (0, 1, True)
    gradient = torch.ones(2, requires_grad=True)
    alone.add_gradients([gradient])
    assert gradient.grad is None
    assert alone.add({"a": (1.0, 2.0)}) == {"a": (1.0, 2.0)}
    assert alone.told("x") == "x"
    alone.wait()


def test_several_processes_do_not_share_one_gpu():
    order = Order(out="m", starts={}, clone=TrainingSettings(device="cuda:1"))
    with pytest.raises(ConfigError, match='set it to "cuda"'), joined(order, 0):
        pass
