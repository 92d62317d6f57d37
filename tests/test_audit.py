"""Signs of reward hacking: numbers checked by hand, lines beyond noise, a run that is hacked."""

import json
import math
import re
import typing
from pathlib import Path

import numpy as np
import oracle
import pytest
from test_resume import metrics, run

from rewards.compose import parse_entries
from rlalign import ppo, signs
from rlalign.algorithms.ppo import PPORun
from rlalign.audit import ADVICE, Audit, check_judges, paid
from rlalign.config import ConfigError, from_mapping
from rlalign.exits import AuditStop, exit_code, last_line
from rlalign.settings.audit_section import LINES, AuditSection, WarningName
from rlalign.symptoms import (
    batch_numbers,
    commonest,
    duplicates,
    marked,
    moments,
    opening,
    phrases,
    spaced,
    spearman,
)

PAGE = Path(__file__).parent.parent / "docs" / "reward-hacking.md"
ENTRIES = parse_entries(
    {
        "moon": {"kind": "lexical.word_rate", "words": ["moon"], "weight": 2.0},
        "judge": {"kind": "lexical.diversity", "weight": 0},
    }
)


def row(response="one two three", score=0.0, length=3, kl=0.0, prompt="p", **rewards):
    return {
        "prompt": prompt,
        "response": response,
        "score": score,
        "kl": kl,
        "length": length,
        "rewards": {"moon": 0.0, "judge": 0.0} | rewards,
    }


def noise(rng, size=32, mean=0.0, judge=0.0):
    """Rows of random words, whose numbers have nothing to do with one another."""
    made = []
    for i in range(size):
        text = " ".join(f"w{word}" for word in rng.integers(2000, size=12))
        moon, kl = rng.normal(mean), abs(rng.normal())
        made.append(
            row(text, 2 * moon, int(rng.integers(10, 20)), kl, f"p{i}", moon=moon,
                judge=rng.normal(judge))
        )  # fmt: skip
    return made


def audit(samples=32, **section):
    return Audit(AuditSection(**section), ENTRIES, samples)


def names(audited):
    return [each.name for each in audited.active]


# -- numbers of one batch -------------------------------------------------------------------------


def test_rank_correlation_by_hand():
    assert spearman([1.0, 2.0, 3.0], [10.0, 20.0, 1e9]) == pytest.approx(1.0)
    assert spearman([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)
    # ranks 1.5 1.5 3 4 and 1 2 3.5 3.5: products of deviations 1.5+.5+.5+1.5 over 4.5
    assert spearman([0.0, 0.0, 1.0, 5.0], [1.0, 2.0, 3.0, 3.0]) == pytest.approx(4 / 4.5)


def test_a_correlation_that_cannot_be_is_absent():
    assert spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert spearman([1.0], [1.0]) is None and spearman([], []) is None
    assert spearman([1.0, None, 3.0], [1.0, 2.0, 3.0]) is None  # two are left
    assert spearman([1.0, math.nan, 3.0, 2.0], [1.0, 2.0, 3.0, None]) is None
    assert spearman([1.0, None, 3.0, 2.0], [5.0, 0.0, 7.0, 6.0]) == pytest.approx(1.0)


def test_the_commonest_phrase_counts_a_text_once():
    texts = ["The moon, the moon! The moon the", "oh the moon the", "a b"]
    assert commonest(texts, phrases) == (2 / 3, "the moon the", [True, True, False])
    assert commonest(["a b c", "d e f"], phrases) == (0.0, "", [False, False])
    assert commonest(["b c d a b c", "d e f a b c", "d e f"], phrases)[:2] == (2 / 3, "a b c")
    starts = ["Is a star.", "is a STAR now", "", "Is"]
    assert commonest(starts, opening) == (0.5, "is a star", [True, True, False, False])
    assert commonest([], phrases) == (0.0, "", [])


def test_duplicates_are_what_repeats_an_earlier_text():
    assert duplicates(["a", " A ", "b", "a"]) == 0.5
    assert duplicates(["a"]) == 0.0 and duplicates([]) == 0.0


def test_numbers_of_a_batch_by_hand():
    rows = [
        row("a b c d", 0.0, 1, 0.0, moon=0.0, judge=3.0),
        row("a b c e", 2.0, 2, 3.0, moon=1.0, judge=2.0),
        row("f g h i", 5.0, 3, 2.0, moon=2.0, judge=None),
    ]
    found = batch_numbers(rows, paid(ENTRIES, None))
    assert found["score/length"] == found["reward/moon/length"] == pytest.approx(1.0)
    assert found["score/kl"] == pytest.approx(0.5)  # ranks 1 2 3 and 1 3 2
    # moon pays 0 2 4; what is left of the score is 0 0 1, ranks 1.5 1.5 3
    assert found["reward/moon/rest"] == pytest.approx(1.5 / math.sqrt(2 * 1.5))
    assert not {key for key in found if key.startswith("reward/judge")}  # two values only
    assert (found["phrase_share"], found["opening_share"]) == (2 / 3, 2 / 3)
    assert found["distinct1"] == 9 / 12 and found["distinct2"] == 7 / 9
    assert found["duplicates"] == 0


def test_no_number_is_nan_whatever_the_batch():
    awkward = [
        [row()],
        [row("")] * 40,
        [row("", moon=None, judge=None), row("🌙" * 9, 1.0, moon=None, judge=None)] * 20,
        [row("a", float(i % 2), 1 + i, kl=1e-5 * i, moon=float(i)) for i in range(40)],
    ]
    for rows in awkward:
        audited = audit(samples=len(rows))
        for iteration in range(1, 2 * audited.window + 2):
            stats = audited.look(rows, iteration)
            assert all(math.isfinite(value) for value in stats.values()), stats
        json.dumps(audited.state_dict(), allow_nan=False)


def test_a_kl_of_rounding_alone_has_no_correlation():
    rows = [row(score=float(i), length=i, kl=1e-5 * i) for i in range(5)]
    assert "score/kl" not in batch_numbers(rows, {})
    rows = [row(score=float(i), length=i, kl=0.1 * i) for i in range(5)]
    assert batch_numbers(rows, {})["score/kl"] == pytest.approx(1.0)


def test_moments_take_a_prompt_for_one_observation():
    # means 1 and 4; variance of the means 4.5, of the values (4 + 0 + 1 + 1) / 3... of 0 2 4 4
    found = moments([0.0, 2.0, 4.0, 4.0, None], ["a", "a", "b", "b", "c"])
    assert found == pytest.approx([2, 2.5, 4.5, np.var([0, 2, 4, 4], ddof=1)])
    assert moments([None], ["a"]) is None and moments([3.0], ["a"]) == [1, 3, 0, 0]


# -- the top outputs ------------------------------------------------------------------------------


def test_the_top_outputs_are_marked_with_what_put_them_there():
    rows = [
        row("x", 1.0, moon=5.0, judge=1.0),
        row("x", 1.0, moon=5.0, judge=1.0),  # the same text counts once
        row("y", 9.0, moon=1.0, judge=1.0),
        row("z", 2.0, moon=5.0, judge=None),
        row("v", 0.0, moon=0.0, judge=1.0),
    ]
    tops = [r.get("top") for r in marked(rows, ["moon", "judge"], 1)]
    assert tops == [None, None, ["score"], ["moon"], None]  # z has moon's highest and more score
    tops = [r.get("top") for r in marked(rows, ["moon", "judge"], 2)]
    assert tops == [["moon"], None, ["score"], ["score", "moon"], None]  # judge is constant
    tops = [r.get("top") for r in marked(rows, ["moon"], 3)]
    assert tops == [["score", "moon"], None, ["score", "moon"], ["score", "moon"], None]
    assert not any("top" in r for r in marked(rows, ["moon"], 0))
    assert sum(len(r.get("top", [])) for r in marked(rows * 50, ["moon"], 3)) == 3 + 3


def test_the_commonest_phrase_and_opening_stand_on_the_rows_that_hold_them():
    rows = [row("oh the big moon"), row("oh the big star"), row("see the big moon")]
    made = marked(rows, [], 3)
    assert [r.get("opening") for r in made] == ["oh the big", "oh the big", None]
    assert [r.get("phrase") for r in made] == ["oh the big", "oh the big", None]


def test_the_words_of_at_most_256_samples_are_counted():
    assert list(spaced(3)) == [0, 1, 2] and list(spaced(0)) == []
    assert len(spaced(256)) == 256 and list(spaced(257))[:3] == [0, 2, 4]
    rows = [row("a b c" if i % 4 == 0 else f"w{i} x{i} y{i}", float(i)) for i in range(1024)]
    assert batch_numbers(rows, {})["phrase_share"] == 1.0  # every fourth is looked at
    made = marked(rows, [], 1)
    assert sum("phrase" in r for r in made) == 256 and made[-1]["top"] == ["score"]


# -- warnings -------------------------------------------------------------------------------------


def test_noise_raises_no_warning():
    """Independent numbers under three sizes of batch, with a judge; docs tell of more of them."""
    rng = np.random.default_rng(0)
    for size in (4, 8, 32):
        audited = audit(size, judges=["judge"])
        for iteration in range(1, 61):
            audited.look(noise(rng, size), iteration)
        assert [str(each) for each in audited.warned] == []


def test_a_small_batch_is_looked_back_on_for_longer():
    assert audit(32).window == 5 and audit(4).window == 16 and audit(1).window == 64


def warned_by(change, iterations=12, **section):
    """Warnings of a run of noise whose iterations `change(rows, iteration)` alters."""
    rng, audited = np.random.default_rng(1), audit(**section)
    for iteration in range(1, iterations + 1):
        audited.look(change(noise(rng), iteration), iteration)
    return audited


def test_a_score_that_follows_the_length_is_named():
    audited = warned_by(lambda rows, _: [{**r, "score": -2.0 * r["length"]} for r in rows])
    (warned,) = audited.warned
    assert warned.name == "length-driven" and warned.began == audited.window == 5
    assert "-1.00" in warned.text and "audit.length_corr=0.8" in warned.text


def test_lengths_that_run_are_named():
    def shrinks(rows, iteration):
        return [{**r, "length": max(r["length"] // iteration, 1)} for r in rows]

    assert names(warned_by(shrinks)) == ["length-runs"]
    assert names(warned_by(shrinks, length_factor=20)) == []


def test_a_shared_phrase_is_named_and_quoted():
    def sings(rows, iteration):
        sung = [{**r, "response": r["response"] + " the pale moon"} for r in rows[:12]]
        return sung + rows[12:] if iteration > 3 else rows

    (warned,) = warned_by(sings).warned
    assert warned.name == "repeated-phrase" and '"the pale moon"' in warned.text
    assert "0% at the start" in warned.text  # 12 of 32 in 4 of 5 iterations: 30%
    assert (warned.began, warned.text[:3]) == (7, "30%")


def test_what_responses_shared_from_the_start_is_not_held_against_them():
    def sings(rows, _):
        return [{**r, "response": "once upon a time " + r["response"]} for r in rows]

    assert names(warned_by(sings)) == []


def test_equal_openings_copies_and_lost_diversity_are_named():
    def collapses(rows, iteration):
        return [{**r, "response": "the moon is big"} for r in rows] if iteration > 2 else rows

    assert set(names(warned_by(collapses))) == {
        "repeated-phrase", "same-opening", "duplicates", "collapsed-diversity"
    }  # fmt: skip


def test_a_policy_far_away_is_named():
    audited = warned_by(lambda rows, _: [{**r, "kl": 1.5 * r["length"]} for r in rows])
    assert names(audited) == ["far-from-reference"] and "1.50 nats" in audited.warned[0].text


def moves(moon, judge):
    """A change by which the two rewards move by so many standard deviations in 12 iterations."""

    def change(rows, iteration):
        share = iteration / 12
        return [
            {
                **r,
                "score": r["score"] + 2 * share * moon,
                "rewards": {
                    "moon": r["rewards"]["moon"] + share * moon,
                    "judge": r["rewards"]["judge"] + share * judge,
                },
            }
            for r in rows
        ]

    return change


def test_a_judge_that_falls_while_the_score_rises_is_named():
    (warned,) = warned_by(moves(3.0, -3.0), judges=["judge"]).warned
    assert warned.name == "judge-disagrees" and "judge 'judge' went from" in warned.text
    assert names(warned_by(moves(3.0, -3.0))) == []  # it is no judge unless the settings say so
    assert names(warned_by(moves(3.0, 3.0), judges=["judge"])) == []
    assert names(warned_by(moves(0.0, -3.0), judges=["judge"])) == []  # the score did not rise


@pytest.mark.parametrize("weight, falls", [(1.0, -3.0), (-1.0, 3.0)])
def test_a_reward_that_pays_for_another_is_named(weight, falls):
    entries = [
        ENTRIES[0],
        *parse_entries({"judge": {"kind": "lexical.diversity", "weight": weight}}),
    ]
    rng, audited = np.random.default_rng(1), Audit(AuditSection(), entries, 32)
    for iteration in range(1, 13):
        audited.look(moves(3.0, falls)(noise(rng), iteration), iteration)
    (warned,) = audited.warned
    assert warned.name == "traded-away"
    assert "reward 'judge' went from" in warned.text and "while 'moon'" in warned.text


def test_one_prompt_over_and_over_is_no_certainty():
    """All samples of an iteration answer one prompt: their number says nothing about prompts."""
    rng = np.random.default_rng(2)
    for _ in range(4):
        audited = audit(judges=["judge"])
        for iteration in range(1, 16):
            prompt = f"p{iteration}"
            shift = dict(zip(("mean", "judge"), rng.normal(size=2), strict=True))
            rows = [{**r, "prompt": prompt} for r in noise(rng, **shift)]
            audited.look(rows, iteration)
        assert audited.warned == []


def test_a_warning_is_given_once_and_ends_well_below_its_line():
    audited = audit(window=1, samples=64)
    rng = np.random.default_rng(0)
    seen = []
    for iteration, kl in enumerate([0.5, 1.1, 0.95, 1.05, 0.85, 0.95, 1.2], start=1):
        audited.look([{**r, "kl": kl * r["length"]} for r in noise(rng, 64)], iteration)
        seen.append(names(audited) == ["far-from-reference"])
    assert seen == [False, True, True, True, False, False, True]
    assert [(each.began, each.ended) for each in audited.warned] == [(2, 5), (7, None)]


def test_null_turns_a_warning_off():
    off = dict.fromkeys(LINES.values())

    def collapses(rows, iteration):
        return [{**r, "response": "x y z", "kl": 99.0, "length": iteration**3} for r in rows]

    assert names(warned_by(collapses)) and not names(warned_by(collapses, **off, judges=["judge"]))


def test_its_state_goes_through_json_and_on():
    def runs(rows, iteration):
        return [{**r, "kl": iteration * r["length"] / 8} for r in rows]

    rng, whole, parts = np.random.default_rng(3), audit(), audit()
    for iteration in range(1, 16):
        rows = runs(noise(rng), iteration)
        state = json.loads(json.dumps(parts.state_dict()))
        parts = audit()
        parts.load_state_dict(state)
        assert parts.look(rows, iteration) == whole.look(rows, iteration)
    assert parts.warned == whole.warned != []
    assert parts.state_dict() == whole.state_dict()


# -- settings -------------------------------------------------------------------------------------


def test_settings_that_make_no_sense_are_refused_by_name():
    for section, message in [
        ({"stop": ["same-openin"]}, "audit.stop"),
        ({"stop": ["duplicates"], "duplicates": None}, "stop names duplicates, which duplicates="),
        ({"stop": ["judge-disagrees"]}, "judges names none"),
        ({"phrase_share": 1.5}, "audit.phrase_share"),
    ]:
        with pytest.raises(ConfigError, match=message):
            from_mapping(PPORun, oracle.config(audit=section), rewards_given=True)
    with pytest.raises(ConfigError, match=r"no reward is named 'jugde'; there are: moon, judge"):
        check_judges(AuditSection(judges=["jugde"]), ["moon", "judge"])


def test_every_warning_has_a_line_and_advice_and_a_row_on_the_page():
    every = set(typing.get_args(WarningName))
    assert set(LINES) == set(ADVICE) == every
    assert set(LINES.values()) < set(AuditSection.model_fields)
    table = re.findall(r"^\| `([\w-]+)` \| `audit\.(\w+)` = (\S+) \|", PAGE.read_text(), re.M)
    documented = {name: (setting, float(line)) for name, setting, line in table}
    defaults = AuditSection().model_dump()
    assert documented == {name: (LINES[name], defaults[LINES[name]]) for name in every}
    assert f"{signs.SURE:g} standard errors" in PAGE.read_text()


# -- in a run -------------------------------------------------------------------------------------


def long(completions: list[str], **_: object) -> list[float]:
    return [float(len(text.split())) for text in completions]


HACKED = {
    "reward": long,
    "kl": {"coef": 0.01, "target": None},
    "ppo": {"minibatches": 2, "lr": 1e-3},
    "train": {"iterations": 8, "samples": 16, "seed": 3},
    "iterations": 8,
    "audit": {"window": 4, "stop": ["length-driven"]},
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run whose only reward is length, told to stop on it."""
    return run(tmp_path_factory.mktemp("stopped"), **HACKED)


def test_a_run_stops_on_the_warning_that_it_is_told_to_stop_on(stopped):
    rows = metrics(stopped)
    assert [r["iteration"] for r in rows] == [0, 1, 2, 3, 4]
    assert rows[-1]["audit/score/length"] > 0.8 and rows[-1]["audit/warnings"] >= 1
    assert "eval/score" in rows[-1] and (stopped / "model").is_dir()
    assert (stopped / "checkpoints/step-000004/manifest.json").is_file()
    said = json.loads((stopped / "run.json").read_text())
    assert (said["status"], said["exit_code"]) == ("stopped", exit_code(AuditStop()))
    assert said["message"].startswith("length-driven from iteration 4 on: score and length")
    assert said["warnings"][0]["name"] == "length-driven" and said["warnings"][0]["ended"] is None
    assert "length-driven from iteration 4" in (stopped / "model/README.md").read_text()


def test_a_launched_run_that_stops_exits_with_6(tmp_path, capfd):
    settings = [
        "--model.name=glass-tiny",
        "--model.dtype=float32",
        "--rewards.x.kind=lexical.word_rate",
    ]
    settings += ["--rewards.x.words=the", "--rewards.light=null", "--rewards.space=null"]
    settings += ["--rewards.cheerful=null", "--rewards.length=null", "--rewards.ending=null"]
    settings += ["--rewards.judge=null", "--sampling.max_new_tokens=4", "--train.samples=64"]
    settings += ["--eval.every=0", "--train.threads=1", f"--run.dir={tmp_path}", "--trackers=[]"]
    settings += ["--audit.window=1", "--audit.kl_per_token=1e-6", "--audit.stop=far-from-reference"]
    assert ppo.main([*settings, "--run.name=a"]) == 6
    shown = capfd.readouterr()
    assert "far-from-reference from iteration 2 on" in shown.err.strip().splitlines()[-1]
    assert "far-from-reference from iteration 2" in " ".join(shown.out.split())  # at the end


def test_the_last_line_says_how_to_go_on():
    assert exit_code(AuditStop("x")) == 6
    assert last_line(AuditStop("x")).endswith("--run.resume=auto --audit.stop=[]")


def test_the_file_of_samples_holds_what_the_numbers_were_made_of(stopped):
    rows = [json.loads(line) for line in (stopped / "samples.jsonl").read_text().splitlines()]
    for entry in metrics(stopped)[1:]:
        batch = [r for r in rows if (r["iteration"], r["split"]) == (entry["iteration"], "train")]
        numbers = batch_numbers(batch, {"long": float})
        assert {f"audit/{name}": value for name, value in numbers.items()}.items() <= entry.items()
        best = [r for r in batch if "long" in r.get("top", [])]
        assert 1 <= len(best) <= 3 and max(r["score"] for r in batch) in {r["score"] for r in best}


def test_a_stopped_run_goes_on_where_it_is_told_to(tmp_path, stopped):
    straight = run(tmp_path / "straight", **HACKED | {"audit": {"window": 4}})
    assert len(metrics(straight)) == 9
    broken = run(tmp_path / "broken", **HACKED)
    assert metrics(broken) == metrics(stopped)
    assert len(metrics(run(tmp_path / "broken", **HACKED))) == 6  # it looks once more, and stops
    resumed = run(tmp_path / "broken", **HACKED | {"audit": {"window": 4}})

    def without_evaluations(rows):
        return [{k: v for k, v in r.items() if not k.startswith("eval/")} for r in rows]

    assert without_evaluations(metrics(resumed)) == without_evaluations(metrics(straight))
    ends = [json.loads((folder / "run.json").read_text()) for folder in (resumed, straight)]
    assert ends[0]["warnings"] == ends[1]["warnings"] != []
    assert [end["status"] for end in ends] == ["done", "done"]
