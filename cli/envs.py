"""`rollwave envs list`, `rollwave envs check` and `rollwave envs new NAME`.

Invariant: `check` leaves with code 0 if every law holds, 1 if one is broken, and 2
if there is nothing to check.

Not here: how a check goes (`laws`), and the ids (`envs.registry`).
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..engine.errors import ConfigError, MissingDependency
from ..envs.base import EnvFamily, EnvSpec
from ..envs.registry import families, register, resolve
from .options import Json
from .output import Output

app = typer.Typer(no_args_is_help=True, help="List the environments, and check their laws.")


@app.command("list")
def list_environments(json: Json = False) -> None:
    """List every environment with its options, tasks and action format."""
    output = Output(json=json)
    rows = [_describe(family) for family in families()]
    output.table(
        ("id", "what it is", "options", "train", "dev", "test", "unseen", "turns", "format"),
        [
            (
                row["id"],
                row["summary"],
                " ".join(f"{key}={value}" for key, value in row["options"].items()),
                *(row["splits"].get(split, 0) for split in ("train", "dev", "test", "unseen")),
                row["turn_limit"],
                row["action_format"],
            )
            for row in rows
        ],
    )
    output.result({"environments": rows})


def _describe(family: EnvFamily) -> dict[str, Any]:
    """One row: the family with its options at their defaults."""
    spec = resolve(family.id)
    return {
        "id": family.id,
        "summary": family.summary,
        "options": dict(family.options),
        "splits": {split: len(members) for split, members in spec.splits.items()},
        "turn_limit": spec.turn_limit,
        "action_format": spec.action_format,
    }


@app.command()
def check(
    envs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ENV]...",
            help="Environment ids, or `module:NAME` for an EnvSpec or EnvFamily of your own.",
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every environment that `envs list` shows.")
    ] = False,
    over: Annotated[
        str,
        typer.Option(
            "--over",
            help="Transports, separated by commas: in-process, worker, http, batched; or all.",
        ),
    ] = "in-process",
    examples: Annotated[
        int, typer.Option("--examples", min=1, help="Episodes tried for each law.")
    ] = 100,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the search.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the JSON here as well.")
    ] = None,
    json: Json = False,
) -> None:
    """Search for actions that break a law of environments; print the fewest that do."""
    from .laws import check_all, transports

    names = envs or []
    if bool(names) is every:
        raise ConfigError("name the environments to check, or say --all")
    specs = {
        name: _here(name) if every else find(name)
        for name in ([family.id for family in families()] if every else names)
    }
    held = check_all(
        specs, transports(over), examples=examples, seed=seed, out=out, output=Output(json=json)
    )
    if not held:
        raise typer.Exit(1)


def _here(id: str) -> EnvSpec | str:
    """The environment, or why it cannot be had here."""
    try:
        return resolve(id)
    except MissingDependency as error:
        return str(error)


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case words with hyphens.")],
    out: Annotated[Path, typer.Option("--out", help="Directory of the two files.")] = Path(),
    json: Json = False,
) -> None:
    """Write a world of your own that keeps every law, and its test, to begin from."""
    from .skeleton import write

    output = Output(json=json)
    world, test = write(name, out)
    where = "" if out == Path() else f"cd {out} && "
    for line in (
        f"wrote {world} and {test}; next:",
        f"  {where}rollwave envs check {world.stem}:FAMILY",
        f"  {where}rollwave rollout --env {world.stem}:FAMILY --out runs/{name}",
        f"  {where}python -m pytest {test.name}",
    ):
        output.text(line)
    output.result({"files": [str(world), str(test)], "family": f"{world.stem}:FAMILY"})


def find(name: str) -> EnvSpec:
    """The spec of an id, or of `module:NAME?options` with modules of the working directory.

    Raises:
        ConfigError: there is no such module or name, or it is no environment.
    """
    module_name, colon, rest = name.partition(":")
    if not colon or rest.startswith("//"):
        return resolve(name)
    attribute, mark, options = rest.partition("?")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the working directory, as `python -m` has it
    try:
        found: Any = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{name}: no module {error.name!r} here or installed") from None
    except AttributeError:
        raise ConfigError(f"{name}: module {module_name} has no {attribute!r}") from None
    if isinstance(found, EnvSpec) and not mark:
        return found
    if isinstance(found, EnvFamily):
        register(found)
        return resolve(found.id + mark + options)
    raise ConfigError(
        f"{name} is a {type(found).__name__}; name an EnvFamily, or an EnvSpec without options"
    )
