"""The `rollwave` command: finds the command that was asked for, and turns its errors into lines.

Invariants:

* a `RollwaveError` ends as one line on standard error and exit code 2, Ctrl-C as
  a sentence of what was kept and exit code 130; any other exception is a defect
  of ours and keeps its traceback (exit code 1);
* only the module of the command that was asked for is imported, so that
  `rollwave --help` is quick and needs no extra.

Not here: what commands print (`output`, `progress`) and what they do (one file each).
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import typer

from .. import __version__
from ..engine.errors import RollwaveError
from .interrupt import Interrupted, leaves
from .output import complain

USAGE: Final = 2
"""Exit code when the arguments, settings or files given are wrong."""

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells count it: 128 + SIGINT."""

PLAY: Final = "Play and measure"
LEARN: Final = "Learn"
LOOK: Final = "Look and check"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of `rollwave --help`, and how to get the command behind it."""

    summary: str
    panel: str
    attach: Callable[[typer.Typer], None]
    """Imports the command's module and registers it."""


def _rollout(app: typer.Typer) -> None:
    from .rollout import rollout

    app.command("rollout")(rollout)


def _evaluate(app: typer.Typer) -> None:
    from .evaluate import evaluate

    app.command("evaluate")(evaluate)


def _replay(app: typer.Typer) -> None:
    from .replay import replay

    app.command("replay")(replay)


def _simulate(app: typer.Typer) -> None:
    from .simulate import simulate

    app.command("simulate")(simulate)


def _bench(app: typer.Typer) -> None:
    from .bench import app as bench

    app.add_typer(bench, name="bench")


def _evolve(app: typer.Typer) -> None:
    from .evolve import evolve

    app.command("evolve")(evolve)


def _data(app: typer.Typer) -> None:
    from .data import app as data

    app.add_typer(data, name="data")


def _serve(app: typer.Typer) -> None:
    from .serve import serve

    app.command("serve")(serve)


def _inspect(app: typer.Typer) -> None:
    from .inspect import inspect

    app.command("inspect")(inspect)


def _envs(app: typer.Typer) -> None:
    from .envs import app as envs

    app.add_typer(envs, name="envs")


def _doctor(app: typer.Typer) -> None:
    from .doctor import doctor

    app.command("doctor")(doctor)


COMMANDS: Final[dict[str, Entry]] = {
    "rollout": Entry("Play episodes and keep their trajectories.", PLAY, _rollout),
    "evaluate": Entry("Play episodes and measure how good the policy is.", PLAY, _evaluate),
    "replay": Entry("Play recorded actions again and compare every observation.", PLAY, _replay),
    "simulate": Entry("Simulate a rollout on a virtual clock.", PLAY, _simulate),
    "bench": Entry("Measure the engine itself.", PLAY, _bench),
    "serve": Entry("Serve environments in AgentGym's protocol.", PLAY, _serve),
    "evolve": Entry("Evolve a policy, wave by wave, as a TOML file says.", LEARN, _evolve),
    "data": Entry("Convert, count, show and pair trajectories of files and runs.", LEARN, _data),
    "inspect": Entry("Read a run: its waves, outcomes and trajectories.", LOOK, _inspect),
    "envs": Entry("List the environments, and check their laws.", LOOK, _envs),
    "doctor": Entry("Say what is installed and what can run here.", LOOK, _doctor),
}


_ENGINE: Final = "rollwave-"
"""Begins the name of a thread that drives an engine (`actors.backends.threaded`)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: the words after `rollwave`; those of this process by default.
    """
    if arguments is None:
        # Thousands of live sessions are a million live objects; at its default pace the
        # cycle collector scans them over and over (half of the CPU at 10,000 sessions).
        # The process is ours alone, so its pace is ours to set; a library must not.
        gc.set_threshold(50_000, 20, 50)
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(build(_wanted(words)))
    code = 0
    try:
        try:
            command(args=words, prog_name="rollwave")
        except SystemExit as leaving:  # typer has shown its own usage errors by now
            code = leaving.code if isinstance(leaving.code, int) else 1
            if code == INTERRUPTED:  # typer has swallowed a KeyboardInterrupt
                raise KeyboardInterrupt from None
    # `except*` also catches what trio wrapped in exception groups.
    except* RollwaveError as errors:
        complain(str(next(leaves(errors))))
        code = USAGE
    except* Interrupted as errors:
        complain(f"interrupted: {next(leaves(errors))}")
        code = INTERRUPTED
    except* KeyboardInterrupt:
        complain("interrupted: what was finished before is kept, the rest is not")
        code = INTERRUPTED
    if arguments is None:
        _leave(code)
    return code


def build(wanted: str | None) -> typer.Typer:
    """Build the application with only the `wanted` command loaded; the rest are listed.

    None lists them all; "*" loads them all, as shell completion needs.
    """
    app = typer.Typer(
        add_completion=True,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",  # "rich" would take [brackets] in help texts for markup
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.callback()(_rollwave)
    for name, entry in COMMANDS.items():
        if wanted in {name, "*"}:
            entry.attach(app)
        else:
            app.command(name, help=entry.summary, rich_help_panel=entry.panel)(_unloaded)
    return app


def _rollwave(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_version, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    """Thousands of LLM-agent sessions under one supervisor, and a learner between the waves."""


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"rollwave {__version__}")
        raise typer.Exit


def _unloaded() -> None:
    """Stand in for a command that was not asked for; only its name and summary are shown."""


def _leave(code: int) -> None:
    """End this process now if a thread of an abandoned computation still runs.

    A thread inside torch or vLLM cannot be stopped, and the interpreter aborts (with
    SIGABRT) when it is torn down under one. All files are closed by then. Behind a command
    that went well only an engine can still be closing, on a machine too busy to wait for it.
    """
    threads = [t for t in threading.enumerate() if t is not threading.main_thread()]
    if any(code or thread.name.startswith(_ENGINE) for thread in threads):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wanted(words: Sequence[str]) -> str | None:
    """Name the command among the words: the first that is no option of `rollwave` itself."""
    if "_ROLLWAVE_COMPLETE" in os.environ:
        return "*"
    return next((word for word in words if not word.startswith("-")), None)


if __name__ == "__main__":
    sys.exit(main())
