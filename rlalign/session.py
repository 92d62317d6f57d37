"""The composition root: a configuration becomes live objects, the cheap checks first."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerBase, TrainerState

from rewards import classifiers
from rewards.compose import PROBE_TEXTS, RewardSet, parse_entries
from rewards.contract import RewardConfigError
from rewards.randomness import derived
from rewards.trl_style import HANDED, Logged, context
from rlalign.audit import check_judges
from rlalign.config import ConfigError
from rlalign.generation import (
    DecodeEngine,
    RolloutEngine,
    build_engine,
    check_engine,
    decode_engine,
)
from rlalign.heap import keep_freed_memory
from rlalign.models import build_policy, check_tokenizer, load_tokenizer, locate
from rlalign.prompts import PromptSet, encode, load_prompts, scheduled
from rlalign.ranks import Ranks, set_threads
from rlalign.runs import RunFolder, open_run
from rlalign.settings.sections import RunConfig
from rlalign.sizes import token_budget
from rlalign.target import declare
from rlalign.types import PromptBatch

logger = logging.getLogger(__name__)

RewardFunction = Callable[..., Any]


class Session:
    """Everything a run works with: ranks, tokenizer, prompts, rewards, policy, engine.

    `lm`, `tokenizer`, `prompts` and `rewards` stand in for what the configuration names, or (for
    rewards) add to it. Raises ConfigError before a model is loaded wherever that is possible.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        lm: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        prompts: Sequence[str | Mapping[str, Any]] | None = None,
        rewards: Sequence[RewardFunction] = (),
        ranks: Ranks | None = None,
        source: str = "prompts=",
    ) -> None:
        """`source` is what errors call the prompts that are given."""
        self.config, self.source = config, source
        self.ranks = Ranks() if ranks is None else ranks
        threads = set_threads(config.train.threads)
        if self.ranks.device.type == "cpu":
            keep_freed_memory()
        if self.ranks.is_main:
            logger.info("%d process(es) with %d thread(s) each", self.ranks.size, threads)
        classifiers.set_device(str(self.ranks.device))
        check_samples(config, self.ranks.size)
        check_engine(config, self.ranks.device, self.ranks.size)
        self.tokenizer = (
            load_tokenizer(config.model)
            if tokenizer is None
            else check_tokenizer(tokenizer, config.model.name)
        )
        self.given_lm, self.given_prompts = lm is not None, prompts is not None
        self.evaluates_on_held_out = True
        self.longest_prompt = self._longest_prompt(lm)
        self.prompts, self.eval_prompts = self._load_prompts(prompts)
        # A reward that loads random numbers is the same function on every rank.
        seed = self.seed("load rewards", 0, of_rank=False)
        self.reward_set = RewardSet(parse_entries(config.rewards), list(rewards), seed)
        if not any(self.reward_set.weights) and not any(
            entry.is_constraint for entry in self.reward_set.entries
        ):
            logger.warning("every reward has weight 0: only the KL to the reference is optimised")
        try:
            self.target = declare(config, self.reward_set)
            self._open(lm)
        except BaseException:  # the processes of isolated rewards are there already
            self.reward_set.close()
            raise

    def _open(self, lm: nn.Module | None) -> None:
        """Try the rewards on the prompts; then the policy and its engine."""
        config = self.config
        check_judges(config.audit, self.reward_set.names)
        for prompts_of in (self.prompts, self.eval_prompts):
            check_columns(self.reward_set, prompts_of, self.columns_of(prompts_of))
        first = self.prompts.subset([0] * len(PROBE_TEXTS))
        seed = self.seed("probe rewards", 0)
        self.reward_set.probe(first.texts, self.columns_of(first, PROBE_TEXTS), seed)
        # The value head and LoRA start from random numbers: the same ones for the same seed.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            self.policy = build_policy(
                config.model, config.sampling.temperature, self.ranks.device, lm
            )
        self.budget = self._token_budget()
        self.engine = self.new_engine()

    def _token_budget(self) -> int:
        """Tokens of a micro-batch."""
        policy, model = self.policy, self.config.model
        itemsize = 4 if policy.autocast_dtype is None else policy.autocast_dtype.itemsize
        return token_budget(
            self.config.optim.micro_batch_tokens,
            policy.lm.config,
            self.ranks.device,
            itemsize,
            model.gradient_checkpointing,
        )

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
        self.reward_set.close()

    def new_engine(self) -> RolloutEngine:
        """The engine that the configuration names, with no policy yet."""
        return build_engine(self.config, self.tokenizer, self.ranks.accelerator)

    def measuring_engine(self) -> DecodeEngine:
        """The decode loop, in which what is drawn does not depend on how many rows are at once.

        No more of them than an iteration has: so no more memory is taken than in training.
        """
        sampling = self.config.sampling
        most = sampling.batch_size or max(self.config.train.samples // self.ranks.size, 1)
        given = sampling.model_copy(update={"batch_size": most})
        return decode_engine(given, self.tokenizer)

    def _load_prompts(
        self, given: Sequence[str | Mapping[str, Any]] | None
    ) -> tuple[PromptSet, PromptSet]:
        section, seed = self.config.prompts, self.config.train.seed
        limit = self.longest_prompt
        if given is None:
            everything = load_prompts(section, self.tokenizer, limit)
        else:
            rows = [{section.column: p} if isinstance(p, str) else p for p in given]
            everything = encode(rows, section, self.tokenizer, limit, self.source)
        if section.eval_path is not None:
            path, setting = section.eval_path, "prompts.eval_path"
            return everything, load_prompts(section, self.tokenizer, limit, path, setting)
        train, held_out = everything.split(section.eval_fraction, seed)
        if len(held_out):
            return train, held_out
        self.evaluates_on_held_out = False
        if self.config.eval.every:
            logger.warning(
                "prompts.eval_fraction=%g of %d prompts holds out none: evaluations use the "
                "training prompts; raise it, or name held-out ones by prompts.eval_path",
                section.eval_fraction,
                len(train),
            )
        return train, train

    def columns_of(self, prompts: PromptSet, responses: Sequence[str] = ()) -> dict[str, Any]:
        """What the rewards get beside prompts and responses (default: empty ones)."""
        texts = responses or [""] * len(prompts)
        quietly = {"add_special_tokens": False, "verbose": False}  # the context may be exceeded
        ids = [self.tokenizer(text, **quietly)["input_ids"] if text else [] for text in texts]
        handed = context(ids, prompts.messages, self.trainer_state(0), Logged())
        return {**prompts.columns, **handed}

    def _longest_prompt(self, lm: nn.Module | None) -> int | None:
        model = self.config.model
        config = (
            AutoConfig.from_pretrained(
                locate(model), revision=model.revision, trust_remote_code=model.trust_remote_code
            )
            if lm is None
            else lm.config
        )
        return longest_prompt(self.config, config)

    def encode(self, prompts: Sequence[str | Mapping[str, Any]]) -> PromptBatch:
        """Prompts from outside the run's data as a batch."""
        encoded = self.encoded(prompts)
        return encoded.batch(range(len(encoded)), self.ranks.device)

    def encoded(self, prompts: Sequence[str | Mapping[str, Any]]) -> PromptSet:
        """The same before it is one."""
        column = self.config.prompts.column
        rows = [{column: p} if isinstance(p, str) else p for p in prompts]
        return encode(rows, self.config.prompts, self.tokenizer, self.longest_prompt, self.source)

    # -- randomness and order ------------------------------------------------------------------

    def generator(
        self, purpose: str, step: int, draw: int = 0, *, of_rank: bool = True
    ) -> torch.Generator:
        """A generator with the seed that `seed` gives."""
        return torch.Generator().manual_seed(self.seed(purpose, step, draw, of_rank=of_rank))

    def seed(self, purpose: str, step: int, draw: int = 0, *, of_rank: bool = True) -> int:
        """A seed that depends on train.seed, purpose, step, draw and rank, on nothing before it.

        So there is no generator state to save: a resumed run draws what an unbroken one would, and
        its rewards do too. Without `of_rank` every rank has the same one.
        """
        rank = self.ranks.rank if of_rank else 0
        return derived(self.config.train.seed, purpose, step, draw, rank)

    def trainer_state(self, steps: int | None = None, samples: int = 0) -> TrainerState:
        """What TRL's trainers would call the state after these steps, or (None) at the end."""
        train = self.config.train
        total = train.iterations * self.config.steps_per_iteration
        a_pass = self.config.sampling.samples_per_prompt * len(self.prompts)  # samples of an epoch
        if steps is None:
            steps, samples = total, train.iterations * train.samples
        return TrainerState(
            epoch=samples / a_pass,
            global_step=steps,
            max_steps=total,
            logging_steps=self.config.steps_per_iteration,
            num_train_epochs=math.ceil(train.iterations * train.samples / a_pass),
            is_local_process_zero=self.ranks.is_main,
            is_world_process_zero=self.ranks.is_main,
        )

    def prompt_batch(self, iteration: int) -> PromptBatch:
        """This rank's prompts of an iteration: its slice of the one global order."""
        count = self.config.train.samples // self.config.sampling.samples_per_prompt
        seed = self.config.train.seed
        chosen = scheduled(len(self.prompts), seed, iteration * count, count)
        share = count // self.ranks.size
        mine = chosen[self.ranks.rank * share : (self.ranks.rank + 1) * share]
        return self.prompts.batch(mine, self.ranks.device)


def open_folder(session: Session, stem: str) -> RunFolder:
    """The run's folder, made by rank 0 and told to the others; raises ConfigError on all alike."""
    answer: tuple[str, str] = ("", "")
    if session.ranks.is_main:
        try:
            answer = ("", str(open_run(session.config.run, stem).path))
        except ConfigError as error:
            answer = (str(error), "")
    message, path = session.ranks.from_main(answer)
    if message:
        raise ConfigError(message)
    return RunFolder(Path(path))


def longest_prompt(config: RunConfig, of_model: Any) -> int | None:
    """Most tokens that a prompt may have: what the model's context leaves beside the response."""
    wanted, most = config.sampling.max_new_tokens, config.prompts.max_length
    fields = vars(of_model.get_text_config())
    context: int | None = fields.get("max_position_embeddings") or fields.get("n_positions")
    served = config.vllm.max_model_length
    if config.sampling.engine == "vllm" and served is not None:
        context = min(context or served, served)
    if context is None:
        return most
    if wanted >= context:
        raise ConfigError(
            f"sampling.max_new_tokens={wanted} leaves no room for a prompt in the model's "
            f"context of {context} tokens; lower it"
        )
    return min(context - wanted, most or context)


def check_columns(
    reward_set: RewardSet, prompts: PromptSet, columns: Mapping[str, Sequence[Any]]
) -> None:
    """Refuse prompts whose columns the rewards cannot work with, naming the file and the row."""
    for name in HANDED:
        if name in prompts.columns:
            raise RewardConfigError(
                f"{prompts.source.rstrip('=')}: the column '{name}' has the name of something that "
                "the run hands to rewards; rename it"
            )
    try:
        reward_set.check(prompts.texts, columns)
    except RewardConfigError as error:
        row = "" if error.row is None else f"row {prompts.numbers[error.row]} of "
        raise RewardConfigError(f"{row}{prompts.source.rstrip('=')}: {error}") from error


def check_samples(config: RunConfig, world: int) -> None:
    """Refuse sample counts that do not split evenly over processes, prompts and minibatches."""
    samples, per_prompt = config.train.samples, config.sampling.samples_per_prompt
    minibatches = config.minibatches
    unit = world * math.lcm(minibatches, per_prompt)
    if samples % unit:
        below, above = samples // unit * unit, (samples // unit + 1) * unit
        nearest = f"{below} or {above}" if below else str(above)
        raise ConfigError(
            f"train.samples={samples} does not split over {world} processes x {minibatches} "
            f"minibatches with {per_prompt} samples a prompt; nearest valid: {nearest}"
        )
