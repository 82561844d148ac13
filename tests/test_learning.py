"""Laws of what a run says while it learns from rewards: warnings where nothing is learned, the
progress line, the report, and what to type next."""

from __future__ import annotations

import json
import math

import pytest

from gptjax.observe import progress, report
from gptjax.observe.learning import PATIENCE, Learning, signs

GOOD = {
    "reward": 0.4,
    "pass_rate": 0.4,
    "flat_groups": 0.5,
    "unfinished": 0.1,
    "sampler_gap": 1e-6,
    "entropy": 0.5,
}
SIGNS = {
    "answers": 4,
    "new_tokens": 5,
    "peak": 3e-4,
    "compared": True,
    "most_gap": 1e-2,
}


class Lines(list):
    """A log that keeps what is said."""

    say = list.append


def said(steps: list[dict[str, float]], **settings) -> Lines:
    log = Lines()
    learning = Learning(log, signs(**SIGNS | settings))
    for done, values in enumerate(steps, start=1):
        learning.show(done, values)
    return log


@pytest.mark.parametrize(
    "bad, patience, flag",
    [
        ({"flat_groups": 1.0}, PATIENCE, "--rollout.answers 16"),
        ({"unfinished": 1.0}, 3, "--rollout.new-tokens 10"),
        ({"sampler_gap": 0.02}, 1, "--model.compute float32"),
        ({"entropy": 1e-3}, PATIENCE, "--optim.peak 0.0001"),
        ({"reward": math.nan, "pass_rate": math.nan, "flat_groups": 1.0}, 1, "rollout.rewards"),
    ],
)
def test_a_sign_that_nothing_is_learned_is_said_once_in_a_line_with_its_flag(bad, patience, flag):
    lines = said([GOOD] * 2 + [GOOD | bad] * 30)
    assert len(lines) == 1 and flag in lines[0] and "\n" not in lines[0]
    assert lines[0].startswith(f"warning: step {2 + patience}:")
    alternating = [GOOD | bad] * (patience - 1) + [GOOD]
    assert said(alternating * 5) == []  # a step without the sign begins again


def test_what_is_no_failure_is_not_warned_of():
    assert said([GOOD] * 30) == []
    assert said([{"loss": 2.0}] * 30) == []  # no rollouts
    assert said([GOOD | {"flat_groups": 1.0}] * 30, compared=False) == []
    assert said([GOOD | {"entropy": 1e-3, "pass_rate": 0.99}] * 30) == []  # it knows the answers
    assert said([GOOD | {"sampler_gap": 0.02}] * 30, most_gap=0.1) == []


def test_the_progress_line_shows_reward_and_right_answers():
    usual = {"learning_rate": 1e-4, "gradient_norm": 2.6, "tokens_per_second": 3787.0, "eta": 92.0}
    line = progress.progress_line(
        88, 500, loss=-0.0018, smoothed=0.365, reward=0.371, right=0.371, **usual
    )
    assert "reward 0.371 (0.365)  right 37%  loss -0.002" in line and len(line) <= 100


def test_the_report_charts_reward_and_right_answers_in_place_of_the_loss(tmp_path):
    def page(rewards: list[float]) -> str:
        lines = [
            {"step": n + 1, "loss": -1e-3 * n, "reward": reward, "pass_rate": n / 40}
            for n, reward in enumerate(rewards)
        ]
        lines[-1] |= {
            "validation_loss": -0.7,
            "validation_reward": 0.7,
            "validation_pass_rate": 0.5,
        }
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        return report.write_run_report(tmp_path, {}).read_text(encoding="utf-8")

    both = page([n / 80 for n in range(40)])
    assert "nats per" not in both
    places = [both.index(f"<figcaption>{title}<") for title in ("Reward", "Right answers", "Loss")]
    assert places == sorted(places) and places[2] > both.index('multiples">')
    for name in ("reward", "pass rate", "validation reward"):
        assert f"<figcaption>{name.capitalize()}</figcaption>" not in both
    assert "held-out 0.7000 at step 40" in both and "held-out 0.5000 at step 40" in both
    alone = page([n / 40 for n in range(40)])  # the reward is whether it is right
    assert "<figcaption>Reward<" not in alone and "<figcaption>Right answers<" in alone
