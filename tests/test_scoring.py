"""Where a score lands: on which token a span's credit falls, and on which the rest."""

import asyncio
import threading
import time
from contextlib import closing
from dataclasses import replace

import builders
import oracle
import pytest
import torch
from torch.testing import assert_close

from rewards.compose import RewardSet, parse_entries
from rewards.contract import RewardError, Score, Span
from rlalign import scoring
from rlalign.offsets import Offsets
from rlalign.policy import Policy, evaluate_rollout, logprobs_only
from rlalign.scoring import place_credit, potential, score_given, score_rollout
from rlalign.settings.sections import ScoreSection
from rlalign.types import Rollout

BYTES = builders.byte_tokenizer()


def text_rollout(text: str, finished: bool = True) -> Rollout:
    """One response in tokens of bytes, an EOS behind it unless it was cut off."""
    ids = BYTES(text)["input_ids"] + [BYTES.eos_token_id] * finished
    mask = torch.ones(1, len(ids), dtype=torch.bool)
    return Rollout(
        prompts=builders.prompt_batch(["a"]),
        response_ids=torch.tensor([ids]),
        response_mask=mask,
        action_mask=mask,
        logprobs=None,
        finished=torch.tensor([finished]),
        group=torch.zeros(1, dtype=torch.long),
        policy_step=0,
        texts=[text],
    )


def credit(text: str, *spans: Span, score: float | None = None, finished: bool = True):
    """(token, reward) of every token that earns something."""
    rollout = text_rollout(text, finished)
    total = sum(span.credit for span in spans) if score is None else score
    rewards = place_credit(rollout, torch.tensor([total]), [spans], BYTES)[0]
    tokens = BYTES.convert_ids_to_tokens(rollout.response_ids[0].tolist())
    return [(t, round(r, 6)) for t, r in zip(tokens, rewards.tolist(), strict=True) if r != 0]


def test_tokens_are_as_expected():
    """What the tests below rest on: leading spaces, tokens over a word's end, split characters."""
    tokens = BYTES.convert_ids_to_tokens(BYTES("a rain. né")["input_ids"])
    assert tokens == ["a", "Ġrain", ".", "Ġ", "n", "Ã", "©"]
    assert BYTES.convert_ids_to_tokens(BYTES("pen.")["input_ids"]) == ["p", "e", "n."]


def test_a_span_pays_at_the_token_that_brings_the_character_behind_it():
    # "rain" is over only when the full stop is written: "rainy" would not count
    assert credit("a rain.", Span(2, 6, 1.0)) == [(".", 1.0)]
    # the space behind "a" comes inside the next token
    assert credit("a rain.", Span(0, 1, 1.0)) == [("Ġrain", 1.0)]


def test_a_token_that_straddles_the_end_of_a_span_earns_it():
    assert credit("pen. p", Span(0, 3, 1.0)) == [("n.", 1.0)]
    assert credit("pen. p", Span(0, 4, 1.0)) == [("Ġ", 1.0)]


def test_a_span_up_to_the_end_of_the_text_pays_at_the_last_action():
    assert credit("a rain", Span(2, 6, 1.0)) == [("</s>", 1.0)]
    assert credit("a rain", Span(2, 6, 1.0), finished=False) == [("Ġrain", 1.0)]


def test_characters_of_several_tokens_count_when_they_are_whole():
    # "né x": é is two tokens, the emoji four; the space behind it decides
    assert credit("né x", Span(0, 2, 1.0)) == [("Ġ", 1.0)]
    assert credit("né", Span(0, 1, 1.0)) == [("©", 1.0)]
    text = "\U0001f680 b"
    ids = BYTES(text)["input_ids"]
    assert Offsets(BYTES).fixed(ids, text) == [0, 0, 0, 1, 2, 3]
    assert credit(text, Span(0, 1, 1.0)) == [("Ġ", 1.0)]


def test_fixed_characters_count_code_points_and_leading_spaces():
    text = " rain 雨"
    assert Offsets(BYTES).fixed(BYTES(text)["input_ids"], text) == [5, 6, 6, 6, 7]


def test_what_spans_leave_over_lands_on_the_last_action():
    assert credit("a rain.", Span(2, 6, 0.25), score=1.0) == [(".", 0.25), ("</s>", 0.75)]
    assert credit("a rain.", score=-2.0) == [("</s>", -2.0)]
    assert credit("a rain.", score=-2.0, finished=False) == [(".", -2.0)]


def test_credit_on_tokens_that_the_policy_did_not_choose_goes_to_its_next_action():
    rollout = text_rollout("a rain. b")
    actions = rollout.action_mask.clone()
    actions[0, 2] = False  # the full stop was put there by a tool
    rollout = replace(rollout, action_mask=actions)
    rewards = place_credit(rollout, torch.tensor([1.0]), [[Span(2, 6, 1.0)]], BYTES)
    assert rewards[0].tolist() == [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]


def test_eos_carries_the_score_and_nothing_behind_it_does():
    rollout = builders.rollout(["b c", "", "d e a"], finished=[True, True, False])
    rewards = place_credit(rollout, torch.tensor([1.0, 2.0, 3.0]))
    assert rewards.tolist() == [[0, 0, 1.0], [2.0, 0, 0], [0, 0, 3.0]]


def words(completions: list[str], **_) -> list[Score]:
    """1 a letter 'c', each in a span of its own."""
    return [
        Score(text.count("c"), [Span(i, i + 1, 1.0) for i, x in enumerate(text) if x == "c"])
        for text in completions
    ]


def scored(rollout: Rollout, section: ScoreSection | None = None, rewards=(words,)):
    policy = Policy(oracle.language_model())
    reward_set = RewardSet([], extra=list(rewards))
    section = ScoreSection() if section is None else section
    return score_rollout(rollout, reward_set, section, policy, oracle.tokenizer(), 100)


ROLLOUT = builders.rollout(
    ["c a c", "b", "c c c c", ""],
    prompts=["a", "c b d", "a", "a"],
    finished=[True, True, False, True],
)


@pytest.mark.parametrize(
    "section",
    [ScoreSection(), ScoreSection(clip=(0, 3)), ScoreSection(clip=(-1, 1), missing_eos_penalty=2)],
)
def test_token_rewards_sum_to_the_score(section):
    out = scored(ROLLOUT, section)
    assert_close(out.token_rewards.sum(1), out.score)
    assert bool((out.token_rewards[~ROLLOUT.action_mask] == 0).all())


def test_spans_become_token_rewards():
    rewards = scored(ROLLOUT).token_rewards
    assert rewards[0].tolist() == [0, 1.0, 0, 1.0]  # the second 'c' is over at EOS
    assert rewards[2].tolist() == [0, 1.0, 1.0, 2.0]  # cut off: the last word at the last action
    assert rewards[3].tolist() == [0, 0, 0, 0]


def test_the_missing_eos_penalty_is_for_responses_without_an_end():
    out = scored(ROLLOUT, ScoreSection(missing_eos_penalty=0.5))
    assert out.score.tolist() == [2.0, 0.0, 3.5, 0.0]
    # It lands where the response was cut off; earlier credit stays.
    assert out.token_rewards[2].tolist() == [0, 1.0, 1.0, 1.5]


def test_a_stop_string_counts_as_an_end():
    engine = builders.engine(Policy(oracle.language_model(), reference="none"), stop=["c"])
    rollout = engine.generate(builders.prompt_batch(["a"]), 200, builders.seeded())
    out = scored(rollout, ScoreSection(missing_eos_penalty=0.5))
    stopped = torch.tensor(["c" in text for text in rollout.texts])
    assert int(stopped.sum()) > 10
    assert out.score[stopped].tolist() == [1.0] * int(stopped.sum())
    assert set(out.score[~rollout.finished].tolist()) == {-0.5}


def test_the_score_is_clipped_before_the_penalty():
    raw, finished = torch.tensor([5.0, -5.0]), torch.tensor([False, True])
    section = ScoreSection(clip=(-1.0, 2.0), missing_eos_penalty=0.5)
    assert potential(raw, finished, section).tolist() == [1.5, -1.0]


def test_clipping_clips_the_running_sum():
    out = scored(ROLLOUT, ScoreSection(clip=(0.0, 3.0)))
    assert out.token_rewards[0].tolist() == [0, 1.0, 0, 1.0]
    assert out.token_rewards[2].tolist() == [0, 1.0, 1.0, 1.0]
    out = scored(ROLLOUT, ScoreSection(clip=(1.0, 1.5)))  # 1 is what every response starts from
    assert out.token_rewards[0].tolist() == [0, 0, 0, 1.5]
    assert out.token_rewards[2].tolist() == [0, 0, 0.5, 1.0]


def test_a_reward_that_does_not_apply_adds_nothing():
    def sometimes(completions, **_):
        return [None if text == "b" else 1.0 for text in completions]

    out = scored(ROLLOUT, rewards=(words, sometimes))
    assert out.valid.tolist() == [[True, True], [True, False], [True, True], [True, True]]
    assert bool(out.rewards[1, 1].isnan())
    assert out.score.tolist() == [3.0, 0.0, 5.0, 1.0]


def test_rewards_get_prompts_completions_and_columns_of_the_same_sample():
    def own_column(prompts, completions, number, **_):
        return [float(n) + 10 * len(p) + 100 * len(c) for p, c, n in
                zip(prompts, completions, number, strict=True)]  # fmt: skip

    prompts = replace(ROLLOUT.prompts, columns={"number": [1, 2, 3, 4]})
    out = scored(replace(ROLLOUT, prompts=prompts), rewards=(own_column,))
    assert out.score.tolist() == [511.0, 152.0, 713.0, 14.0]


def test_the_reference_reads_the_sampled_tokens():
    policy = Policy(oracle.language_model())
    with torch.no_grad():
        for p in policy.lm.parameters():
            p.add_(0.01)
    out = score_given(ROLLOUT, [1.0, 2.0, 3.0, 4.0], policy, 100)
    untouched = Policy(oracle.language_model(), reference="none")
    expected = evaluate_rollout(untouched, ROLLOUT, logprobs_only, 100)["logprobs"]
    assert_close(out.ref_logprobs, expected, rtol=0, atol=0)
    assert_close(out.token_rewards.sum(1), torch.tensor([1.0, 2.0, 3.0, 4.0]))


@pytest.mark.parametrize(
    "scores, message",
    [([1.0], "1 scores were given for 4 responses"), ([0, 1, 2, float("nan")], "NaN or infinite")],
)
def test_scores_from_outside_are_checked(scores, message):
    with pytest.raises(ValueError, match=message):
        score_given(ROLLOUT, scores, Policy(oracle.language_model()), 100)


def slowly(seconds):
    """A reward that waits elsewhere, as one that asks a server does."""

    async def waits(prompts, completions, **columns):
        await asyncio.sleep(seconds)
        return [float(len(text)) for text in completions]

    return waits


def scored_by(functions, policy):
    rollout = builders.rollout(["b c", "d"], prompts=["a", "b"])
    with closing(RewardSet([], extra=functions)) as rewards:
        return score_rollout(rollout, rewards, ScoreSection(), policy, oracle.tokenizer(), 100)


def lengths(completions):
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize("waits", [True, False])
def test_the_reference_reads_while_rewards_wait(waits, monkeypatch):
    policy = builders.adapted_policy()
    threads = []
    read = scoring.reference_logprobs

    def slow(*given):
        threads.append(threading.current_thread())
        time.sleep(0.4)
        return read(*given)

    monkeypatch.setattr(scoring, "reference_logprobs", slow)
    start = time.perf_counter()
    found = scored_by([slowly(0.4) if waits else lengths], policy)
    seconds = time.perf_counter() - start
    assert (threads[0] is threading.main_thread()) != waits
    assert not waits or seconds < 0.75
    monkeypatch.undo()
    alone = scored_by([lengths], policy)
    assert torch.equal(found.ref_logprobs, alone.ref_logprobs)
    assert torch.equal(found.score, alone.score)


def test_an_isolated_reward_works_on_the_same_processor_and_so_after_the_reference():
    spec = {"kind": "lexical.contains", "words": ["b"]}
    with closing(RewardSet(parse_entries({"a": spec | {"isolate": True}}))) as rewards:
        assert not rewards.waits
    server = {"kind": "remote.http", "url": "http://localhost:1"}
    with closing(RewardSet(parse_entries({"a": server}))) as rewards:
        assert rewards.waits


def test_a_thread_works_on_the_gpu_of_its_process(monkeypatch):
    used = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    scoring.enter(torch.device("cpu"))
    scoring.enter(torch.device("cuda:3"))
    assert used == [torch.device("cuda:3")]
    entered = []
    monkeypatch.setattr(scoring, "enter", entered.append)
    scored_by([slowly(0.01)], builders.adapted_policy())
    assert entered == [torch.device("cpu")]


def test_a_reward_that_fails_beside_the_reference_is_named_and_the_policy_left_whole():
    policy = builders.adapted_policy()
    rollout = builders.rollout(["b c"], prompts=["a"])
    before = evaluate_rollout(policy, rollout, logprobs_only, 100)["logprobs"]

    async def fails(prompts, completions, **columns):
        await asyncio.sleep(0.01)
        raise ValueError("out of order")

    with pytest.raises(RewardError, match="out of order"):
        scored_by([fails], policy)
    assert torch.equal(evaluate_rollout(policy, rollout, logprobs_only, 100)["logprobs"], before)
