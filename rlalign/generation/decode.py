"""The engine of this process: a decode loop that draws by inverse CDF and drops finished rows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlalign.generation.caches import (
    Decoding,
    Growing,
    Static,
    StaticBuffers,
    static_agrees,
    takes_static,
)
from rlalign.generation.engine import make_rollout
from rlalign.generation.sampling import Sampler, sample_inverse_cdf
from rlalign.guard.whereabouts import HERE
from rlalign.logprobs import token_entropy
from rlalign.policy import Policy, tensors
from rlalign.types import PromptBatch, Recorded, Rollout


class Drawn(NamedTuple):
    """Responses of at most T tokens to B prompts."""

    ids: Tensor  # (B, T), -1 behind the end
    logprobs: Tensor  # (B, T)
    finished: Tensor  # (B,)
    noted: dict[str, Tensor]  # (B, T) each: what `Recorded` holds beside the log-probabilities


class DecodeEngine:
    """Samples from a policy held in this process, neutrally: temperature and nothing else.

    No field of the model's own generation configuration is read (no top-k, top-p or repetition
    penalty), so what is sampled is the distribution that the log-probabilities describe.
    """

    talks = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        batch_size: int | None = None,
        static: bool = False,
    ) -> None:
        """`static` asks for caches written in place, where the model's attention allows it."""
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.stop = tuple(stop)
        self.batch_size, self.static = batch_size, static
        self._buffers: StaticBuffers | None = None  # kept from one rollout to the next
        self._agrees: bool | None = None  # whether the policy's static caches do; None: not asked
        self.eos_id = int(tokenizer.eos_token_id)
        self.policy: Policy | None = None
        self.policy_step = 0

    def sync(self, policy: Policy, policy_step: int = 0) -> None:
        """Sample from `policy` as it stands from now on."""
        if policy is not self.policy:
            self._agrees = None
        self.policy, self.policy_step = policy, policy_step

    def close(self) -> None:
        self.policy = self._buffers = None

    @torch.no_grad()
    def generate(
        self,
        prompts: PromptBatch,
        n: int,
        generator: torch.Generator | Sequence[torch.Generator],
        sampler: Sampler = sample_inverse_cdf,
    ) -> Rollout:
        """`n` responses to each prompt, samples of one prompt side by side.

        The same generator gives the same responses whatever `batch_size` is, up to the rounding of
        the forward pass; with a generator for each prompt, whatever the other prompts are, too.
        """
        if self.policy is None:
            raise RuntimeError("DecodeEngine.generate before sync(policy)")
        total = len(prompts) * n
        # (B, T): a row's draws do not depend on which other rows are still alive.
        own = [generator] if isinstance(generator, torch.Generator) else generator
        share = total // len(own)
        rows = [torch.rand(share, self.max_new_tokens, generator=each) for each in own]
        uniform = torch.cat(rows).to(self.policy.device)
        most = self.batch_size or total
        step, at_once = max(most // n, 1), min(n, most)  # prompts; samples of one of them
        with self.policy.decoding():
            parts = [
                self._decode(prompts.prompt_ids[i : i + step], prompts.prompt_mask[i : i + step],
                             count, uniform[i * n + drawn : i * n + drawn + step * count], sampler)
                for i in range(0, len(prompts), step)
                for drawn in range(0, n, at_once)
                for count in [min(at_once, n - drawn)]
            ]  # fmt: skip
        ids, logprobs, finished = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("ids", "logprobs", "finished")
        )
        index = torch.arange(len(prompts), device=ids.device).repeat_interleave(n)
        rollout = make_rollout(
            prompts.rows(index), ids, logprobs, finished, index, self.policy_step, self.tokenizer
        )
        noted = [part.noted for part in parts]
        if sampler is not sample_inverse_cdf or not all(noted):
            return rollout  # another sampler's log-probabilities may be those of what it left
        width = rollout.response_ids.shape[1]
        outputs = {name: torch.cat([x[name] for x in noted])[:, :width] for name in noted[0]}
        outputs["logprobs"] = logprobs[:, :width]
        recorded = Recorded(self.policy.weights_id, tensors(rollout), outputs)
        return replace(rollout, recorded=recorded)

    def _is_static(self, policy: Policy, length: int) -> bool:
        if not (self.static and takes_static(policy, length)):
            return False
        if self._agrees is None:
            self._agrees = static_agrees(policy)
        return self._agrees

    def _prefill(self, policy: Policy, ids: Tensor, mask: Tensor, n: int) -> Decoding:
        if not self._is_static(policy, ids.shape[1] + self.max_new_tokens):
            return Growing(policy, ids, mask, n)
        live = Static(policy, ids, mask, n, self.max_new_tokens, self._buffers)
        self._buffers = live.buffers
        return live

    def _decode(
        self, prompt_ids: Tensor, prompt_mask: Tensor, n: int, uniform: Tensor, sampler: Sampler
    ) -> Drawn:
        assert self.policy is not None
        total, limit = len(prompt_ids) * n, self.max_new_tokens
        live = self._prefill(self.policy, prompt_ids, prompt_mask, n)
        # -1 behind the end, and not an id: the pad id of many tokenizers is their EOS id.
        ids = torch.full((total, limit), -1, device=prompt_ids.device)
        logprobs = torch.zeros(total, limit, device=prompt_ids.device)
        finished = torch.zeros(total, dtype=torch.bool, device=prompt_ids.device)
        is_noted = live.values is not None
        noted = {name: torch.zeros_like(logprobs) for name in ("entropy", "values") if is_noted}
        alive = ~finished  # (L,) of the rows that are still decoded
        for t in range(limit):
            HERE.tick()
            if live.values is not None:
                entropy = token_entropy(live.logits)
                noted["entropy"][live.rows, t] = torch.where(alive, entropy, 0.0)
                noted["values"][live.rows, t] = torch.where(alive, live.values, 0.0)
            token, logprob = sampler(live.logits, uniform[live.rows, t])
            ids[live.rows, t] = torch.where(alive, token, -1)
            logprobs[live.rows, t] = torch.where(alive, logprob, 0.0)
            ended = alive & self._ends(ids[live.rows, : t + 1], alive)
            finished[live.rows] |= ended
            alive = alive & ~ended
            if t + 1 == limit or not bool(alive.any()):
                break
            index = live.dropped(alive)
            if index is not None:
                token, alive = token[index], alive[index]
            live.advance(token)
        return Drawn(ids, logprobs, finished, noted)

    def _ends(self, ids: Tensor, alive: Tensor) -> Tensor:
        """(L,) whether each partial response (L, t) has just met EOS or completed a stop string."""
        ended = ids[:, -1] == self.eos_id
        if self.stop:
            # Special tokens too: a stop string may name one, such as the end of a chat turn.
            texts = self.tokenizer.batch_decode(ids[alive], clean_up_tokenization_spaces=False)
            hit = [any(s in text for s in self.stop) for text in texts]
            ended[alive] |= torch.tensor(hit, dtype=torch.bool, device=ids.device)
        return ended
