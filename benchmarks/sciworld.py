"""ScienceWorld: steps a second of one Java process, what a session takes, 2,000 at once.

    python -m rollwave.benchmarks.sciworld
    python -m rollwave.benchmarks.sciworld --sessions=400 --actions=5

Three questions, each asked in processes of their own:

* speed: the package's own solutions, played by one session here and by the package's
  `ScienceWorldEnv` in turns. On a machine that does other work, too, steps a second say as
  much of that work as of ours, so that steps a CPU-second, of Python and Java together,
  stand beside;
* memory: the heap with some hundred loaded sessions and without, garbage collected;
* the crowd: that many logical sessions, all begun before any ends, each taking the first
  actions of a solution after random thoughts in virtual time. Every answer is compared,
  by a digest, with that of a session that had a Java process to itself. Memory is the sum of
  the proportional set sizes of the whole tree of processes, this one included, at its peak.

Not here: the environment above (`worlds`, `fidelity`), a model.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Final, Self

from ..cli.output import Output
from ..envs.sciworld.gateway import Call, New
from ..envs.sciworld.pool import HEAP_MIB, LIVE, Simulators
from .report import Spread, write

STEPS_BAR: Final = 80
"""Steps a second of one Java process."""
MEMORY_BAR_MIB: Final = 4096
"""For all processes together."""

_SAMPLE_SECONDS: Final = 0.25
_PASSES: Final = 5
_STOCK_STEPS: Final = 8
_TICK: Final = os.sysconf("SC_CLK_TCK")
_PYTHON: Final = "scienceworld.runtime.pythonapi.PythonInterface"

Episode = tuple[str, int, list[str]]
"""Task, variation and actions."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """Many sessions at once."""

    sessions: int
    processes: int
    live: int
    """Sessions that one Java process may hold."""
    steps: int
    seconds: float
    evicted: int
    rebuilt: int
    peak_mib: float
    different: int
    """Sessions with an answer that an undisturbed one did not get."""


# --- in a process of their own --------------------------------------------------------


def solutions(variations: int) -> list[Episode]:
    """Solutions of every task; from the disk, if they were ever computed here."""
    simulators = Simulators()
    session = simulators.open()
    found: list[Episode] = []
    counts = simulators.machinery().variations
    for task, count in counts.items():
        for number in range(min(variations, count)):
            session.load(task, number * count // variations)
            found.append((task, number * count // variations, list(session.gold_path())))
    simulators.close()
    return found


def lean(episodes: list[Episode]) -> dict[str, Any]:
    """Play them again and again in one session."""
    simulators = Simulators()
    session = simulators.open()
    figures: dict[str, Any] = {"wall": [], "cpu": [], "load_ms": []}
    for _ in range(_PASSES + 1):  # the first compiles Java's methods
        loading = stepping = 0.0
        cpu = 0.0
        for task, variation, actions in episodes:
            began = time.perf_counter()
            session.load(task, variation)
            loaded, used = time.perf_counter(), _cpu(simulators.pid)
            for action in actions:
                session.step(action)
            stepping += time.perf_counter() - loaded
            cpu += _cpu(simulators.pid) - used
            loading += loaded - began
        steps = sum(len(actions) for _, _, actions in episodes)
        figures["wall"].append(steps / stepping)
        figures["cpu"].append(steps / cpu)
        figures["load_ms"].append(1e3 * loading / len(episodes))
    simulators.close()
    return {key: values[1:] for key, values in figures.items()}


def stock(episodes: list[Episode]) -> dict[str, Any]:
    """Play the first actions of each as the package does."""
    from scienceworld import ScienceWorldEnv

    env = ScienceWorldEnv("")
    java = env._gateway.java_process.pid
    wall, loads = [], []
    steps, used = 0, 0.0
    for task, variation, actions in episodes:
        began = time.perf_counter()
        env.load(task, variation, "easy")
        env.reset()
        loaded, before = time.perf_counter(), _cpu(java)
        for action in actions[:_STOCK_STEPS]:
            env.step(action)
        steps += len(actions[:_STOCK_STEPS])
        used += _cpu(java) - before
        wall.append(time.perf_counter() - loaded)
        loads.append(1e3 * (loaded - began))
    env.close()
    return {"wall": [steps / sum(wall)], "cpu": [steps / used], "load_ms": loads[5:]}


def memory(episodes: list[Episode]) -> dict[str, Any]:
    """MB of heap for one session: ours, and the package's `PythonInterface`."""
    simulators = Simulators(live=10_000)
    first = simulators.open()
    first.load("boil", 0)
    machinery = simulators.machinery()
    free = machinery.free_mib(collect=True)
    ours = [simulators.open() for _ in range(300)]
    for number, session in enumerate(ours):
        task, variation, actions = episodes[number % len(episodes)]
        session.load(task, variation)
        for action in actions[:10]:
            session.step(action)
    each = (free - machinery.free_mib(collect=True)) / len(ours)
    for session in ours:
        session.close()
    free = machinery.free_mib(collect=True)
    interfaces = [machinery.gateway.calls(*machinery.aside(), New(_PYTHON))[-1] for _ in range(20)]
    for interface, (task, variation, _) in zip(interfaces, episodes, strict=False):
        machinery.gateway.calls(Call(interface, "load", task, variation, "easy", False))
    theirs = (free - machinery.free_mib(collect=True)) / len(interfaces)
    simulators.close()
    return {"ours_mib": each, "stock_mib": theirs}


def crowd(episodes: list[Episode], chosen: list[int], live: int, seed: int) -> dict[str, Any]:
    """Sessions that play at once; with one live session each that plays is alone."""
    simulators = Simulators(live=live)
    digests = [hashlib.blake2b(digest_size=8) for _ in chosen]
    began = time.perf_counter()
    chance = Random(seed)
    sessions = [simulators.open() for _ in chosen]
    agenda = [(chance.random(), number, -1) for number in range(len(chosen))]
    heapq.heapify(agenda)
    steps = 0
    while agenda:
        now, number, turn = heapq.heappop(agenda)
        task, variation, actions = episodes[chosen[number]]
        if turn < 0:
            sessions[number].load(task, variation)
        else:
            moved = sessions[number].step(actions[turn])
            told = f"{moved.score} {moved.done} {moved.moves} {moved.observation}"
            digests[number].update(told.encode())
            steps += 1
        if turn + 1 < len(actions):
            # No session is over before the last has begun.
            heapq.heappush(agenda, (max(now, 1.0) + chance.expovariate(1.0), number, turn + 1))
        elif live == 1:
            sessions[number].close()
    figures = {
        "digests": [digest.hexdigest() for digest in digests],
        "steps": steps,
        "seconds": time.perf_counter() - began,
        "evicted": simulators.evicted,
        "rebuilt": simulators.rebuilt,
    }
    simulators.close()
    return figures


def alone(episodes: list[Episode]) -> list[str]:
    """The digest of each, played by itself."""
    simulators = Simulators()
    found = []
    for task, variation, actions in episodes:
        session = simulators.open()
        session.load(task, variation)
        digest = hashlib.blake2b(digest_size=8)
        for action in actions:
            moved = session.step(action)
            told = f"{moved.score} {moved.done} {moved.moves} {moved.observation}"
            digest.update(told.encode())
        session.close()
        found.append(digest.hexdigest())
    simulators.close()
    return found


def _cpu(java: int | None) -> float:
    """CPU-seconds of this process and of Java's."""
    fields = Path(f"/proc/{java}/stat").read_text().rsplit(")", 1)[1].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / _TICK


# --- in this one ----------------------------------------------------------------------


class Child:
    """One of the functions above, called in a process of its own."""

    def __init__(self, function: str, *arguments: Any) -> None:
        command = [sys.executable, "-m", "rollwave.benchmarks.sciworld", f"--one={function}"]
        self._popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps(arguments).encode())
        self._popen.stdin.close()

    def result(self) -> Any:
        """Wait for it."""
        assert self._popen.stdout is not None
        with self._popen.stdout as output:
            said = output.read()
        if self._popen.wait() != 0:
            raise SystemExit("a process of the benchmark failed: see above")
        return json.loads(said.splitlines()[-1])


class Peak:
    """The most memory of this process and all below it, while the block lasts."""

    def __init__(self) -> None:
        self.mib = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            self.mib = max(self.mib, sum(map(pss_mib, family(os.getpid()))))


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found.extend(map(int, file.read_text().split()))
            except OSError:  # it ended meanwhile
                continue
    return found


def pss_mib(pid: int) -> float:
    """Its proportional set size: what it shares is divided among those who share it."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def gather(
    episodes: list[Episode], expected: list[str], sessions: int, processes: int, live: int
) -> Crowd:
    """Let a crowd play in so many processes, and compare what each was told."""
    chosen = [number % len(episodes) for number in range(sessions)]
    began = time.perf_counter()
    with Peak() as peak:
        parts = [chosen[number::processes] for number in range(processes)]
        children = [Child("crowd", episodes, part, live, seed) for seed, part in enumerate(parts)]
        results = [child.result() for child in children]
    different = sum(
        digest != expected[number]
        for part, result in zip(parts, results, strict=True)
        for number, digest in zip(part, result["digests"], strict=True)
    )
    steps, evicted, rebuilt = (
        sum(result[key] for result in results) for key in ("steps", "evicted", "rebuilt")
    )
    seconds = time.perf_counter() - began
    return Crowd(sessions, processes, live, steps, seconds, evicted, rebuilt, peak.mib, different)


def main() -> int:
    """Measure, print the tables, write one JSON; 1 if a bar is missed or an answer differs."""
    parser = argparse.ArgumentParser(description="ScienceWorld's speed and memory.")
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--actions", type=int, default=10, help="of each session of the crowd")
    parser.add_argument("--variations", type=int, default=3, help="of each task")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/sciworld.json"))
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        function = {f.__name__: f for f in (solutions, lean, stock, memory, crowd, alone)}
        print(json.dumps(function[options.one](*json.load(sys.stdin))))
        return 0
    output = Output()
    episodes: list[Episode] = Child("solutions", options.variations).result()
    firsts = episodes[:: options.variations]
    speeds = {name: Child(name, firsts).result() for name in ("lean", "stock")}
    sizes = Child("memory", episodes).result()
    short = [(task, variation, acts[: options.actions]) for task, variation, acts in episodes]
    expected = Child("alone", short).result()
    half = max(1, options.sessions // 2)
    crowds = [
        gather(short, expected, options.sessions, processes, live)
        for processes, live in ((2, LIVE), (1, LIVE), (2, half // 2))
    ]

    spreads = {
        name: {key: Spread.of(values) for key, values in found.items()}
        for name, found in speeds.items()
    }
    steps = spreads["lean"]["wall"].median
    met = steps >= STEPS_BAR and all(
        run.peak_mib <= MEMORY_BAR_MIB and not run.different for run in crowds
    )
    output.table(
        ["", "steps/s", "steps/CPU-s", "load, ms", "heap, MiB a session"],
        [
            [
                {"lean": "here", "stock": "ScienceWorldEnv"}[name],
                *map(str, found.values()),
                f"{sizes['ours_mib' if name == 'lean' else 'stock_mib']:.2f}",
            ]
            for name, found in spreads.items()
        ],
    )
    output.table(
        [
            *("sessions", "processes", "live each", "steps", "s", "evicted", "rebuilt"),
            *("peak, MiB", "answered otherwise"),
        ],
        [[f"{value:,.0f}" for value in asdict(run).values()] for run in crowds],
    )
    output.text(f"bars ({STEPS_BAR} steps/s, {MEMORY_BAR_MIB} MiB): {'met' if met else 'MISSED'}")
    figures = {
        "speed": {n: {key: asdict(s) for key, s in f.items()} for n, f in spreads.items()},
        "memory": sizes,
        "heap_mib": HEAP_MIB,
        "crowds": [asdict(run) for run in crowds],
        "met": met,
    }
    write(options.out, figures)
    output.text(f"written to {options.out}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
