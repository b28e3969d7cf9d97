"""One evolution step on disk: from items and a start to a model directory that says what made it.

    OUT                 the model directory
       /training.json   hashes of data, start and adapters to go on with, settings, seed,
                        versions, what was dropped
    OUT.training        checkpoints, while it is being made (`loop`)

Invariants: the directory appears whole or not at all; the same items, start and settings give
bit-equal weights on a CPU, also when the step was killed anywhere and run again.

Not here: the loop (`loop`) and the loss (`objective`).
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from ..base import Progress, Report
from ..settings import TrainingSettings

if TYPE_CHECKING:
    from .loop import Evaluate
    from .objective import Objective

Item = TypeVar("Item")


def run_step(
    items: Sequence[Item],
    objective: Objective[Item],
    *,
    settings: TrainingSettings,
    start: str,
    out: str,
    data: str,
    record: Mapping[str, Any],
    dropped: Mapping[str, int],
    kept: int | None = None,
    metrics: Mapping[str, float] | None = None,
    progress: Progress | None = None,
    evaluate: Evaluate | None = None,
) -> Report:
    """Train on items and save the new policy at `out`.

    Args:
        data: hash of all that the items were made from.
        record: what else decides the result (the algorithm and its settings); it goes into
            training.json too.
        dropped: what was left out, by reason.
        kept: how many trajectories or pairs the items are; None: one each.
        metrics: known before training (counts, reward moments); they join the report's.

    Raises:
        ConfigError: `start` is not a model that can be trained here.
        LearnerError: the loss stopped being finite.
        CheckpointCorrupt: the checkpoint of this very run is damaged.
        StorageFailed: the disk refused a write; checkpoints before it are intact.
        RunLocked: an evolution step that was given up still works on `out`.
    """
    from ..model.adapters import carried_from
    from .checkpoint import CARRIED, hash_adapter, hash_file, hash_model
    from .directories import atomic_directory, claimed
    from .loop import Training
    from .processes import Processes

    adapter = settings.lora.adapter if settings.lora is not None else ""
    beside = carried_from(start, settings.lora) if adapter and settings.carry_optimiser else None
    moments = beside / CARRIED if beside is not None else None
    made_by: dict[str, Any] = {
        **record,
        "data": data,
        "start": {"path": start, "hash": hash_model(start)},
        "adapter": hash_adapter(adapter) if adapter else "",
        "moments": hash_file(moments) if moments is not None and moments.is_file() else "",
        "settings": msgspec.to_builtins(settings),
    }
    processes = Processes.current()
    # Of several processes the first claims the directory, and the others come after.
    with claimed(f"{out}.training") if processes.first else nullcontext() as mine:
        processes.wait()
        training = Training(
            items,
            settings,
            objective=objective,
            start=start,
            work=mine or Path(f"{out}.training"),
            fingerprint=_fingerprint(made_by),
        )
        figures = {**(metrics or {}), **training.run(progress, evaluate)}
        made_by |= {
            "metrics": figures,
            "kept": len(items) if kept is None else kept,
            "dropped": dict(dropped),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("rollwave", "torch", "transformers")},
            },
        }
        with atomic_directory(out) if processes.first else nullcontext() as draft:
            training.save(draft)
            if draft is not None:
                text = msgspec.json.format(msgspec.json.encode(made_by, order="sorted"), indent=2)
                (draft / "training.json").write_bytes(text + b"\n")
        if processes.first:
            training.clear()
        processes.wait()
    return Report(figures, made_by["kept"], dict(dropped))


def _fingerprint(made_by: Mapping[str, Any]) -> str:
    """Hash what decides the result: not where the start lies, when it is checkpointed, or in how
    many parts it is held."""
    what = _lasting({**made_by, "start": made_by["start"]["hash"]})
    return blake2b(msgspec.json.encode(what, order="sorted"), digest_size=16).hexdigest()


def _lasting(value: Any) -> Any:
    """Settings, at whatever depth, without those of checkpoints and shards."""
    if not isinstance(value, Mapping):
        return value
    free = ("checkpoint_", "shard")
    return {k: _lasting(v) for k, v in value.items() if not k.startswith(free)}
