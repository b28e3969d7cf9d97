"""A fault plan: what goes wrong in a simulated run, how often and when, as one typed value.

    seed = 7

    [environment]           # shares of calls
    raises = 0.01

    [[strike]]              # one event: at which count, in which process run
    kind = "disk.torn"
    at = 12

Shares are drawn by position (seed, boundary, episode, turn), so that they do not depend on
scheduling; strikes count events of one simulated process, which its seed settles.

Invariants: `parse(plan.toml()) == plan`; an unknown key or a value out of its range is
refused by its name; a plan without shares and strikes changes nothing at all.

Not here: who injects what (`injection`), and what must hold all the same (`invariants`).
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal, Self, get_args

import msgspec

from ...engine.errors import ConfigError

StrikeKind = Literal[
    "process.killed",
    "process.power",
    "disk.full",
    "disk.torn",
    "disk.fsync",
    "backend.dies",
    "swap.fails",
    "swap.hangs",
    "learner.fails",
    "learner.dies",
    "learner.cancelled",
    "collector.dies",
    "collector.cancelled",
    "dispatcher.dies",
    "dispatcher.cancelled",
    "inference.dies",
    "inference.cancelled",
    "session.dies",
    "session.cancelled",
    "campaign.cancelled",
    "mailbox.full",
    "message.corrupt",
    "message.oversize",
    "clock.jumps",
]
"""What one strike does. `at` counts, in this process and from 0: operations of the disk
(process.power), writes (disk.full, disk.torn), fsyncs (disk.fsync), requests (backend.dies),
swaps (swap.*), training steps (learner.fails), and steps of tasks for all others."""

STRIKES: Final[tuple[str, ...]] = get_args(StrikeKind)


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the parts of a plan."""


class _Shares(_Part, frozen=True):
    """Base of the sections with a share for each kind of fault."""

    def __post_init__(self) -> None:
        section = type(self).__name__.removesuffix("Faults").lower()
        shares = self.shares()
        for kind, share in shares.items():
            if not 0 <= share <= 1:  # also where it is no number
                raise ConfigError(f"{section}.{kind} must be within 0 and 1, not {share}")
        if sum(shares.values()) > 1:
            raise ConfigError(
                f"the shares of [{section}] ({', '.join(shares)}) must sum to at most 1, "
                f"not {sum(shares.values()):g}"
            )

    def shares(self) -> dict[str, float]:
        """Share by kind."""
        return {name: getattr(self, name) for name in self.__struct_fields__ if name != "seconds"}

    def draw(self, point: float) -> str:
        """The kind of fault at a point in [0, 1); empty = none."""
        for kind, share in self.shares().items():
            if point < share:
                return kind
            point -= share
        return ""


class EnvironmentFaults(_Shares, frozen=True):
    """Shares of the calls to an environment: open, reset, step, close."""

    raises: float = 0.0
    hangs: float = 0.0
    """Until its deadline."""
    garbage: float = 0.0
    """Answers what is no sound answer."""
    lost: float = 0.0
    """The process in which it runs dies."""


class BackendFaults(_Shares, frozen=True):
    """Shares of the requests to the inference backend."""

    refuses: float = 0.0
    stalls: float = 0.0
    """Never answers."""
    late: float = 0.0
    """Answers when nobody waits any more, though it was cancelled."""
    stale: float = 0.0
    """Answers for a policy version that is not served."""
    corrupt: float = 0.0
    """Answers with tokens and log-probs that do not fit together."""


class ConsumerFaults(_Shares, frozen=True):
    """Share of the records at which whoever takes them pauses."""

    slow: float = 0.0
    seconds: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seconds < math.inf:
            raise ConfigError(f"consumer.seconds must be finite and 0 or more, not {self.seconds}")


class Strike(_Part, frozen=True):
    """One fault at one moment."""

    kind: StrikeKind
    at: int
    """Count at which it comes, from 0; see `StrikeKind`."""
    process: int = 0
    """0 strikes the first run of the command, 1 the run after the first crash, ..."""
    lasts: int = 1
    """Writes or fsyncs in a row that fail; seconds that a clock jumps."""

    def __post_init__(self) -> None:
        for key, least in (("at", 0), ("process", 0), ("lasts", 1)):
            value = getattr(self, key)
            if not least <= value < 2**31:
                raise ConfigError(f"strike.{key} must be {least} or more, not {value}")


class FaultPlan(_Part, frozen=True):
    """Everything that goes wrong in a simulated run."""

    seed: int = 0
    """Of the draws."""
    environment: EnvironmentFaults = EnvironmentFaults()
    backend: BackendFaults = BackendFaults()
    consumer: ConsumerFaults = ConsumerFaults()
    strike: tuple[Strike, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be within 0 and 2**63, not {self.seed}")

    @classmethod
    def parse(cls, text: str, name: str = "the fault plan") -> Self:
        """Read a plan from TOML.

        Raises:
            ConfigError: it is no TOML, or a key is unknown, of the wrong type or out of range.
        """
        try:
            return msgspec.convert(tomllib.loads(text), cls)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{name} is not TOML: {error}") from None
        except msgspec.ValidationError as error:
            known = ", ".join(STRIKES if ".kind" in str(error) else cls.__struct_fields__)
            raise ConfigError(f"{name}: {error}; there are {known}") from None
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None

    def toml(self) -> str:
        """Write it as TOML; keys at their default are left out, `seed` never."""
        lines = [f"seed = {self.seed}"]
        for name in ("environment", "backend", "consumer"):
            if keys := _changed(getattr(self, name)):
                lines += ["", f"[{name}]", *keys]
        for strike in self.strike:
            lines += ["", "[[strike]]", f'kind = "{strike.kind}"', f"at = {strike.at}"]
            lines += [key for key in _changed(strike) if not key.startswith(("kind ", "at "))]
        return "\n".join(lines) + "\n"

    @property
    def processes(self) -> int:
        """Runs of the command that some strike is meant for."""
        return max((strike.process + 1 for strike in self.strike), default=1)

    @property
    def harmless(self) -> bool:
        """Whether it must not change what any episode comes to: only crashes, cancellations,
        deaths of actors, trouble with the disk, and delays."""
        shares = {**self.environment.shares(), **self.backend.shares()}
        return not any(shares.values()) and not any(
            strike.kind in _CHANGING for strike in self.strike
        )

    def strikes(self, process: int, kinds: Iterable[str]) -> list[Strike]:
        """The strikes of these kinds in that run of the command, in the order of `at`."""
        wanted = frozenset(kinds)
        found = [s for s in self.strike if s.process == process and s.kind in wanted]
        return sorted(found, key=lambda strike: strike.at)


_CHANGING: Final = frozenset({"clock.jumps", "session.dies"})
"""A clock that jumps makes turns late; a session that dies of a defect is a fault."""


def _changed(part: msgspec.Struct) -> list[str]:
    """`key = value` for each key that differs from its default."""
    lines = []
    for field in msgspec.structs.fields(part):
        value = getattr(part, field.name)
        if value != field.default:
            lines.append(
                f"{field.name} = {value}"
                if not isinstance(value, str)
                else f'{field.name} = "{value}"'
            )
    return lines


KINDS: Final[tuple[str, ...]] = (
    *(f"environment.{kind}" for kind in EnvironmentFaults().shares()),
    *(f"backend.{kind}" for kind in BackendFaults().shares()),
    *(f"consumer.{kind}" for kind in ConsumerFaults().shares()),
    *STRIKES,
)
"""Every fault that a plan can bring, by boundary and kind."""

PRESETS: Final[Mapping[str, FaultPlan]] = {
    "none": FaultPlan(),
    "one-percent": FaultPlan(
        environment=EnvironmentFaults(raises=0.004, hangs=0.001, garbage=0.002, lost=0.003),
        backend=BackendFaults(refuses=0.004, stalls=0.001, late=0.001, corrupt=0.004),
    ),
    "storm": FaultPlan(
        environment=EnvironmentFaults(raises=0.02, hangs=0.005, garbage=0.01, lost=0.02),
        backend=BackendFaults(refuses=0.02, stalls=0.005, late=0.005, stale=0.01, corrupt=0.01),
        strike=(
            Strike(kind="backend.dies", at=1000),
            Strike(kind="inference.dies", at=20_000),
            Strike(kind="collector.dies", at=40_000),
            Strike(kind="mailbox.full", at=60_000),
            Strike(kind="message.corrupt", at=80_000),
            Strike(kind="message.oversize", at=100_000),
            Strike(kind="dispatcher.dies", at=120_000),
        ),
    ),
}
"""Plans by name, for `rollwave simulate --faults NAME`. The shares are of calls."""


def find_plan(name: str) -> FaultPlan:
    """A preset by its name, or a plan from a TOML file.

    Raises:
        ConfigError: neither, or the file does not hold a plan.
    """
    if name in PRESETS:
        return PRESETS[name]
    try:
        text = Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(
            f"faults {name!r} is neither a plan by name ({', '.join(PRESETS)}) nor a file "
            f"that can be read: {reason}"
        ) from None
    return FaultPlan.parse(text, name)
