import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_resume import run

from rlalign.metrics import (
    bootstrap,
    difference,
    distinct_n,
    mean_and_se,
    peak_memory_mb,
    perplexity,
)

# Keys of the page that a plain run does not write: kl.placement=loss writes this one.
ONLY_UNDER_A_SETTING = {"kl/loss", "reward/<name>/failed", "reward/<name>/weight"}
ONLY_UNDER_A_SETTING |= {"reward/<name>/log/<metric>"}  # with a reward that logs
ONLY_UNDER_A_SETTING |= {"audit/reward/<name>/rest"}  # with more rewards than one
ONLY_UNDER_A_SETTING |= {"target/lambda/<name>"}  # with moments
ONLY_UNDER_A_SETTING |= {  # under other methods
    *("dpg/divergence", "dpg/log_z", "dpg/ess", "dpg/ratio_max", "dpg/advantage_std"),
    *("dpg/loss", "dpg/gain", "dpg/replaced", "reinforce/loss", "reinforce/advantage_std"),
}
ONLY_UNDER_A_SETTING |= {"sampler_weight", "sampler_capped"}  # with a correction


def test_distinct_two_counts_different_pairs_over_all_pairs_of_all_texts():
    # the cat | cat sat || the cat | cat ran : 3 different of 4; none joins the two texts
    assert distinct_n(["The cat sat.", "the CAT, ran"], 2) == 3 / 4
    assert distinct_n(["The cat sat.", "the CAT, ran"], 1) == 4 / 6
    assert distinct_n(["it's it’s"], 1) == 1.0  # noqa: RUF001
    assert distinct_n(["one", "two", ""], 2) == 0.0


def test_distinct_n_looks_at_a_fixed_number_of_texts():
    texts = ["a b c", "a b c", "d e f"]
    assert distinct_n(texts, 2, count=1) == 1.0
    assert distinct_n(texts, 2, count=2) == 0.5
    with pytest.raises(ValueError, match="distinct-2 of 4 texts was asked for, and there are 3"):
        distinct_n(texts, 2, count=4)


def test_mean_and_standard_error_by_hand():
    mean, se = mean_and_se([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert se == pytest.approx(math.sqrt(5 / 3 / 4))
    assert mean_and_se([7.0])[0] == 7.0 and math.isnan(mean_and_se([7.0])[1])
    assert all(math.isnan(value) for value in mean_and_se([]))


def test_a_bootstrap_interval_of_a_mean_is_about_two_standard_errors_each_way():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400).tolist()
    mean, se = mean_and_se(values)
    low, high = bootstrap(values)
    assert low == pytest.approx(mean - 1.96 * se, abs=0.3 * se)
    assert high == pytest.approx(mean + 1.96 * se, abs=0.3 * se)
    assert bootstrap(values) == (low, high)
    assert bootstrap(values, seed=1) != (low, high)
    inner = bootstrap(values, level=0.5)
    assert low < inner[0] < inner[1] < high


def test_a_mean_is_drawn_from_sums_as_from_the_values_themselves():
    values, groups = [1.0, 2.0, 4.0, 8.0, 16.0], ["a", "a", "a", "b", "c"]  # of unequal sizes
    drawn = {"groups": groups, "level": 0.5}  # the outer ends are those of one group alone
    quick = bootstrap(values, **drawn)
    assert quick == pytest.approx(bootstrap(values, lambda x: float(np.mean(x)), **drawn))


def test_samples_of_one_prompt_count_as_one_draw():
    # 20 prompts with 10 equal samples each: the interval is that of 20 values, not of 200
    prompts = np.random.default_rng(2).normal(size=20)
    values, groups = np.repeat(prompts, 10).tolist(), np.repeat(np.arange(20), 10).tolist()
    low, high = bootstrap(values, groups=groups)
    alone = bootstrap(prompts.tolist())
    assert high - low == pytest.approx(alone[1] - alone[0], rel=0.05)
    naive = bootstrap(values)
    assert high - low > 2 * (naive[1] - naive[0])


def test_a_paired_difference_cancels_what_the_prompts_share():
    rng = np.random.default_rng(3)
    before = rng.normal(0.0, 5.0, size=100)
    after = before + 1.0 + rng.normal(0.0, 0.1, size=100)
    change, low, high = difference(before.tolist(), after.tolist(), paired=True)
    assert change == pytest.approx(1.0, abs=0.05) and low < change < high and high - low < 0.1
    change, low, high = difference(before.tolist(), after.tolist())
    assert low < 0 < change < high  # without the pairing one cannot tell
    with pytest.raises(ValueError, match="differ in number: 1 and 2"):
        difference([1.0], [1.0, 2.0], paired=True)


def test_a_paired_difference_counts_pairs_of_one_prompt_as_one_draw():
    # 20 prompts with 10 pairs each, which rise alike: the interval is that of 20 rises
    rises = np.random.default_rng(4).normal(size=20)
    before, after = [0.0] * 200, np.repeat(rises, 10).tolist()
    groups = np.repeat(np.arange(20), 10).tolist()
    change, low, high = difference(before, after, paired=True, groups=(groups, groups))
    alone = bootstrap(rises.tolist())
    assert change == pytest.approx(rises.mean())
    assert high - low == pytest.approx(alone[1] - alone[0], rel=0.05)


def test_an_unpaired_difference_draws_whole_prompts_too():
    before = [prompt - 1.0 for prompt in (0, 1, 2, 3) for _ in range(8)]
    after = [prompt + 0.0 for prompt in (0, 1, 2, 3) for _ in range(8)]
    prompts = [prompt for prompt in (0, 1, 2, 3) for _ in range(8)]
    change, low, high = difference(before, after, groups=(prompts, prompts))
    alone = difference(before, after)
    assert change == alone[0] == 1.0
    assert high - low > 2 * (alone[2] - alone[1])  # 4 draws in place of 32


def test_perplexity_of_a_uniform_choice_is_the_number_of_choices():
    logprobs = torch.full((2, 3), -math.log(8.0))
    logprobs[1, 2] = -100.0  # padding
    mask = torch.tensor([[True, True, True], [True, True, False]])
    assert perplexity(logprobs, mask) == pytest.approx(8.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures the GPU's memory there")
def test_peak_memory_is_the_high_water_mark_in_mib():
    status = Path("/proc/self/status").read_text()
    kib = int(status.split("VmHWM:")[1].split("kB")[0])
    assert peak_memory_mb() == pytest.approx(kib / 1024, rel=0.02)


def test_the_page_holds_the_keys_that_a_run_writes_and_no_others(tmp_path):
    folder = run(tmp_path, iterations=2)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    written = {key.replace("/sparse", "/<name>") for row in rows for key in row}
    page = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    documented = {key for cell in cells for key in re.findall("`([^`]+)`", cell)}
    assert written - documented == set()
    assert documented - written == ONLY_UNDER_A_SETTING
