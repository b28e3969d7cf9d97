"""Every estimator on turns with observations between, against plain Python; who is comparable."""

from __future__ import annotations

from statistics import fmean, stdev

import pytest

torch = pytest.importorskip("torch", reason="advantages are tensors")

from rollwave.learners.base import Sample  # noqa: E402
from rollwave.learners.gradients.grpo import comparable, token_advantages  # noqa: E402
from rollwave.learners.gradients.rollouts import Rollout, Rollouts, padded  # noqa: E402
from rollwave.learners.settings import GrpoSettings  # noqa: E402

DISCOUNT = 0.5


def rollout(task: str, seen: str, tokens: tuple[int, ...], reward: float) -> Rollout:
    """Two tokens of observation before each turn, one after the last; `seen` names the sights."""
    turns: list[int] = []
    for number, count in enumerate(tokens):
        turns += [-1, -1] + [number] * count
    turns.append(-1)
    mask = bytes(turn >= 0 for turn in turns)
    rewards = torch.zeros(len(turns))
    rewards[mask.rindex(1)] = reward
    return Rollout(
        sample=Sample("x", list(range(len(turns))), mask, [0.0] * len(turns)),
        reward=reward,
        rewards=rewards,
        turns=torch.tensor(turns),
        group=("e-v1", task),
        observations=tuple(seen),
        temperature=1.0,
        overlong=False,
    )


WAVE = (
    rollout("t", "abc", (1, 2, 1), 0.3),
    rollout("t", "ab", (2, 1), 1.0),
    rollout("t", "adb", (1, 1, 2), 0.1),
    rollout("u", "aa", (1, 1), 0.5),  # the same sight twice, and as in another task
    rollout("u", "a", (3,), 0.9),
)


def made(**settings) -> list[float]:
    """Ours, at all action tokens of the wave; there is nothing elsewhere."""
    rewards = padded([item.rewards for item in WAVE])
    mask = padded([item.actions for item in WAVE])
    found = token_advantages(WAVE, rewards, mask, GrpoSettings(**settings))
    assert not found[~mask].any()
    return [float(value) for value in found[mask]]


def attempts(item: Rollout) -> list[float]:
    return [other.reward for other in WAVE if other.group == item.group]


def spread(values: list[float]) -> list[float]:
    """One value a rollout, at each of its action tokens."""
    return [v for item, v in zip(WAVE, values, strict=True) for t in item.turns if t >= 0]


def white(values: list[float]) -> list[float]:
    return [(v - fmean(values)) / stdev(values) for v in values]


def to_go(rewards: list[float]) -> list[float]:
    running, behind = 0.0, []
    for reward in reversed(rewards):
        running = reward + DISCOUNT * running
        behind.append(running)
    return behind[::-1]


CENTRED = [item.reward - fmean(attempts(item)) for item in WAVE]


@pytest.mark.parametrize(
    ("estimator", "rule"),
    [
        ("grpo", lambda r, of: (r - fmean(of)) / (stdev(of) + 1e-6)),
        ("dr_grpo", lambda r, of: r - fmean(of)),
        ("rloo", lambda r, of: r - (sum(of) - r) / (len(of) - 1)),
        ("maxrl", lambda r, of: (r - fmean(of)) / fmean(of)),
    ],
)
def test_a_groups_advantage_stands_at_every_action_token(estimator, rule):
    expected = spread([rule(item.reward, attempts(item)) for item in WAVE])
    assert made(estimator=estimator) == pytest.approx(expected, abs=1e-5)


def test_reinforce_pp_whitens_the_returns_of_all_tokens_of_the_wave():
    returns: list[float] = []
    for item in WAVE:
        returns += to_go(item.rewards[item.actions].tolist())
    found = made(estimator="reinforce_pp", discount=DISCOUNT)
    assert found == pytest.approx(white(returns), abs=1e-5)
    # The broken form: every token but those of the last turn has the same, as if it earned 0.
    broken = made(estimator="reinforce_pp", discount=DISCOUNT, resets=True)
    early = {
        round(value, 5)
        for value, turn, last in zip(
            broken,
            [int(t) for item in WAVE for t in item.turns if t >= 0],
            spread([len(item.observations) - 1.0 for item in WAVE]),
            strict=True,
        )
        if turn < last
    }
    assert len(early) == 1


def test_its_baseline_form_whitens_what_is_left_of_the_groups_mean():
    found = made(estimator="reinforce_pp_baseline")
    assert found == pytest.approx(white(spread(CENTRED)), abs=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_gigpo_adds_what_a_turn_earned_beyond_others_at_the_same_sight_of_the_task(weight):
    returns = []
    for item in WAVE:
        paid = [0.0] * len(item.observations)
        paid[-1] = item.reward
        returns.append(to_go(paid))
    sights: dict[tuple, list[float]] = {}
    for item, earned in zip(WAVE, returns, strict=True):
        for seen, value in zip(item.observations, earned, strict=True):
            sights.setdefault((item.group, seen), []).append(value)
    expected = []
    for item, earned, episode in zip(WAVE, returns, CENTRED, strict=True):
        for turn in (int(t) for t in item.turns if t >= 0):
            others = sights[item.group, item.observations[turn]]
            step = earned[turn] - fmean(others) if len(others) > 1 else 0.0
            expected.append(episode + weight * step)
    found = made(estimator="gigpo", discount=DISCOUNT, step_weight=weight)
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "dropped"),
    [
        ({}, {"singleton": 1, "zero_variance": 2}),
        ({"zero_variance": "keep"}, {"singleton": 1}),
        ({"estimator": "reinforce_pp_baseline"}, {"singleton": 1, "zero_variance": 2}),
        ({"estimator": "gigpo"}, {"singleton": 1}),
        ({"estimator": "reinforce_pp"}, {}),
    ],
    ids=str,
)
def test_who_is_left_out_is_counted(settings, dropped):
    equal = [rollout("v", "a", (1,), 0.4), rollout("v", "b", (2,), 0.4)]
    alone = rollout("w", "a", (1,), 1.0)
    ready = comparable(Rollouts([*WAVE, *equal, alone], {}, {}), GrpoSettings(**settings))
    assert ready.dropped == dropped
    assert len(ready.items) == len(WAVE) + 3 - sum(dropped.values())
    if dropped:
        assert ready.figures == {"groups": 4.0, "useful_groups": 2.0}
