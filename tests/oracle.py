"""A language model small enough to know everything about: all of its sequences are enumerated.

Five letters and EOS, at most seven tokens: 97,656 responses to each of two prompts of unequal
length. Their probabilities come from the real policy, samples from the real engine.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rewards.lexical import contains, word_rate
from rlalign.policy import Policy

LETTERS = ("a", "b", "c", "d", "e")
EOS = 5
MAX_LENGTH = 7
PROMPTS = ("a", "c b d")
Reward = Callable[..., list[float]]


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {letter: i for i, letter in enumerate(LETTERS)} | {"</s>": EOS, "<pad>": 6}
    model = Tokenizer(WordLevel(vocabulary, unk_token="e"))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>", pad_token="</s>")


def language_model(
    seed: int = 0, hidden: int = 32, attention: str = "eager", spread: float = 0.15
) -> LlamaForCausalLM:
    """A two-layer Llama with weights large enough that its distribution is far from uniform.

    Eager attention is the fastest at this size; a policy reads one with "sdpa" in packed passes.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=6,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=EOS,
        tie_word_embeddings=False,
        initializer_range=spread,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config).eval()


@dataclass(frozen=True)
class Sequences:
    ids: Tensor  # (S, T)
    mask: Tensor  # (S, T)
    texts: list[str]


@cache
def all_sequences() -> Sequences:
    """Every response: up to six letters and EOS, or seven letters."""
    ids, lengths, texts = [], [], []
    for n in range(MAX_LENGTH + 1):
        for letters in itertools.product(range(len(LETTERS)), repeat=n):
            row = [*letters, EOS][:MAX_LENGTH]
            ids.append(row + [EOS] * (MAX_LENGTH - len(row)))
            lengths.append(len(row))
            texts.append(" ".join(LETTERS[i] for i in letters))
    mask = torch.arange(MAX_LENGTH) < torch.tensor(lengths).unsqueeze(1)
    return Sequences(torch.tensor(ids), mask, texts)


def next_token_logprobs(
    policy: Policy, logits: Tensor, hidden: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """Every token's log-probability, one named tensor a token."""
    logprobs = logits.float().log_softmax(-1)
    return {str(token): logprobs[:, token] for token in range(logprobs.shape[1])}


@torch.no_grad()
def sequence_logprobs(policy: Policy, prompt_ids: list[int]) -> Tensor:
    """(S,) float64 log-probability of every response to one prompt.

    One pass over the 5^6 ways to begin gives the distribution of every next token; a response's
    log-probability is the sum along its tokens.
    """
    letters = range(len(LETTERS))
    begin = torch.tensor(list(itertools.product(letters, repeat=MAX_LENGTH - 1)))
    ids = torch.cat([begin, torch.zeros(len(begin), 1, dtype=torch.long)], 1)  # (5^6, T)
    prompt = torch.tensor([prompt_ids]).expand(len(ids), -1)
    mask = torch.ones_like(ids, dtype=torch.bool)
    out = policy(prompt, torch.ones_like(prompt, dtype=torch.bool), ids, mask, next_token_logprobs)
    table = torch.stack([out[str(token)] for token in range(len(LETTERS) + 1)], -1).double()
    sequences = all_sequences()
    # The row of `begin` that shares a response's letters: its first six, as a number in base 5.
    digits = torch.where(sequences.ids < EOS, sequences.ids, 0)[:, : MAX_LENGTH - 1]
    powers = len(LETTERS) ** torch.arange(MAX_LENGTH - 2, -1, -1)
    rows = (digits * powers).sum(1)  # (S,)
    steps = table[rows].gather(2, sequences.ids.unsqueeze(-1)).squeeze(-1)  # (S, T)
    return torch.where(sequences.mask, steps, 0.0).sum(1)


@dataclass(frozen=True)
class Distance:
    total_variation: float
    reverse_kl: float  # KL(policy | target)
    base_rate: float  # E[reward] under the reference
    rate: float  # E[reward] under the policy
    target_rate: float


def distances(policy: Policy, reward: Reward, r_over_beta: float) -> Distance:
    """How far the policy is from ref * exp(reward / beta), the mean over the prompts."""
    rows = [astuple(distance(policy, prompt, reward, r_over_beta)) for prompt in PROMPTS]
    return Distance(*torch.tensor(rows).mean(0).tolist())


def distance(policy: Policy, prompt: str, reward: Reward, r_over_beta: float) -> Distance:
    """How far the policy is from one prompt's own ref * exp(reward / beta)."""
    scores = torch.tensor(reward(completions=all_sequences().texts), dtype=torch.float64)
    ids = tokenizer()(prompt)["input_ids"]
    own = sequence_logprobs(policy, ids)
    with policy.reference() as reference:
        ref = sequence_logprobs(reference, ids)
    target = (ref + r_over_beta * scores).log_softmax(0)
    p, t = own.exp(), target.exp()
    return Distance(
        total_variation=float(0.5 * (p - t).abs().sum()),
        reverse_kl=float((p * (own - target)).sum()),
        base_rate=float((ref.exp() * scores).sum()),
        rate=float((p * scores).sum()),
        target_rate=float((t * scores).sum()),
    )


def sparse(completions: list[str], **_: Any) -> list[float]:
    """1 for a response that says 'd a' somewhere."""
    return [float("d a" in text) for text in completions]


def dense(completions: list[str], **_: Any) -> list[float]:
    """The share of a response's letters that are 'c'."""
    return [text.count("c") / max(len(text.split()), 1) for text in completions]


def hit(completions: list[str], **_: Any) -> list[float]:
    """`sparse`, with its credit behind the words."""
    return contains(completions, words=["d a"])


def rate(completions: list[str], **_: Any) -> list[float]:
    """`dense`, with the share's differences from letter to letter as credit."""
    return word_rate(completions, words=["c"])


def config(**sections: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of the oracle's size, in float32 on one thread."""
    base: dict[str, dict[str, Any]] = {
        "model": {"name": "oracle", "dtype": "float32"},
        "prompts": {"eval_fraction": 0.0},
        "sampling": {"max_new_tokens": MAX_LENGTH},
        "train": {"threads": 1},
        "eval": {"every": 0},
    }
    for name, values in sections.items():
        base[name] = base.get(name, {}) | dict(values)
    return base
