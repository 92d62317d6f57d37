"""The engine of this process: a decode loop that draws by inverse CDF and drops finished rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from rlalign.generation.engine import make_rollout
from rlalign.generation.sampling import Sampler, sample_inverse_cdf
from rlalign.policy import Policy, positions
from rlalign.types import PromptBatch, Rollout

# Finished rows are dropped from the cache once so few of the decoded rows are alive: the copy of
# the cache then costs less than the rows it saves.
COMPACT_BELOW = 0.75


@dataclass
class _Decoding:
    """Rows still being written; `rows` are their places in the output."""

    rows: Tensor  # (L,)
    mask: Tensor  # (L, tokens so far)
    next_position: Tensor  # (L,)
    cache: DynamicCache
    logits: Tensor  # (L, V) for the next token

    def keep(self, alive: Tensor) -> None:
        index = alive.nonzero().squeeze(-1)
        self.rows, self.mask = self.rows[index], self.mask[index]
        self.next_position, self.logits = self.next_position[index], self.logits[index]
        self.cache.batch_select_indices(index)


class DecodeEngine:
    """Samples from a policy held in this process, neutrally: temperature and nothing else.

    No field of the model's own generation configuration is read (no top-k, top-p or repetition
    penalty), so what is sampled is the distribution that the log-probabilities describe.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        batch_size: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.stop = tuple(stop)
        self.batch_size = batch_size
        self.eos_id = int(tokenizer.eos_token_id)
        self.policy: Policy | None = None
        self.policy_step = 0

    def sync(self, policy: Policy, policy_step: int = 0) -> None:
        """Sample from `policy` as it stands from now on."""
        self.policy, self.policy_step = policy, policy_step

    def close(self) -> None:
        self.policy = None

    @torch.no_grad()
    def generate(
        self,
        prompts: PromptBatch,
        n: int,
        generator: torch.Generator,
        sampler: Sampler = sample_inverse_cdf,
    ) -> Rollout:
        """`n` responses to each prompt, samples of one prompt side by side.

        The same generator gives the same responses whatever `batch_size` is, up to the rounding of
        the forward pass.
        """
        if self.policy is None:
            raise RuntimeError("DecodeEngine.generate before sync(policy)")
        total = len(prompts) * n
        # (B, T): a row's draws do not depend on which other rows are still alive.
        uniform = torch.rand(total, self.max_new_tokens, generator=generator).to(self.policy.device)
        step = max((self.batch_size or total) // n, 1)
        with self.policy.decoding():
            parts = [
                self._decode(prompts.prompt_ids[i : i + step], prompts.prompt_mask[i : i + step], n,
                             uniform[i * n : (i + step) * n], sampler)
                for i in range(0, len(prompts), step)
            ]  # fmt: skip
        ids, logprobs, finished = (torch.cat(x) for x in zip(*parts, strict=True))
        index = torch.arange(len(prompts), device=ids.device).repeat_interleave(n)
        return make_rollout(
            prompts.rows(index), ids, logprobs, finished, index, self.policy_step, self.tokenizer
        )

    def _prefill(self, policy: Policy, ids: Tensor, mask: Tensor, n: int) -> _Decoding:
        cache = DynamicCache()
        logits = policy.next_logits(ids, mask, positions(mask), cache)
        if n > 1:  # one pass over each prompt serves all of its samples
            cache.batch_repeat_interleave(n)
            logits, mask = logits.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
        rows = torch.arange(len(mask), device=mask.device)
        return _Decoding(rows, mask, mask.long().sum(1), cache, logits)

    def _decode(
        self, prompt_ids: Tensor, prompt_mask: Tensor, n: int, uniform: Tensor, sampler: Sampler
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert self.policy is not None
        total, limit = len(prompt_ids) * n, self.max_new_tokens
        live = self._prefill(self.policy, prompt_ids, prompt_mask, n)
        ids = torch.full((total, limit), self.eos_id, device=prompt_ids.device)
        logprobs = torch.zeros(total, limit, device=prompt_ids.device)
        length = torch.full((total,), limit, device=prompt_ids.device)
        finished = torch.zeros(total, dtype=torch.bool, device=prompt_ids.device)
        for t in range(limit):
            token, logprob = sampler(live.logits, uniform[live.rows, t])
            running = ~finished[live.rows]
            rows = live.rows[running]
            ids[rows, t], logprobs[rows, t] = token[running], logprob[running]
            ended = self._ends(ids[rows, : t + 1])
            finished[rows] = ended
            length[rows[ended]] = t + 1
            alive = ~finished[live.rows]
            if t + 1 == limit or not bool(alive.any()):
                break
            if bool(alive.float().mean() <= COMPACT_BELOW):
                live.keep(alive)
                token = token[alive]
            self._advance(live, token)
        # Ends are marked by -1 and not by an id: the pad id of many tokenizers is their EOS id.
        beyond = torch.arange(limit, device=ids.device) >= length.unsqueeze(1)
        return ids.masked_fill(beyond, -1), logprobs.masked_fill(beyond, 0.0), finished

    def _advance(self, live: _Decoding, token: Tensor) -> None:
        assert self.policy is not None
        live.mask = torch.cat([live.mask, live.mask.new_ones(len(token), 1)], 1)
        live.logits = self.policy.next_logits(
            token.unsqueeze(1), live.mask, live.next_position.unsqueeze(1), live.cache
        )
        live.next_position = live.next_position + 1

    def _ends(self, ids: Tensor) -> Tensor:
        """(L,) whether each partial response (L, t) has just met EOS or completed a stop string."""
        ended = ids[:, -1] == self.eos_id
        if self.stop:
            # Special tokens too: a stop string may name one, such as the end of a chat turn.
            texts = self.tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)
            hit = [any(s in text for s in self.stop) for text in texts]
            ended = ended | torch.tensor(hit, dtype=torch.bool, device=ids.device)
        return ended
