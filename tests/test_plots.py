import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from rlalign.report.plots import draw_plots, read_metrics, reward_names, running_mean, series


def metrics(path: Path, iterations: int, rewards: list[str], adaptive: bool = False) -> Path:
    rows = [{"iteration": 0, "samples": 0, "eval/score": 0.5, "eval/score_se": 0.1}]
    for step in range(1, iterations + 1):
        row = {"iteration": step, "samples": 32 * step, "score": step / 9, "score/std": 0.5}
        row |= {"kl/ref": step / 5, "kl/coef": 0.1 + 0.01 * step * adaptive, "length": 28.0}
        row |= {"tokens_per_second": 130.0, "time/total": 3.0}
        row |= {f"time/{phase}": 0.7 for phase in ("generate", "score", "prepare", "update")}
        row |= {f"reward/{name}": step / 10 for name in rewards}
        row |= {f"reward/{name}/valid": 1.0 for name in rewards}
        if step % 5 == 0:
            row |= {"eval/score": step / 9, "eval/score_se": 0.1, "eval/kl": 1.0, "eval/kl_se": 0.2}
        rows.append(row)
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def is_picture(path: Path) -> bool:
    pixels = imread(path)
    return min(pixels.shape[:2]) > 300 and float(np.std(pixels)) > 0.01


@pytest.mark.parametrize(("iterations", "adaptive"), [(1, False), (40, True), (200, False)])
def test_a_run_becomes_pictures(tmp_path, iterations, adaptive):
    path = metrics(tmp_path / "metrics.jsonl", iterations, ["a", r"$\frac{$", "c"], adaptive)
    written = draw_plots(path, tmp_path / "plots")
    expected = {"score", "kl", "lengths", "rewards", "speed", "overview"}
    assert {file.stem for file in written} == expected
    assert all(is_picture(file) for file in written)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_any_number_of_rewards_has_its_pictures(tmp_path, count):
    path = metrics(tmp_path / "m.jsonl", 3, [f"reward {i}" for i in range(count)])
    assert is_picture(tmp_path / "rewards.png") if draw_plots(path, tmp_path) else False


def test_a_young_or_broken_run_draws_what_there_is(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("")
    assert draw_plots(path, tmp_path) == []
    path.write_text('{"iteration": 0, "eval/score": 1.0}\n{"iteration": 1, "score": null}\n{"itera')
    assert draw_plots(path, tmp_path) == []
    path.write_text('{"iteration": 1, "score": 1.0}\n[]\n{"x": 1}\n')
    assert {file.name for file in draw_plots(path, tmp_path)} == {"score.png", "overview.png"}


def test_a_null_leaves_a_gap_in_its_own_series_only(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"iteration": 1, "reward/a": null, "reward/a/valid": 0, "reward/a/failed": 2, '
        '"reward/a/weight": 0.5, "reward/weight": 1}\n'
        '{"iteration": 2, "reward/a": 3}\n'
    )
    rows = read_metrics(path)
    assert [values.tolist() for values in series(rows, "reward/a")] == [[2.0], [3.0]]
    assert reward_names(rows) == ["a", "weight"]


def test_a_reward_that_never_applied_is_shown_as_one_all_the_same(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1, "score": 0.0, "reward/a/valid": 0.0}\n')
    assert reward_names(read_metrics(path)) == ["a"]
    assert draw_plots(path, tmp_path)


def test_a_running_mean_averages_the_neighbours_that_there_are():
    assert running_mean(np.array([1.0, 2.0, 6.0, 3.0]), 3).tolist() == pytest.approx(
        [1.5, 3.0, 11 / 3, 4.5]
    )
    assert not math.isnan(running_mean(np.ones(90), 3).sum())
