"""What a server counts, in Prometheus' text format.

Invariant: a label's value is one of a fixed set (worlds, reasons, paths that exist), so
that no client can make the list grow.

Not here: counting (`sessions`, `server`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .sessions import Sessions

Series = Iterable[tuple[Mapping[str, str], int]]


def exposition(sessions: Sessions, answered: Mapping[tuple[str, int], int]) -> str:
    """The page that Prometheus reads."""
    counts = sessions.counts

    def by(label: str, counted: Mapping[str, int]) -> Series:
        return [({label: key}, count) for key, count in sorted(counted.items())]

    requests: Series = [
        ({"path": path, "status": str(status)}, count)
        for (path, status), count in sorted(answered.items())
    ]
    opened: Series = [({}, len(sessions))]
    parts = (
        ("sessions", "gauge", "Sessions that are open.", opened),
        ("sessions_opened_total", "counter", "Sessions opened.", by("env", counts.opened)),
        ("sessions_ended_total", "counter", "Sessions that ended.", by("reason", counts.ended)),
        ("steps_total", "counter", "Steps taken.", by("env", counts.steps)),
        ("refused_total", "counter", "Calls refused.", by("kind", counts.refused)),
        ("requests_total", "counter", "Requests answered.", requests),
    )
    return "".join(_family(*part) for part in parts)


def _family(name: str, kind: str, text: str, series: Series) -> str:
    full = f"rollwave_{name}"
    lines = [f"# HELP {full} {text}", f"# TYPE {full} {kind}"]
    for labels, value in series:
        inside = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
        lines.append(f"{full}{{{inside}}} {value}" if inside else f"{full} {value}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
