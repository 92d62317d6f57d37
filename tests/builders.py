"""Small models, tokenizers, rollouts and trainers for the tests of the core."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import oracle
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from rewards.compose import RewardSet, parse_entries
from rlalign.algorithms.ppo import PPO, PPORun
from rlalign.config import from_mapping
from rlalign.generation import DecodeEngine
from rlalign.models import build_policy
from rlalign.policy import Policy
from rlalign.session import Session
from rlalign.settings.sections import LoraSection, ModelSection
from rlalign.trainer import Trainer
from rlalign.types import PromptBatch, Rollout

VOCABULARY = 6


def gpt2(dropout: float = 0.0, positions: int = 64) -> GPT2LMHeadModel:
    """Learned absolute positions: a model that notices left padding."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=positions,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=oracle.EOS,
        eos_token_id=oracle.EOS,
        initializer_range=0.3,
        attn_pdrop=dropout,
        embd_pdrop=dropout,
        resid_pdrop=dropout,
    )
    return GPT2LMHeadModel(config).eval()


def gemma2() -> Gemma2ForCausalLM:
    """Tied embeddings and soft-capped logits: logits are not the head of the last hidden state."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.5,
        final_logit_softcapping=2.0,
        pad_token_id=oracle.EOS,
        eos_token_id=oracle.EOS,
        bos_token_id=oracle.EOS,
    )
    return Gemma2ForCausalLM(config).eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token; ' rain' and 'n.' are tokens too; a character may be several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "r"), ("a", "i"), ("Ġr", "ai"), ("Ġrai", "n"), ("n", ".")]
    vocabulary = [*alphabet, *("".join(pair) for pair in merges), "</s>"]
    model = BPE({token: i for i, token in enumerate(vocabulary)}, merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def prompt_batch(prompts: Sequence[str] = oracle.PROMPTS) -> PromptBatch:
    """Prompts in the oracle's letters, left-padded."""
    rows = [oracle.tokenizer()(text)["input_ids"] for text in prompts]
    width = max(len(row) for row in rows)
    ids = [[oracle.EOS] * (width - len(row)) + row for row in rows]
    mask = [[False] * (width - len(row)) + [True] * len(row) for row in rows]
    return PromptBatch(torch.tensor(ids), torch.tensor(mask), list(prompts), {})


def rollout(
    responses: Sequence[str],
    prompts: Sequence[str] | None = None,
    finished: Sequence[bool] | None = None,
    extra_padding: int = 0,
) -> Rollout:
    """Responses in the oracle's letters, an EOS behind the finished ones (default: all)."""
    prompts = ["a"] * len(responses) if prompts is None else prompts
    finished = [True] * len(responses) if finished is None else finished
    rows = [
        oracle.tokenizer()(text)["input_ids"] + [oracle.EOS] * ends
        for text, ends in zip(responses, finished, strict=True)
    ]
    width = max(len(row) for row in rows) + extra_padding
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.tensor([row + [oracle.EOS] * (width - len(row)) for row in rows])
    mask = torch.arange(width) < lengths.unsqueeze(1)
    return Rollout(
        prompts=prompt_batch(prompts),
        response_ids=ids,
        response_mask=mask,
        action_mask=mask,
        logprobs=None,
        finished=torch.tensor(finished),
        group=torch.arange(len(responses)),
        policy_step=0,
        texts=list(responses),
    )


def engine(policy: Policy, **settings: Any) -> DecodeEngine:
    """A decode engine on the oracle's tokenizer, synced to the policy."""
    made = DecodeEngine(oracle.tokenizer(), **({"max_new_tokens": 3} | settings))
    made.sync(policy)
    return made


def drawn(policy: Policy, seed: int = 0, n: int = 3, **settings: Any) -> Rollout:
    """Responses to the oracle's prompts, 20 times over."""
    made = engine(policy, **({"max_new_tokens": 7} | settings))
    return made.generate(prompt_batch(oracle.PROMPTS * 20), n, seeded(seed))


def adapted_policy(
    dtype: torch.dtype = torch.float32,
    lm: nn.Module | None = None,
    std: float = 0.3,
    target_modules: Sequence[str] | None = None,
    **section: Any,
) -> Policy:
    """The oracle's model, or `lm`, under LoRA adapters that are not zero."""
    lora = (
        LoraSection(r=2)
        if target_modules is None
        else LoraSection(r=2, target_modules=list(target_modules))
    )
    lm = (oracle.language_model() if lm is None else lm).to(dtype)
    policy = build_policy(ModelSection(lora=lora, **section), 1.0, torch.device("cpu"), lm)
    for name, parameter in policy.trainable().items():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=std)
    return policy


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def session(
    lm: nn.Module | None = None,
    rewards: Sequence[Callable[..., Any]] = (oracle.sparse,),
    prompts: Sequence[Any] = oracle.PROMPTS,
    **sections: Mapping[str, Any],
) -> Session:
    """A session on the oracle's model with plain functions as rewards."""
    # `prompts_` is the configuration's section: `prompts` are the prompts themselves.
    sections = {name.rstrip("_"): values for name, values in sections.items()}
    config = from_mapping(PPORun, oracle.config(**sections), rewards_given=True)
    return Session(
        config,
        lm=oracle.language_model() if lm is None else lm,
        tokenizer=oracle.tokenizer(),
        prompts=prompts,
        rewards=rewards,
    )


def trainer(
    lm: nn.Module | None = None,
    rewards: Sequence[Callable[..., Any]] = (oracle.sparse,),
    prompts: Sequence[Any] = oracle.PROMPTS,
    **sections: Mapping[str, Any],
) -> Trainer:
    """A PPO trainer on the oracle's model; 16 samples and one minibatch unless told otherwise."""
    sections = {"train": {"samples": 16}, "ppo": {"minibatches": 1}} | {
        name: dict(values) for name, values in sections.items()
    }
    sections["train"] = {"samples": 16} | dict(sections["train"])
    sections["ppo"] = {"minibatches": 1} | dict(sections["ppo"])
    made = session(lm, rewards, prompts, **sections)
    return Trainer(made, PPO(made.config))  # type: ignore[arg-type]


def parameters(module: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter, to compare with later."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def on_two_ranks(job: Callable[[int, Callable[[Tensor], Tensor]], Any]) -> list[Any]:
    """What `job(rank, sum_over_ranks)` returns on each of two ranks, played by threads."""
    barrier, slots, results = threading.Barrier(2, timeout=30), [None, None], [None, None]

    def run(rank: int) -> None:
        def sum_over_ranks(x: Tensor) -> Tensor:
            slots[rank] = x
            barrier.wait()
            total = slots[0] + slots[1]
            barrier.wait()
            return total

        results[rank] = job(rank, sum_over_ranks)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def reward_set(rewards: Mapping[str, Any]) -> RewardSet:
    """The rewards of a configuration's section."""
    return RewardSet(parse_entries(rewards))
