"""Which token fixes which character, against trying out what may follow, on hostile responses."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import builders
import oracle
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rewards import embedded
from rewards.contract import Span
from rlalign.offsets import BYTE_OF, Offsets
from rlalign.scoring import place_credit
from rlalign.types import Rollout

RESPONSES, LONGEST = 250, 12  # of each tokenizer
HOSTILE = (
    " rain in the rainbow, it's raining",
    "  two  spaces\n\n\tand a tab ",
    "n\u00e9e cafe\u0301 a\u0300\u0301\u0302b \u1e9b\u0323 \u00df\u0130\ufb01",  # marks, ligatures
    "\U0001f469\U0001f3fd\u200d\U0001f680 \u2764\ufe0f \U0001f1ea\U0001f1fa",  # joined, a flag
    "\u6771\u4eac\u306b\u96e8\u304c\u3002 \u0634\u0645\u0633 \u0939\u093f\u0928\u094d\u0926\u0940",
    "\ufffd real \ufffd marks \ufffd",
    "\u2581 a \u2581\u2581b ## ##c",
)
# As byte-level BPE and as byte fallback spell them: bytes that go on in a character, and a bad one.
FIRST, LAST, BAD = ("\u0122", "<0x80>"), ("\u00bf", "<0xBF>"), ("\u00ff", "<0xFF>")


def fast(model: models.Model, decoder: decoders.Decoder) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def sentencepiece(decoder: decoders.Decoder) -> PreTrainedTokenizerFast:
    """Pieces with their spaces, and a token for each byte of what has no piece."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581",
              "\u2581\u2581", "\u2581rain", "rain", "bow", "\u2581a", "a", "b", "x", ".", ",",
              "'", "s", "\n", "\u00e9", "\u0301", "\u6771", "\U0001f680", "\ufffd"]  # fmt: skip
    return fast(models.BPE({piece: i for i, piece in enumerate(pieces)}, []), decoder)


def wordpiece() -> PreTrainedTokenizerFast:
    words = ["<unk>", "</s>", "rain", "##bow", "##s", "a", "it", "x", ".", ",", "'", "s", "don",
             "n't", "do", "not", "##\u0301", "\u00e9", "\u6771", "##\u4eac", "\U0001f680", "##",
             "\ufffd"]  # fmt: skip
    model = models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    return fast(model, decoders.WordPiece())


def hidden_byte_level() -> PreTrainedTokenizerFast:
    """Byte-level, but not recognisable as such: every prefix is decoded."""
    tokenizer = builders.byte_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel()])
    return tokenizer


LLAMA = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "SmolLM2": lambda: AutoTokenizer.from_pretrained(embedded.path("smollm2-135m")),
    "glass-tiny": lambda: AutoTokenizer.from_pretrained(embedded.path("glass-tiny")),
    "bytes": builders.byte_tokenizer,
    "hidden bytes": hidden_byte_level,
    "Llama 2": lambda: sentencepiece(decoders.Sequence([*LLAMA, decoders.Strip(" ", 1, 0)])),
    "Gemma": lambda: sentencepiece(decoders.Sequence(LLAMA)),
    "Metaspace": lambda: sentencepiece(decoders.Metaspace()),
    "WordPiece": wordpiece,
    "words": oracle.tokenizer,
}
EXACT = {"SmolLM2", "bytes", "words", "glass-tiny"}
tokenizer_of = cache(lambda name: TOKENIZERS[name]())


def decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


@cache
def continuations(name: str) -> list[list[int]]:
    """What may follow a response: among it what completes or spoils any unfinished character.

    Up to three bytes 80 or three bytes BF complete every beginning of a character in UTF-8.
    """
    vocabulary = tokenizer_of(name).get_vocab()
    first, last, bad = (
        [vocabulary[token] for token in byte if token in vocabulary] for byte in (FIRST, LAST, BAD)
    )
    words = [[vocabulary[word]] for word in ("x", "a", "##bow", "n't", ".") if word in vocabulary]
    return [
        ids for ids in ([], bad, *(byte * n for byte in (first, last) for n in (1, 2, 3)), *words)
    ]


def tried_out(name: str, ids: Sequence[int]) -> list[int]:
    """Characters that stay, after each token, whatever of `continuations` or of `ids` follows."""
    tokenizer, counts = tokenizer_of(name), []
    for t in range(len(ids)):
        begun = ids[: t + 1]
        texts = [decode(tokenizer, [*begun, *more]) for more in continuations(name)]
        texts.append(decode(tokenizer, ids))
        counts.append(len(shared(texts)))
    return counts


def shared(texts: Sequence[str]) -> str:
    """The longest common beginning."""
    low, high = min(texts), max(texts)
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), None)
    return low if same is None else low[:same]


def responses(name: str, seed: int = 0) -> list[list[int]]:
    """Random ids: any tokens, hostile text cut and spliced anywhere, loose bytes, EOS."""
    rng, tokenizer = random.Random(seed), tokenizer_of(name)
    hostile = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in HOSTILE]
    vocabulary = tokenizer.get_vocab()
    loose = [
        vocabulary[token] for byte in (FIRST, LAST, BAD) for token in byte if token in vocabulary
    ]
    loose += [
        i for token, i in vocabulary.items() if token in ("\u00e2", "\u00f0", "<0xE2>", "<0xF0>")
    ]
    found: list[list[int]] = [[], [tokenizer.eos_token_id]]
    while len(found) < RESPONSES:
        ids: list[int] = []
        while len(ids) < rng.randint(1, LONGEST):
            kind, text = rng.random(), rng.choice(hostile)
            if kind < 0.5 and text:
                start = rng.randrange(len(text))
                ids += text[start : start + rng.randint(1, 6)]
            elif kind < 0.7:
                ids += rng.choices(range(len(tokenizer)), k=rng.randint(1, 3))
            elif kind < 0.95 and loose:
                ids += rng.choices(loose, k=rng.randint(1, 4))
            else:
                ids.append(tokenizer.eos_token_id)
        # Some are cut at the length limit, perhaps within a character; the others end.
        found.append(
            ids[:LONGEST] if rng.random() < 0.5 else [*ids[:LONGEST], tokenizer.eos_token_id]
        )
    return found


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_character_is_fixed_when_nothing_that_may_follow_can_change_it(name):
    tokenizer, late = tokenizer_of(name), 0
    offsets = Offsets(tokenizer)
    for ids in responses(name):
        text = decode(tokenizer, ids)
        ours, truth = offsets.fixed(ids, text), tried_out(name, ids)
        for t, (fixed, stays) in enumerate(zip(ours, truth, strict=True)):
            where = (
                f"{ids} {text!r} token {t}: {fixed} characters are said to be fixed, not {stays}"
            )
            assert fixed <= stays, where
            # Outside byte-level BPE a U+FFFD may wait for what follows it; nothing else may.
            assert not text[fixed:stays].strip("\ufffd"), where
            late += fixed < stays
    assert late == 0 or name not in EXACT


def test_the_responses_are_as_hostile_as_they_should_be():
    """Guards the test above: texts that fall into other tokens, cut characters, empty ones."""
    for name in ("SmolLM2", "bytes", "Llama 2"):
        tokenizer = tokenizer_of(name)
        texts = [(ids, decode(tokenizer, ids)) for ids in responses(name)]
        again = [tokenizer(text, add_special_tokens=False)["input_ids"] for _, text in texts]
        kept = [[i for i in ids if i != tokenizer.eos_token_id] for ids, _ in texts]
        assert sum(a != k for a, k in zip(again, kept, strict=True)) > RESPONSES / 4
        assert sum("\ufffd" in text for _, text in texts) > RESPONSES / 4
        assert sum(text == "" for _, text in texts) >= 2
        follow = [decode(tokenizer, [*begun, *more]) for begun, more in unfinished(name)]
        assert follow == ["\u0080", "\u0800", "\U00010000", "\ud7ff", "\U0010ffff"]


def unfinished(name: str) -> list[tuple[list[int], list[int]]]:
    """Beginnings of characters, and those of `continuations` that complete them."""
    vocabulary = tokenizer_of(name).get_vocab()

    def ids(data: bytes) -> list[int]:
        letters = {byte: letter for letter, byte in BYTE_OF.items()}
        spelled = [(letters[byte], f"<0x{byte:02X}>") for byte in data]
        return [next(vocabulary[n] for n in names if n in vocabulary) for names in spelled]

    pairs = [(b"\xc2", b"\x80"), (b"\xe0\xa0", b"\x80"), (b"\xf0\x90", b"\x80\x80"),
             (b"\xed\x9f", b"\xbf"), (b"\xf4\x8f", b"\xbf\xbf")]  # fmt: skip
    return [(ids(begun), ids(more)) for begun, more in pairs]


def one_response(name: str, ids: list[int]) -> Rollout:
    rollout = builders.rollout([""])
    mask = torch.ones(1, len(ids), dtype=torch.bool)
    return replace(rollout, response_ids=torch.tensor([ids]), response_mask=mask, action_mask=mask,
                   texts=[decode(tokenizer_of(name), ids)])  # fmt: skip


@pytest.mark.parametrize("name", ["SmolLM2", "bytes", "Llama 2", "WordPiece"])
def test_credit_lands_where_its_end_is_fixed_and_sums_to_the_score(name):
    rng = random.Random(1)
    for ids in responses(name, seed=1)[1:]:
        rollout = one_response(name, ids)
        text, stays = rollout.texts[0], tried_out(name, ids)
        spans = [Span(max(end - 3, 0), end, rng.uniform(-2, 2)) for end in range(len(text) + 1)
                 if rng.random() < 0.5 and "\ufffd" not in text[end : end + 2]]  # fmt: skip
        score = torch.tensor([rng.uniform(-3, 3)])
        rewards = place_credit(rollout, score, [spans], tokenizer_of(name))[0].double()
        expected = [0.0] * len(ids)
        for span in spans:
            first = next((t for t, n in enumerate(stays) if n > span.end), len(ids) - 1)
            expected[first] += span.credit
        expected[-1] += float(score) - sum(span.credit for span in spans)
        assert rewards.tolist() == pytest.approx(expected, abs=1e-6 * (1 + len(spans)))
        # In float64, up to the rounding of the last reward to float32.
        assert abs(float(rewards.sum() - score.double())) <= abs(float(rewards[-1])) * 2**-24


def test_the_text_is_not_tokenised_again():
    """ "rain." in three tokens of an unusual split: the full stop comes with the third."""
    tokenizer = tokenizer_of("SmolLM2")
    ids = [
        tokenizer.convert_tokens_to_ids(token) for token in ("\u0120ra", "in", ".", "<|im_end|>")
    ]
    assert tokenizer(decode(tokenizer, ids))["input_ids"] != ids[:-1]
    rewards = place_credit(one_response("SmolLM2", ids), torch.tensor([1.0]), [[Span(1, 5, 1.0)]],
                           tokenizer)  # fmt: skip
    assert rewards.tolist() == [[0.0, 0.0, 1.0, 0.0]]


@pytest.mark.parametrize("name", ["SmolLM2", "glass-tiny", "Llama 2", "WordPiece"])
def test_a_long_response_is_mapped_without_decoding_its_prefixes(name, monkeypatch):
    """Linear: of 1,000 tokens each is looked up, and decoded at most once."""
    tokenizer, decoded = tokenizer_of(name), []
    ids = (tokenizer(" rain, a.", add_special_tokens=False)["input_ids"] * 500)[:1000]
    text, offsets = decode(tokenizer, ids), Offsets(tokenizer)

    def counted(ids: Sequence[int]) -> str:
        decoded.extend(ids)
        return decode(tokenizer, ids)

    monkeypatch.setattr(offsets, "_decode", counted)
    assert offsets.fixed(ids, text)[-1] == len(text)
    assert len(decoded) < 50
