"""benchmarks/: what is counted, told and kept, without a model; and one run of all of it."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import floors, plan, tables
from benchmarks.__main__ import own_seconds
from benchmarks.floors import Shape
from benchmarks.settings import GRPO, OURS, PPO, ROOT, Job, Setting
from benchmarks.store import Store
from benchmarks.worker import has_reached, is_over

# One linear layer of 2 x 3 in each of two layers, a head of 2 x 5.
FULL = Shape(layers=2, linears=((2, 3),), head=(2, 5))
LORA = Shape(layers=2, linears=((2, 3),), head=(2, 5), lora=1)


def iteration(number: int, total: float = 1.0, score: float = 0.0, **more: Any) -> dict[str, Any]:
    row = {"generation": total / 2, "scoring": total / 4, "update": total / 4, "total": total}
    row |= {"tokens": 100.0, "score": score, "peak_mb": 512.0, "spent": number * total}
    return row | {"iteration": number} | more


def row_of(setting: Setting, iterations: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    row = {"table": "systems", "name": "LoRA", "repeat": 0, "status": "done", "floors": None}
    row |= {"setting": asdict(setting), "iterations": iterations, "load_average": 0.5}
    return row | more


# -- floors ----------------------------------------------------------------------------------------


def test_forward_flop_is_two_a_weight_and_token() -> None:
    # 7 tokens x 2 layers x 6 weights and 4 tokens x 10 weights of the head, two FLOP each.
    assert floors.forward_flop(FULL, tokens=7, head_tokens=4) == 2 * (7 * 2 * 6 + 4 * 10)
    # A (1, 2) and B (3, 1) are 5 weights more a layer.
    assert floors.forward_flop(LORA, 7, 4) == 2 * (7 * 2 * (6 + 5) + 4 * 10)
    assert floors.forward_flop(LORA, 7, 4, adapters=False) == floors.forward_flop(FULL, 7, 4)


def test_full_training_is_three_forwards_and_lora_two_and_its_adapters() -> None:
    forward = floors.forward_flop(FULL, 7, 4)
    assert floors.update_flop(FULL, 7, 4, epochs=2) == 2 * 3 * forward
    assert floors.update_flop(LORA, 7, 4, epochs=2) == 2 * (2 * forward + 3 * 2 * 7 * 2 * 5)


def test_live_rows_are_those_that_a_step_behind_the_prompt_still_carries() -> None:
    assert floors.live_rows([3, 1, 2]) == [2, 1]  # the first tokens come from the prompt's pass
    assert floors.live_rows([1, 1]) == []


def test_shapes_are_those_of_the_models_own_linears() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    shape = floors.shape_of(config, lora=None)
    layer = LlamaForCausalLM(config).model.layers[0]
    weights = [m.weight for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    assert sorted(shape.linears) == sorted((w.shape[1], w.shape[0]) for w in weights)
    assert shape.head == (8, 11)


def test_time_between_measured_points_lies_on_a_line() -> None:
    points = {1: 10.0, 5: 18.0}
    assert [floors.interpolate(points, x) for x in (0, 1, 3, 5, 9)] == [10, 10, 14, 18, 18]


@pytest.mark.parametrize("shape", [FULL, LORA])
def test_floors_add_up(shape: Shape) -> None:
    found = floors.measure(shape, torch.float32, prompts=[2, 2], responses=[3, 1], epochs=2)
    parts = found["generation"] + found["scoring"] + found["update"]
    assert found["total"] == pytest.approx(parts)
    assert min(found.values()) > 0


# -- tables ----------------------------------------------------------------------------------------


def test_the_first_iteration_warms_up_and_does_not_count() -> None:
    row = row_of(Setting(), [iteration(1, 9.0), iteration(2, 2.0), iteration(3, 4.0)])
    assert tables.middle(row, "total") == 3.0
    assert tables.spread(row) == "2.00-4.00"
    alone = row_of(Setting(), [iteration(1, 9.0)])
    assert tables.middle(alone, "total") == 9.0


def test_ratio_is_to_the_mean_of_ours_before_and_after_with_gc_and_without() -> None:
    rows = [
        row_of(Setting(), [iteration(1, 1.0)]),
        row_of(Setting(system=PPO), [iteration(1, 9.0, gc=3.0)]),
        row_of(Setting(), [iteration(1, 2.0)], repeat=1),
    ]
    table = tables.systems(rows)
    lines = [dict(zip(table.head, line, strict=True)) for line in table.body[1:]]
    assert [line["ours x"] for line in lines] == ["0.67", "6.00 (4.00)", "1.33"]
    assert lines[1]["total s"] == "9.00 (6.00)"
    assert lines[2]["system"].strip() == "rlalign (again)"


def test_a_row_that_failed_says_so_and_has_no_numbers() -> None:
    table = tables.systems([row_of(Setting(system=GRPO), [], status="failed")])
    assert table.body == [["LoRA"], ["  TRL GRPO: failed"]]
    assert "TRL GRPO: failed" in tables.text(table)
    assert tables.markdown(table).count("failed") == 1


def test_a_machine_without_bf16_units_says_so_once_a_setting() -> None:
    rows = [row_of(Setting(), [iteration(1)], name="LoRA, float32")]
    assert tables.systems(rows, has_bfloat16=False).body[-1] == ["LoRA, bfloat16: no bf16 units"]
    assert len(tables.systems(rows, has_bfloat16=True).body) == 2


def test_numbers_stand_to_the_right_and_words_to_the_left() -> None:
    table = tables.Table("T", ["name", "s"], [["a", "1"], ["heading in the table"], ["bc", "10"]])
    lines = tables.text(table).splitlines()
    assert lines[2:7] == ["name   s", "--------", "a      1", "heading in the table", "bc    10"]


def test_systems_fit_a_terminal_of_120_columns() -> None:
    long = [iteration(i, 123.4, gc=11.1) for i in (1, 2, 3)]
    rows = [row_of(Setting(system=s), long, floors={"total": 1.0}) for s in (OURS, PPO, GRPO)]
    assert max(map(len, tables.text(tables.systems(rows)).splitlines())) <= 120


# -- the race to a score ---------------------------------------------------------------------------


def test_a_score_counts_once_a_whole_window_has_it() -> None:
    setting = Setting(target=1.0, window=2, iterations=10)
    assert not has_reached([5.0], setting)
    assert not has_reached([0.0, 1.9], setting)
    assert has_reached([0.0, 0.5, 1.5], setting)
    assert not has_reached([9.0, 9.0], Setting())


def test_a_run_ends_by_score_by_time_or_by_iterations() -> None:
    setting = Setting(target=1.0, window=1, iterations=3, seconds=10.0)
    assert is_over([1.0], 0.0, setting)
    assert is_over([0.0], 10.0, setting)
    assert is_over([0.0, 0.0, 0.0], 0.0, setting)
    assert not is_over([0.0], 9.9, setting)


def race(system: str, scores: list[float]) -> dict[str, Any]:
    setting = Setting(system=system, target=1.0, window=1)
    found = [iteration(i + 1, 1.0, score) for i, score in enumerate(scores)]
    return row_of(setting, found, table="score", name="seed 0")


def test_who_does_not_arrive_in_five_times_our_time_is_marked() -> None:
    rows = [race(OURS, [0.0, 1.0]), race(PPO, [0.0] * 10), race(GRPO, [0.0, 0.0, 0.0, 1.0])]
    lines = [dict(zip(tables.score(rows).head, x, strict=True)) for x in tables.score(rows).body]
    assert [line["ours x"] for line in lines] == ["1.00", ">5x", "2.00"]
    assert [line["samples"] for line in lines] == ["64", ">320", "128"]
    assert tables.score([race(OURS, [0.0, 1.0]), race(PPO, [0.0] * 3)]).body[1][-1] == ">1.5x"


def test_others_are_stopped_at_five_times_our_seconds(tmp_path: Path) -> None:
    store = Store(tmp_path / "x.json")
    own = Job("score", "seed 0", Setting(target=1.0, window=1))
    other = Job("score", "seed 0", Setting(system=PPO, target=1.0, window=1))
    assert own_seconds(other, store) is None
    assert plan.with_cut_off(other, None, room=1e9) == other
    found = [iteration(1, 3.0, 1.0), iteration(2, 3.0, 1.0)]  # what follows does not count
    store.add(own, {"status": "done", "iterations": found})
    cut = plan.with_cut_off(other, own_seconds(other, store), room=1e9)
    assert cut.setting.seconds == 15.0
    assert cut.key == other.key  # or a resumed run would do it again
    assert plan.with_cut_off(own, 3.0, room=1e9) == own


def test_a_race_takes_what_time_is_left_if_it_is_twice_ours() -> None:
    other = Job("score", "seed 0", Setting(system=PPO, target=1.0))
    for left, seconds in ((400.0, 400.0), (900.0, 500.0), (150.0, 500.0)):
        cut = plan.with_cut_off(other, 100.0, room=plan.START + left)
        assert cut.setting.seconds == seconds


# -- what is kept ----------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_with_the_rows_that_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    done, cut, other = (Job("systems", name, Setting()) for name in ("a", "b", "c"))
    first = Store(path)
    first.started({"cpu": "some"})
    first.add(done, {"status": "done", "iterations": []})
    first.add(cut, {"status": "cut short", "iterations": []})
    again = Store(path)
    again.started({"cpu": "some"})
    assert [again.has(job) for job in (done, cut, other)] == [True, False, False]
    again.add(cut, {"status": "done", "iterations": []})
    assert [(row["name"], row["run"]) for row in Store(path).rows] == [("a", 0), ("b", 1)]


def test_another_setting_or_repeat_is_another_row(tmp_path: Path) -> None:
    store = Store(tmp_path / "x.json")
    store.add(Job("systems", "a", Setting()), {"status": "done", "iterations": []})
    assert not store.has(Job("systems", "a", Setting(samples=64)))
    assert not store.has(Job("systems", "a", Setting(), repeat=1))


def test_a_setting_survives_the_command_line() -> None:
    setting = Setting(lora=None, target=0.5, technique="compaction")
    assert Setting.from_json(setting.to_json()) == setting


# -- the plan --------------------------------------------------------------------------------------


def test_ours_runs_before_and_after_the_others() -> None:
    order = [job.setting.system for job in plan.jobs("systems", plan.Options())[:4]]
    assert order == [OURS, PPO, GRPO, OURS]


@pytest.mark.parametrize("full", [False, True])
def test_no_two_jobs_of_a_plan_share_a_row(full: bool) -> None:
    options = plan.Options(full=full, dtypes=("float32", "bfloat16"), has_bfloat16=True)
    keys = [job.key for table in plan.TABLES for job in plan.jobs(table, options)]
    assert len(keys) == len(set(keys))


@pytest.mark.prove
def test_ours_runs_from_end_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--systems=rlalign", "--threads=1"]
    out = tmp_path / "quick.json"
    done = subprocess.run([*command, f"--out={out}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["table"] for row in Store(out).rows} == set(plan.TABLES)
    assert out.with_suffix(".png").is_file() and out.with_suffix(".md").is_file()
