"""The engine that samples through vLLM, which TRL starts, feeds with weights and asks."""

import bisect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlalign import trl_bridge
from rlalign.config import ConfigError
from rlalign.generation.engine import make_rollout
from rlalign.generation.sampling import Sampler, sample_inverse_cdf
from rlalign.policy import Policy
from rlalign.settings.sections import VLLMSection
from rlalign.types import PromptBatch, Rollout

logger = logging.getLogger(__name__)


class VLLMEngine:
    """Samples from a copy of the policy in vLLM, neutrally: temperature and nothing else.

    The copy has merged adapters, vLLM's kernels and its precision, so what it samples is not quite
    what the trainer computes: `Rollout.logprobs` are vLLM's own, the denominator of importance
    weights. They are None where vLLM's do not describe what it drew: a server without
    processed_logprobs reports them as they would be at temperature 1.
    """

    talks = True

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        settings: VLLMSection,
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        batch_size: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.accelerator = accelerator
        self.settings = settings
        self.max_new_tokens = max_new_tokens
        self.stop = tuple(stop)
        self.batch_size = batch_size
        self.trust_remote_code = trust_remote_code
        self.eos_id = int(tokenizer.eos_token_id)
        self.policy_step = 0
        self._lm: nn.Module | None = None
        self._served: Any = None  # TRL's VLLMGeneration
        self._held: int | None = None  # the policy step whose weights vLLM has; None: no step's
        self._logprobs_are_right = False

    # -- weights -------------------------------------------------------------------------------

    def sync(self, policy: Policy, policy_step: int = 0) -> None:
        """Sample from `policy` as it stands after `policy_step` steps; sends weights once a step.

        The first call starts vLLM, or joins the server. Every process must call it.
        """
        if self._served is None:
            self._start(policy)
        elif policy.lm is not self._lm:
            raise ValueError("a VLLMEngine serves the policy of its first sync; build another one")
        self.policy_step = policy_step
        if self._held != policy_step:
            self._push()

    def close(self) -> None:
        self._served = self._lm = self._held = None

    def _start(self, policy: Policy) -> None:
        settings, lm = self.settings, policy.lm
        if settings.mode == "colocate" and not lm.name_or_path:
            raise ConfigError(
                "sampling.engine=vllm loads the model from where it was loaded before, and a model "
                "that was built in Python has no such place; save it with save_pretrained and load "
                "it with from_pretrained, or use sampling.engine=decode"
            )
        self._lm = lm
        self._served = trl_bridge.vllm_generation(
            lm,
            self.accelerator,
            self.tokenizer,
            engine=settings.model_dump()
            | {"max_num_seqs": self.batch_size, "trust_remote_code": self.trust_remote_code},
            temperature=policy.temperature,
            max_new_tokens=self.max_new_tokens,
            eos_id=self.eos_id,
            stop=self.stop,
        )
        # The main process alone talks to a server.
        mode = broadcast_object_list([trl_bridge.vllm_logprobs_mode(self._served)])[0]
        self._logprobs_are_right = mode == "processed_logprobs" or policy.temperature == 1.0
        if not self._logprobs_are_right and self.accelerator.is_main_process:
            logger.warning(
                "the vLLM server reports %s, which ignore sampling.temperature=%g: they are "
                "dropped, and nothing corrects for its differences from the trainer; restart it "
                "with --logprobs-mode processed_logprobs",
                mode,
                policy.temperature,
            )

    @torch.no_grad()
    def _push(self) -> None:
        assert self._lm is not None
        with base_kept(self._lm):
            self._served.sync_weights()
        self._held = self.policy_step

    # -- responses -----------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        prompts: PromptBatch,
        n: int,
        generator: torch.Generator,
        sampler: Sampler = sample_inverse_cdf,
    ) -> Rollout:
        """`n` responses to each prompt, samples of one prompt side by side.

        Every process must call it with equally many prompts. Colocated, the same generator gives
        the same responses as far as vLLM's kernels repeat; a server draws by its own state.
        """
        if sampler is not sample_inverse_cdf:
            raise ValueError(
                "sampling.engine=vllm draws inside vLLM, where no sampler of one's own can go; use "
                "sampling.engine=decode"
            )
        if self._served is None:
            raise RuntimeError("VLLMEngine.generate before sync(policy)")
        if self._held != self.policy_step:  # it slept, which lost the weights
            self._push()
        index = torch.arange(len(prompts), device=prompts.prompt_ids.device).repeat_interleave(n)
        repeated = prompts.rows(index)
        rows = [
            ids[mask].tolist()
            for ids, mask in zip(repeated.prompt_ids, repeated.prompt_mask, strict=True)
        ]
        # Every prompt stands there n times in both modes. Colocated, TRL draws one response to
        # each; for a server it takes every n-th of all processes' prompts, and n responses to it.
        with self._randomness(generator):
            _, completions, logprobs, logprob_ids = self._served.generate(
                prompts=rows, images=None, num_generations=n
            )
        if self.settings.mode == "colocate" and self.settings.enable_sleep_mode:
            self._held = None
        assert len(completions) == len(rows), (len(completions), len(rows))
        ends = [self._end(ids) for ids in completions]
        ids = self._padded([row[:end] for row, (end, _) in zip(completions, ends, strict=True)], -1)
        drawn = None
        if self._logprobs_are_right:
            of_sampled = [
                self._of_sampled(*row)
                for row in zip(completions, logprobs, logprob_ids, strict=True)
            ]
            drawn = self._padded(of_sampled, 0.0).masked_fill(ids < 0, 0.0).to(index.device)
        finished = torch.tensor([done for _, done in ends], device=index.device)
        return make_rollout(
            repeated, ids.to(index.device), drawn, finished, index, self.policy_step, self.tokenizer
        )

    @contextmanager
    def _randomness(self, generator: torch.Generator) -> Iterator[None]:
        """A colocated vLLM draws from this process's global generators: seeded, then put back."""
        if self.settings.mode == "server":
            yield
            return
        seed = int(torch.randint(2**62, (), generator=generator))
        # Processes that hold parts of one model must draw alike, each response being theirs all.
        parts = self.settings.tensor_parallel_size
        seed = gather_object([seed])[self.accelerator.process_index // parts * parts]
        numpys = np.random.get_state()
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            try:
                yield
            finally:
                np.random.set_state(numpys)

    def _end(self, ids: list[int]) -> tuple[int, bool]:
        """How many tokens of a completion are the response, and whether it came to its end.

        vLLM's ids include the EOS token, or the token that completed a stop string, at which it
        stopped. The rule is the decode engine's own, whatever vLLM's reason was.
        """
        end = ids.index(self.eos_id) + 1 if self.eos_id in ids else 0
        if self.stop and self._has_stop(ids[: end or None]):
            lengths = range(1, (end or len(ids)) + 1)
            end = 1 + bisect.bisect_left(lengths, True, key=lambda t: self._has_stop(ids[:t]))
        if end:
            return end, True
        if len(ids) >= self.max_new_tokens:
            return len(ids), False
        if self.stop:  # a stop string that begins in the prompt's last characters, or in a space
            return len(ids), True
        raise RuntimeError(
            f"vLLM ended a response after {len(ids)} of sampling.max_new_tokens="
            f"{self.max_new_tokens} tokens without the EOS token {self.eos_id}: its context is too "
            "short; raise vllm.max_model_length, or the server's --max-model-len"
        )

    def _has_stop(self, ids: list[int]) -> bool:
        # Special tokens too: a stop string may name one, such as the end of a chat turn.
        text = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return any(s in text for s in self.stop)

    @staticmethod
    def _of_sampled(
        ids: list[int], logprobs: list[list[float | None]], logprob_ids: list[list[int]]
    ) -> list[float]:
        """The log-probability of each sampled token, from the few likeliest that vLLM reports."""
        found = []
        for token, values, tokens in zip(ids, logprobs, logprob_ids, strict=True):
            value = dict(zip(tokens, values, strict=True))[token]
            if value is None:  # TRL's word for NaN
                raise RuntimeError(f"vLLM drew token {token} from logits that are not finite")
            found.append(value)
        return found

    def _padded(self, rows: Sequence[Sequence[float]], filler: float) -> Tensor:
        """(B, T) the rows, with `filler` behind the end of each."""
        limit = self.max_new_tokens
        return torch.tensor([[*row, *[filler] * (limit - len(row))] for row in rows])


@contextmanager
def base_kept(lm: nn.Module) -> Iterator[None]:
    """Whatever is merged into adapted weights meanwhile is gone afterwards, to the last bit.

    TRL merges adapters in place to send them and subtracts them again, which in bfloat16 would
    move the reference by 0.06 nats at every step. It gets copies: for the time of the push they
    take the memory of the adapted weights once more.
    """
    adapted = (
        [p for name, p in lm.named_parameters() if ".base_layer." in name]
        if isinstance(lm, PeftModel)
        else []
    )
    kept = [p.data for p in adapted]
    try:
        for p in adapted:
            p.data = p.data.clone()
        yield
    finally:
        for p, data in zip(adapted, kept, strict=True):
            p.data = data
