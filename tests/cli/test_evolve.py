"""`rollwave evolve` around the campaign: its config, its table, its figure, its JSON."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rollwave.actors.backends.head_sizes import vllm_on_cpu
from rollwave.actors.config import CampaignConfig
from rollwave.actors.evaluator import Evaluation, wilson
from rollwave.actors.report import CampaignResult, Row
from rollwave.actors.wave_figures import WaveFigures
from rollwave.cli import evolve as command
from rollwave.cli.campaign_tables import in_short
from rollwave.cli.figures import draw_campaign
from rollwave.cli.main import main
from rollwave.cli.output import Output
from rollwave.engine.store import Store

ON_A_CPU = pytest.mark.skipif(
    not (find_spec("vllm") and vllm_on_cpu()), reason="needs vLLM's build for CPUs"
)
DEMO = Path(__file__).parents[2] / "examples" / "demo.toml"


def evaluation(name: str, successes: int, n: int = 200) -> Evaluation:
    rate = successes / n
    return Evaluation(
        env=name,
        episodes=n,
        tasks=n,
        outcomes={"success": successes, "truncated": n - successes},
        faults={},
        success_rate=rate,
        interval=wilson(successes, n),
        average_reward=rate,
        average_reward_scored=rate,
        turns=9 * n,
        turns_mean=9.0,
        format_errors=0.0,
        truncated=1 - rate,
    )


def result(out: Path, *, tested: bool = True) -> CampaignResult:
    def row(arm: str, wave: int, successes: int) -> Row:
        test = evaluation("test", successes) if tested else None
        dev = evaluation("dev", successes // 2, 100)
        return Row(arm, wave, wave, 80 + 120 * wave, 600 * wave, 40, dev, test, f"m/{arm}-{wave}")

    rows = (
        row("evolution", 0, 60),
        row("evolution", 1, 90),
        row("evolution", 2, 80),
        row("control", 1, 66),
        row("control", 2, 70),
    )
    return CampaignResult(rows, 1, "all 2 waves were run", 12345, str(out))


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The campaign itself replaced by its result; what it was asked is noted."""
    asked: dict[str, Any] = {}

    async def campaign(config: CampaignConfig, out: Path, watch: Any) -> CampaignResult:
        asked.update(config=config, out=out)
        out.mkdir(parents=True)
        return result(out)

    monkeypatch.setattr(command, "run_campaign", campaign)
    return asked


def test_it_ends_with_a_table_a_figure_and_the_paths(
    played: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert main(["evolve", str(DEMO), "--out", str(out), "--set", "run.seed=3"]) == 0
    shown = capsys.readouterr().out
    assert played["out"] == out
    assert played["config"].run.seed == 3
    assert "evolution *" in shown
    assert "45.0%" in shown
    assert "m/evolution-1" in shown
    figure = out / "figures" / "success.png"
    assert str(figure) in shown
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_json_is_the_whole_report(
    played: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["evolve", str(DEMO), "--out", str(tmp_path / "run"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    keys = {"rows", "best", "stopped", "turns", "out", "unused", "seconds", "figure"}
    assert set(report) == keys
    assert report["rows"][1]["test"]["success_rate"] == 0.45
    assert report["best"] == 1


def test_the_demo_has_a_control_and_splits_apart(
    played: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evolve", str(DEMO), "--out", str(tmp_path / "run")]) == 0
    config = played["config"]
    assert config.control.enabled
    trained = {config.experts.split, config.rollout.split}
    assert not trained & {config.evaluate.dev_split, config.evaluate.test_split}
    capsys.readouterr()


@pytest.mark.parametrize(
    ("override", "culprit"),
    [
        ("learner.mergee='none'", "mergee"),
        ("learner.merge='both'", "merge"),
        ("evaluate.dev_split='train'", "dev_split"),
        ("rollout.attempts=0", "rollout.attempts"),
        ("nonsense", "nonsense"),
        ("environment.id='maze-gird-v1'", "maze-grid-v1"),
        ("rollout.tasks=999999", "999999"),
        ("model={path='models/none'}", "models/none"),
        pytest.param(
            "model.tiny={width=64, heads=4}", "model.tiny has heads of size 16", marks=ON_A_CPU
        ),
    ],
)
def test_a_config_that_cannot_work_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, override: str, culprit: str
) -> None:
    assert main(["evolve", str(DEMO), "--out", str(tmp_path / "run"), "--set", override]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert culprit in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


RUN_JSON = '{"format": %d, "created": "2026-01-01", "settings": {}}'


def refused(out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the campaign itself in a directory where it cannot; give its one line."""
    assert main(["evolve", str(DEMO), "--out", str(out)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert out.name in line
    return line


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (RUN_JSON % 0, "has format 0, this version of Rollwave reads 1: use the version that"),
        (RUN_JSON % 99, "has format 99"),
        ('{"format": 1, "cre', "is not a run's: "),
        ("\0" * 40, "is not a run's: "),
        (RUN_JSON % 1, "holds a run of another command, no campaign: choose another --out"),
    ],
)
def test_a_run_of_another_version_or_kind_is_refused_and_left_as_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, complaint: str
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_text(content)
    assert complaint in refused(out, capsys)
    assert (out / "run.json").read_text() == content
    assert not (out / "models").exists()


def test_what_is_no_run_at_all_is_refused_and_left_as_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("thesis")
    assert "is a file, not a run directory" in refused(tmp_path / "file", capsys)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("")
    assert "holds other files (thesis.txt)" in refused(tmp_path / "folder", capsys)
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["thesis.txt"]


def test_a_rollouts_run_is_no_campaign(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["rollout", "--env", "maze-v1", "--limit", "1", "--out", str(out)]) == 0
    capsys.readouterr()
    assert "holds a run of another command" in refused(out, capsys)


def test_a_read_only_place_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def read_only(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr("rollwave.engine.store.os.open", read_only)
        line = refused(tmp_path / "run", capsys)
    assert "Read-only file system" in line
    assert "choose another --out directory" in line


def test_a_second_process_is_refused_by_name_and_the_first_goes_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, lock = tmp_path / "run", tmp_path / "run" / "lock"
    code = (
        "import sys\n"
        "from rollwave.engine.store import Store\n"
        "from rollwave.cli import evolve\n"
        "async def campaign(config, out, watch):\n"
        "    with Store.open(out, settings={'a': 'b'}):\n"
        "        print('open', flush=True)\n"
        "        sys.stdin.read()\n"
        "evolve.run_campaign = campaign\n"
        "from rollwave.cli.main import main\n"
        "main(sys.argv[1:])"
    )
    words = ["evolve", str(DEMO), "--out", str(out)]
    first = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "open\n"
        line = refused(out, capsys)
        assert f"is being written by process {first.pid}: wait for it, stop it" in line
        assert lock.read_text() == f"{first.pid}\n"
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate(timeout=60)
    # The lock has died with its process, though the file is still there.
    with Store.open(out):
        assert lock.exists()


@pytest.mark.parametrize(
    ("text", "culprit"), [("[run", "not TOML"), ("", "environment"), ("\xff", "config")]
)
def test_a_file_that_is_no_config_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, culprit: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(text.encode("latin-1"))
    assert main(["evolve", str(path), "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert "config.toml" in err
    assert culprit in err


def test_a_figure_without_test_tasks_shows_dev(tmp_path: Path) -> None:
    path = draw_campaign(result(tmp_path, tested=False), tmp_path / "f" / "success.png")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of what is drawn, in place of a file."""
    figures = pytest.importorskip("matplotlib.figure")
    axes: list[Any] = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, _: axes.extend(self.axes))
    return axes


def lines(axes: Any) -> dict[str, list[float]]:
    """Where the points of each named line stand."""
    handles, labels = axes.get_legend_handles_labels()
    found = dict(zip(labels, handles, strict=True))
    return {
        label: [float(x) for x in (h.lines[0] if hasattr(h, "lines") else h).get_xdata()]
        for label, h in found.items()
    }


def test_what_was_explored_stands_at_the_policy_that_played_it(
    drawn: list[Any], tmp_path: Path
) -> None:
    draw_campaign(long(tmp_path, 10), tmp_path / "success.png")
    (axes,) = drawn
    found = lines(axes)
    assert found["the same policy, exploring training tasks"] == list(range(10))
    assert found["each wave's policy, greedy"] == [0, 5, 10]
    assert found["chosen by dev tasks"] == [5]
    assert axes.get_xlabel() == "wave (0: before training)"  # perhaps a trained model's


def cloning(out: Path) -> CampaignResult:
    found = result(out)
    return CampaignResult(found.rows[:1], 0, "no wave was asked for", 1, str(out))


def test_cloning_alone_shows_its_losses_beside_its_one_policy(
    drawn: list[Any], tmp_path: Path
) -> None:
    step = {"kind": "step", "stage": "policy-0000", "global_step": 1}
    records = [
        {"kind": "config", "settings": {"a": "b"}},
        step | {"step": 1, "metrics": {"loss": 2.0}},
        step | {"step": 2, "metrics": {"loss": None}},  # was not finite
        step | {"step": 3, "metrics": {"loss": 1.5}},
        {"kind": "row", "wave": 0, "metrics": {"dev/success_rate": 0.5}},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    draw_campaign(cloning(tmp_path), tmp_path / "success.png", "bc: mazes")
    losses, success = drawn
    (curve,) = losses.get_lines()
    assert list(curve.get_xdata()) == [1, 3]
    assert list(curve.get_ydata()) == [2.0, 1.5]
    assert success.get_xlabel() == "wave (0: cloned from experts)"
    inside = [tick for tick in success.get_xticks() if -0.5 <= tick <= 0.5]
    assert inside == [0]
    assert success.get_figure().get_suptitle().startswith("bc: mazes\n200 tasks")


@pytest.mark.parametrize("held", [None, b"torn", b'{"kind": "config"}\n'])
def test_cloning_whose_losses_are_gone_is_drawn_without_them(
    drawn: list[Any], tmp_path: Path, held: bytes | None
) -> None:
    if held is not None:
        (tmp_path / "metrics.jsonl").write_bytes(held)
    draw_campaign(cloning(tmp_path), tmp_path / "success.png")
    assert len(drawn) == 1


def test_a_campaign_is_summed_up_in_a_sentence(tmp_path: Path) -> None:
    text = "success on 200 held-out test tasks: 30.0% cloned from experts"
    assert in_short(cloning(tmp_path)) == text
    found = result(tmp_path)
    assert in_short(found) == f"{text}, 45.0% after wave 1, which dev tasks chose"
    assert in_short(replace(found, best=0)) == f"{text}; no later policy did better on dev tasks"
    text = in_short(result(tmp_path, tested=False))
    assert text.startswith("success on 100 dev tasks: 30.0% cloned from experts, 45.0% after")
    assert "before training" in in_short(long(tmp_path, 10))


def long(out: Path, waves: int) -> CampaignResult:
    """As policy gradients leave it: a hundred waves, every fifth evaluated."""

    def row(wave: int) -> Row:
        shown = wave % 5 == 0
        figures = WaveFigures(
            episodes=32,
            turns=160,
            turns_mean=5.0,
            success={"maze-grid-v1?style=terse": wave / waves},
            average_reward=wave / waves,
            faults=0,
            tasks=8,
            tasks_solved=4,
            tasks_newly_solved=1,
            duplicates=2,
            groups_used=5,
            rounds=2,
            turn_limit=0,
            format_errors=0.0,
            entropy=1.25,
            staleness={0: 16, 1: 16},
        )
        return Row(
            "evolution",
            wave,
            wave,
            10 * wave,
            32 * wave,
            30,
            evaluation("dev", wave, 100) if shown else None,
            evaluation("test", 2 * wave) if shown else None,
            f"m/policy-{wave}",
            160 * wave,
            figures if wave else None,
            {"steps": 10.0, "loss": 0.125, "win": 7.0, "lose": 3.0, "logprob_mismatch": None},
            {"zero_variance": 2},
        )

    rows = tuple(row(wave) for wave in range(waves + 1))
    return CampaignResult(rows, waves - 5, f"all {waves} waves were run", 1, str(out), 64)


@pytest.mark.parametrize("waves", [5, 100])
def test_a_campaign_of_any_length_fits_on_a_screen_and_in_a_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], waves: int
) -> None:
    found = long(tmp_path, waves)
    path = draw_campaign(found, tmp_path / "f" / "success.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    command._print(found, Output(json=False), 1.0, path)
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) < 75
    for text in ("7/0/3", "2 zero_variance", "4 of 8", "0.5", "evolution *", "64 episodes"):
        assert text in shown
    assert "mismatch" not in shown  # nobody measured it
    assert ("rows; all of them are in report.json" in shown) == (waves > 24)
    assert f"m/policy-{waves - 5}" in shown
    found.write()
    assert json.loads((tmp_path / "report.json").read_text())["rows"][1]["figures"]["staleness"]


def test_an_interrupt_says_what_is_kept(tmp_path: Path) -> None:
    from rollwave.cli.evolve import _kept

    assert _kept(tmp_path / "run").startswith("nothing was kept yet")
    (tmp_path / "run").mkdir()
    assert f"kept in {tmp_path / 'run'}" in _kept(tmp_path / "run")
