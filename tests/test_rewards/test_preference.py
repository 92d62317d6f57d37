"""`model.preference` against transformers itself: every text alone, in one plain forward pass."""

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from rewards import RewardConfigError, RewardEntry, RewardSet, conformance, sequences
from rewards.preference import Preference, fitted, without_start
from rewards.sequences import SequenceClassifier, by_length, sequence_classifier
from tests.test_rewards.conftest import WORDS

PROMPTS = ["the moon", "good", "", "the film film the moon good bad", "moon"]
COMPLETIONS = [" good film", " bad", " moon moon moon the the the good", "", " [EOS]"]
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}the {% elif m['role'] == 'user' %}user "
    "{% else %}answer {% endif %}{{ m['content'] }} {% endfor %}[EOS]"
)


def tokens(directory, template=None, pad="[PAD]", side="right"):
    """A tokenizer of whole words without special tokens of its own, as decoders have."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*WORDS, "[EOS]"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[EOS]", pad_token=pad,
        padding_side=side, model_max_length=64,
    )  # fmt: skip
    fast.chat_template = template
    fast.save_pretrained(directory)


def llama(pad_token_id=None, labels=1):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS) + 1, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, initializer_range=0.5,
        pad_token_id=pad_token_id, num_labels=labels,
    )  # fmt: skip
    return LlamaForSequenceClassification(config)


@pytest.fixture
def saved(tmp_path):
    """A function that saves a model with a tokenizer, and gives the folder as text."""

    def save(model, **options):
        folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder)
        tokens(folder, **options)
        return str(folder)

    return save


def alone(folder, texts, *, special_tokens=True):
    """What transformers says of each text by itself: the plain forward pass that a card shows."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    values = []
    for text in texts:
        given = [text] if isinstance(text, str) else list(text)
        inputs = tokenizer(*given, add_special_tokens=special_tokens, return_tensors="pt")
        with torch.no_grad():
            values.append(model(**inputs).logits[0].tolist())
    return values


def joined():
    return [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad_token_id", [0, None, len(WORDS)], ids=["pad", "no-pad", "pad-is-eos"])
def test_a_decoder_values_a_text_in_any_batch_as_transformers_does_alone(saved, pad_token_id, side):
    pad = "[PAD]" if pad_token_id == 0 else None
    folder = saved(llama(pad_token_id), pad=pad, side=side)
    expected = [value for (value,) in alone(folder, joined()[:2] + joined()[3:])]
    for batch_tokens in (1, 12, 8192):
        reward = Preference(model=folder, batch_tokens=batch_tokens)
        values = reward(PROMPTS, COMPLETIONS)
        assert values[:2] + values[3:] == pytest.approx(expected, abs=1e-5)
        backwards = reward(PROMPTS[::-1], COMPLETIONS[::-1])
        assert backwards[::-1] == pytest.approx(values, abs=1e-5)
    assert max(values) - min(values) > 0.1  # the texts are told apart


def test_an_encoder_values_a_text_in_any_batch_as_transformers_does_alone(classifier_directory):
    folder = str(classifier_directory)
    expected = [row[2] for row in alone(folder, joined())]
    for batch_tokens in (1, 16, 8192):
        reward = Preference(model=folder, label="positive", batch_tokens=batch_tokens)
        assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)


def test_a_model_that_padding_disturbs_gets_batches_without_padding(saved):
    torch.manual_seed(0)
    config = XLNetConfig(
        vocab_size=len(WORDS) + 1, d_model=16, n_layer=1, n_head=2, d_inner=32, num_labels=1,
        initializer_range=0.5, pad_token_id=0,
    )  # fmt: skip
    folder = saved(XLNetForSequenceClassification(config))
    texts = ["good film", "bad", "the moon the moon good"]
    expected = [value for (value,) in alone(folder, texts)]
    assert Preference(model=folder)([""] * 3, texts) == pytest.approx(expected, abs=1e-5)
    assert not SequenceClassifier(folder, False, "cpu")._pads


def test_ordinary_models_share_batches_between_lengths(saved, classifier_directory):
    for folder in (saved(llama(0)), saved(llama(None), pad=None), str(classifier_directory)):
        assert SequenceClassifier(folder, False, "cpu")._pads


def test_a_conversation_goes_through_the_chat_template_whole(saved):
    folder = saved(llama(0), template=TEMPLATE)
    chat = [{"role": "system", "content": "film"}, {"role": "user", "content": "the moon"}]
    entry = RewardEntry("x", "model.preference", {"model": folder})
    out = RewardSet([entry])(["the moon"] * 2, ["good film"] * 2, {"prompt_messages": [chat, None]})
    expected = [
        alone(folder, [text])[0][0]
        for text in ("the film user the moon answer good film [EOS]",
                     "user the moon answer good film [EOS]")
    ]  # fmt: skip
    assert out.values[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_formats_join_prompt_and_completion(saved, classifier_directory):
    folder = saved(llama(0), template=TEMPLATE)
    prompts, completions = ["the moon"], ["good film"]
    chat = alone(folder, ["user the moon answer good film [EOS]"])[0]
    for form in ("auto", "chat"):
        values = Preference(model=folder, format=form)(prompts, completions)
        assert values == pytest.approx(chat, abs=1e-5)
    plain = Preference(model=folder, format="plain", eos=True)(prompts, [" good film"])
    expected = alone(folder, ["the moon good film[EOS]"])[0]
    assert plain == pytest.approx(expected, abs=1e-5)
    only = Preference(model=folder, format="completion")(prompts, completions)
    assert only == pytest.approx(alone(folder, ["good film"])[0], abs=1e-5)
    pair = Preference(model=str(classifier_directory), label=2, format="pair")(prompts, completions)
    assert pair[0] == pytest.approx(
        alone(str(classifier_directory), [("the moon", "good film")])[0][2], abs=1e-5
    )


def test_conversations_go_through_the_template_as_they_are(saved):
    folder = saved(llama(0), template=TEMPLATE)
    prompt = [
        {"role": "system", "content": "film"},
        {"role": "user", "content": "good"},
        {"role": "assistant", "content": "moon"},
        {"role": "user", "content": "bad"},
    ]
    expected = alone(folder, ["the film user good answer moon user bad answer film [EOS]"])[0]
    reward = Preference(model=folder)
    assert reward([prompt], ["film"]) == pytest.approx(expected, abs=1e-5)
    answer = [{"role": "assistant", "content": "film"}]
    assert reward([prompt], [answer]) == pytest.approx(expected, abs=1e-5)


def test_a_long_prompt_loses_its_beginning_and_the_completion_is_kept(saved):
    folder = saved(llama(0), template=TEMPLATE)
    long = "bad bad bad bad bad the moon"
    chat = Preference(model=folder, max_length=7)  # user, answer, [EOS]: four words are left
    expected = alone(folder, ["user the moon answer good film [EOS]"])[0]
    assert chat([long], ["good film"]) == pytest.approx(expected, abs=1e-5)
    plain = Preference(model=folder, format="plain", max_length=4)
    expected = alone(folder, ["the moon good film"])[0]
    assert plain([long], [" good film"]) == pytest.approx(expected, abs=1e-5)
    turns = [{"role": "system", "content": "film"}, {"role": "user", "content": long}]
    chat = Preference(model=folder, max_length=8)
    expected = alone(folder, ["the film user moon answer good film [EOS]"])[0]
    assert chat([turns], ["good film"]) == pytest.approx(expected, abs=1e-5)


def test_a_completion_too_long_by_itself_loses_its_end(saved):
    reward = Preference(model=saved(llama(0)), max_length=3)
    expected = reward([""], ["good film the"])
    assert reward(["moon moon"], ["good film the bad bad"]) == pytest.approx(expected, abs=1e-5)


def test_fitting_drops_no_more_than_it_must():
    def encode(dropped, kept):
        return {"input_ids": [0] * (5 + 10 - dropped + kept)}

    assert len(encode(0, 4)["input_ids"]) == 19
    for limit in (19, 12, 9, 6):
        assert len(fitted(encode, 10, 4, limit)["input_ids"]) == limit
    turns = [{"role": "user", "content": "ab"}, {"role": "user", "content": "cd"}]
    assert without_start(turns, 3) == [
        {"role": "user", "content": ""},
        {"role": "user", "content": "d"},
    ]  # fmt: skip


def test_batches_hold_a_budget_of_padded_tokens():
    lengths = [5, 1, 9, 2, 2, 30]
    found = list(by_length(lengths, None, 10))
    assert sorted(i for batch in found for i in batch) == list(range(6))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 10 for b in found)
    assert [len(b) for b in found] == [3, 1, 1, 1]
    assert [len(b) for b in by_length(lengths, None, 99, alike=True)] == [1, 2, 1, 1, 1]
    assert [len(b) for b in by_length(lengths, 4, None)] == [4, 2]


def test_an_adapter_is_opened_with_its_base(saved, tmp_path):
    base = saved(llama(0))
    reloaded = LlamaForSequenceClassification.from_pretrained(base)
    config = LoraConfig(r=2, task_type=TaskType.SEQ_CLS, target_modules="all-linear")
    adapted = get_peft_model(reloaded, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn_like(parameter))
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    tokens(folder)
    inputs = AutoTokenizer.from_pretrained(folder)("the moon good", return_tensors="pt")
    with torch.no_grad():
        expected = adapted(**inputs).logits[0].tolist()
    values = Preference(model=str(folder))(["the moon"], [" good"])
    assert values == pytest.approx(expected, abs=1e-4)
    assert values != pytest.approx(Preference(model=base)(["the moon"], [" good"]), abs=1e-2)


def test_an_adapter_of_a_language_model_is_refused(tmp_path):
    config = LlamaConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    lm = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=2, task_type=TaskType.CAUSAL_LM))
    lm.save_pretrained(tmp_path)
    tokens(tmp_path)
    with pytest.raises(RewardConfigError, match="is an adapter for CAUSAL_LM, no sequence"):
        Preference(model=str(tmp_path)).load()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"format": "chat"}, r"format='chat', but '.*' has no chat template"),
        ({"eos": True, "format": "pair"}, "eos=True belongs to plain text"),
        ({"max_length": 2, "format": "chat", "_template": TEMPLATE}, "max_length=2 leaves no room"),
        ({"label": "joy"}, "label='joy' is no label of"),
        ({"_labels": 3}, "label=None, but '.*' has several outputs: 0 'LABEL_0', 1 'LABEL_1'"),
    ],
)
def test_wrong_settings_are_refused_when_the_model_is_loaded(saved, params, message):
    given = {name: value for name, value in params.items() if name[0] != "_"}
    folder = saved(llama(0, params.get("_labels", 1)), template=params.get("_template"))
    with pytest.raises(RewardConfigError, match=message):
        RewardSet([RewardEntry("taste", "model.preference", {"model": folder, **given})])


def test_what_is_no_reward_model_is_refused_by_name(tmp_path, saved):
    with pytest.raises(RewardConfigError, match=r"rewards\.taste\.model='\./nope': there is no"):
        RewardSet([RewardEntry("taste", "model.preference", {"model": "./nope"})])
    config = LlamaConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "lm")
    tokens(tmp_path / "lm")
    with pytest.raises(RewardConfigError, match=r"no trained sequence classifier.*score\.weight"):
        Preference(model=str(tmp_path / "lm")).load()


def test_bfloat16_is_near_float32_and_its_head_is_not_rounded(saved):
    folder = saved(llama(0))
    exact = Preference(model=folder, dtype="float32")(PROMPTS, COMPLETIONS)
    coarse = Preference(model=folder, dtype="bfloat16")(PROMPTS, COMPLETIONS)
    assert coarse == pytest.approx(exact, abs=0.1) and coarse != exact
    rounded = torch.tensor(coarse).to(torch.bfloat16).tolist()
    assert coarse != pytest.approx(rounded, abs=1e-6)


def test_auto_takes_bfloat16_where_the_processor_has_it(saved, monkeypatch):
    folder = saved(llama(0))
    for has, name in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(sequences, "pays_bfloat16", lambda device, has=has: has)
        auto = sequence_classifier(folder, dtype="auto")
        assert auto is sequence_classifier(folder, dtype=name)


def test_the_contract_holds_for_a_reward_model(saved):
    conformance.check("model.preference", {"model": saved(llama(0), template=TEMPLATE)})
    conformance.check("model.preference", {"model": saved(llama(None)), "eos": True})


def test_a_tokenizer_without_a_pad_token_is_no_obstacle(saved):
    folder = saved(llama(None), pad=None)
    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    model = SequenceClassifier(folder, False, "cpu")
    together = model.logits(["good [EOS]", "bad the moon", "moon"])
    assert together[:, 0] == pytest.approx(
        [v for (v,) in alone(folder, ["good [EOS]", "bad the moon", "moon"])], abs=1e-5
    )
