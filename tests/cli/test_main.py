"""The frame of the command line: help, exit codes, errors as one line, Ctrl-C."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import typer
from rollwave import __version__
from rollwave.cli import main as cli
from rollwave.cli.interrupt import Interrupted, keeping, leaves
from rollwave.engine.errors import ConfigError, JournalCorrupt

Run = Callable[..., tuple[int, str, str]]
Put = Callable[[Callable[[], None]], None]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process and give (exit code, stdout, stderr)."""

    def call(*words: str) -> tuple[int, str, str]:
        code = cli.main(words)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Put:
    """Put a function behind the word `doctor`."""

    def put(function: Callable[[], None]) -> None:
        def attach(app: typer.Typer) -> None:
            app.command("doctor")(function)

        entry = cli.Entry("stand-in", cli.LOOK, attach)
        monkeypatch.setitem(cli.COMMANDS, "doctor", entry)

    return put


def raising(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


def test_help_lists_every_command(run: Run) -> None:
    code, out, err = run("--help")
    assert code == 0
    assert not err
    for name, entry in cli.COMMANDS.items():
        assert re.search(rf"\b{name}\b", out)
        assert entry.summary.split()[0] in out


def test_no_words_show_the_help_and_fail(run: Run) -> None:
    code, out, err = run()
    assert code == cli.USAGE
    assert "evolve" in out + err


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"rollwave {__version__}\n", "")


@pytest.mark.parametrize("words", [["rolout"], ["--nope"], ["doctor", "--nope"], ["inspect"]])
def test_wrong_words_are_usage_errors(run: Run, words: list[str]) -> None:
    code, out, err = run(*words)
    assert code == cli.USAGE
    assert not out
    assert "Usage: rollwave" in err


def test_a_misspelt_command_gets_a_hint(run: Run) -> None:
    assert "'rollout'" in run("rolout")[2]


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("learner.lr: 'fast' is no number;\n  give one like 1e-3"),
        ExceptionGroup("nursery", [ExceptionGroup("inner", [JournalCorrupt("offset 12")])]),
    ],
)
def test_our_errors_end_as_one_line(run: Run, command: Put, error: Exception) -> None:
    command(raising(error))
    code, out, err = run("doctor")
    assert code == cli.USAGE
    assert not out
    assert err.startswith("rollwave: ")
    assert err.count("\n") == 1
    assert " ".join(str(next(leaves(error))).split()) in err


def test_defects_keep_their_traceback(run: Run, command: Put) -> None:
    command(raising(ZeroDivisionError("a defect")))
    with pytest.raises(ZeroDivisionError):
        run("doctor")


def test_a_defect_beside_an_error_of_ours_is_not_hidden(run: Run, command: Put) -> None:
    command(raising(ExceptionGroup("nursery", [ConfigError("x"), ZeroDivisionError("a defect")])))
    with pytest.raises(ExceptionGroup) as caught:
        run("doctor")
    assert [type(e) for e in leaves(caught.value)] == [ZeroDivisionError]


def test_ctrl_c_says_what_was_kept(run: Run, command: Put) -> None:
    done = 3

    def function() -> None:
        nonlocal done
        with keeping(lambda: f"{done} of 9 trajectories are in runs/a"):
            try:
                raise BaseExceptionGroup("nursery", [KeyboardInterrupt()])
            finally:
                done = 4  # clean-up saved one more: the sentence counts it

    command(function)
    code, out, err = run("doctor")
    assert (code, out) == (cli.INTERRUPTED, "")
    assert err == "rollwave: interrupted: 4 of 9 trajectories are in runs/a\n"


def test_a_bare_ctrl_c_has_its_exit_code_too(run: Run, command: Put) -> None:
    command(raising(BaseExceptionGroup("nursery", [KeyboardInterrupt()])))
    code, _, err = run("doctor")
    assert code == cli.INTERRUPTED
    assert err.startswith("rollwave: interrupted")


def test_ctrl_c_in_a_real_process() -> None:
    """typer catches a plain KeyboardInterrupt itself; the sentence must come out all the same."""
    code = (
        "import sys, typer\n"
        "from rollwave.cli import main as cli\n"
        "def stop():\n    raise KeyboardInterrupt\n"
        "entry = cli.Entry('x', 'x', lambda app: app.command('doctor')(stop))\n"
        "cli.COMMANDS['doctor'] = entry\n"
        "sys.exit(cli.main(['doctor']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == cli.INTERRUPTED
    assert "rollwave: interrupted" in done.stderr
    assert "Traceback" not in done.stderr


def test_keeping_lets_other_errors_pass() -> None:
    with pytest.raises(ConfigError), keeping(lambda: "never said"):
        raise ConfigError("x")


def test_an_interrupt_outweighs_what_it_caught_in_mid_air() -> None:
    group = BaseExceptionGroup("nursery", [ConfigError("x"), KeyboardInterrupt()])
    with pytest.raises(Interrupted, match="all kept") as caught, keeping(lambda: "all kept"):
        raise group
    assert caught.value.__cause__ is group


def test_exit_codes_of_commands_pass_through(run: Run, command: Put) -> None:
    command(raising(typer.Exit(1)))
    assert run("doctor")[0] == 1


@pytest.mark.parametrize(
    ("name", "code", "left"),
    [
        ("rollwave-vllm", 0, True),  # an engine still closes: torn down under it we would abort
        ("rollwave-vllm", 2, True),
        ("Trio thread 0", 2, True),  # an abandoned computation
        ("Trio thread 0", 0, False),  # a cached thread that waits for work
    ],
)
def test_a_thread_that_cannot_be_stopped_does_not_spoil_the_exit_code(
    command: Put, monkeypatch: pytest.MonkeyPatch, name: str, code: int, left: bool
) -> None:
    command(raising(typer.Exit(code)))
    codes: list[int] = []
    monkeypatch.setattr(cli.os, "_exit", codes.append)
    monkeypatch.setattr(cli.sys, "argv", ["rollwave", "doctor"])
    monkeypatch.setattr(cli.gc, "set_threshold", lambda *_: None)
    running = threading.Event()
    thread = threading.Thread(target=running.wait, name=name, daemon=True)
    thread.start()
    others = [t for t in threading.enumerate() if t in (thread, threading.main_thread())]
    monkeypatch.setattr(cli.threading, "enumerate", lambda: others)
    try:
        assert cli.main() == code
    finally:
        running.set()
        thread.join()
    assert codes == ([code] if left else [])


def test_a_closed_pipe_is_no_traceback() -> None:
    """`rollwave inspect run | head` closes our standard output early."""
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m rollwave --help | true"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_loads_and_has_help(run: Run, name: str) -> None:
    code, out, _ = run(name, "--help")
    assert code == 0
    assert "--help" in out


def test_completion_knows_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_ROLLWAVE_COMPLETE", "complete_bash")
    group = typer.main.get_group(cli.build(cli._wanted([])))
    assert set(cli.COMMANDS) == set(group.commands)
    single = [command for command in group.commands.values() if not hasattr(command, "commands")]
    assert len(single) > 4
    assert all(command.params for command in single)
