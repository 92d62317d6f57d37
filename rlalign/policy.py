"""The policy: a causal LM with a value head, and the reference it is held to.

Every gradient comes through `Policy.forward`, and every log-probability and value through it or,
as a token is drawn, through `Policy.next_state`.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from uuid import uuid4

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache

from rlalign.guard.whereabouts import HERE
from rlalign.logprobs import linearised, token_entropy, token_logprobs
from rlalign.packing import Layout, can_pack, packed_pass
from rlalign.products import DecodeWeights, thin_products
from rlalign.sizes import logits_at_once
from rlalign.types import Rollout

# (policy, logits (N, V), hidden (N, H), targets (N,)) -> (N,) tensors by name
TokenFn = Callable[["Policy", Tensor, Tensor, Tensor], dict[str, Tensor]]


def logprobs_only(
    policy: "Policy", logits: Tensor, hidden: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    return {"logprobs": token_logprobs(logits, targets)}


def logprobs_and_values(
    policy: "Policy", logits: Tensor, hidden: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    return {"logprobs": token_logprobs(logits, targets), "values": policy.values(hidden)}


def logprobs_and_detached_values(
    policy: "Policy", logits: Tensor, hidden: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """Values whose gradient stops at the head, so that a warming critic leaves the policy alone."""
    return logprobs_and_values(policy, logits, hidden.detach(), targets)


def all_outputs(
    policy: "Policy", logits: Tensor, hidden: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    return {
        "logprobs": token_logprobs(logits, targets),
        "entropy": token_entropy(logits),
        "values": policy.values(hidden),
    }


class Policy(nn.Module):
    """A causal LM whose responses are scored token by token.

    `reference` says what "the model before training" is: "adapter" for the LM with its LoRA
    adapters off, "copy" for a frozen copy taken now, "none" for no reference at all.
    """

    def __init__(
        self,
        lm: nn.Module,
        *,
        temperature: float = 1.0,
        autocast: torch.dtype | None = None,
        reference: str = "copy",
    ) -> None:
        super().__init__()
        self.lm = lm
        self.temperature = temperature
        self.identity = uuid4().hex
        self._notes = False  # `is_exact`, while it decodes
        self.autocast_dtype = autocast
        self._decode_weights = DecodeWeights()
        hidden_size = self._base(lm).config.get_text_config().hidden_size
        self.value_head = nn.Linear(hidden_size, 1)
        nn.init.normal_(self.value_head.weight, std=1.0 / (hidden_size + 1))
        nn.init.zeros_(self.value_head.bias)
        self.reads_reference = False  # inside `reference`
        self.packs = can_pack(self._base(lm), self._trunk(lm))
        self.uses_adapter = reference == "adapter"
        # In a tuple, so that it is neither a submodule nor in the state dict nor moved with it.
        self._frozen: tuple[nn.Module, ...] = ()
        if reference == "copy":
            frozen = copy.deepcopy(lm).requires_grad_(False).eval()
            self._frozen = (frozen,)
        self.takes_positions = (
            "position_ids" in inspect.signature(self._trunk(lm).forward).parameters
        )
        self._head_is_plain = self._check_head()

    # -- the pieces of a transformers causal LM ------------------------------------------------

    @staticmethod
    def _base(lm: nn.Module) -> Any:
        return lm.get_base_model() if isinstance(lm, PeftModel) else lm

    @classmethod
    def _trunk(cls, lm: nn.Module) -> Any:
        return cls._base(lm).base_model

    @torch.no_grad()
    def _check_head(self) -> bool:
        """Whether logits are just the output embedding of the last hidden state.

        Soft-capped or scaled logits (Gemma 2, Granite) go through the LM's own forward instead.
        """
        base = self._base(self.lm)
        ids = (
            torch.tensor([[1, 2, 3]], device=self.device) % base.config.get_text_config().vocab_size
        )
        with self.autocast():
            own = base(input_ids=ids).logits
            ours = base.get_output_embeddings()(base.base_model(input_ids=ids)[0])
        return bool(torch.equal(own, ours))

    @property
    def device(self) -> torch.device:
        # The LM's, for a quantised LM is on its GPU before the value head is moved there.
        return next(self.lm.parameters()).device

    def autocast(self) -> AbstractContextManager[Any]:
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)

    @property
    def is_exact(self) -> bool:
        """Whether a token's numbers are the same but for float32's last bits, however it is read.

        In lower precision a product rounds by the shape of its batch: what was noted while a token
        was drawn is not what the update starts from. Neither are logits that the LM reshapes.
        """
        if self.autocast_dtype is not None or self.reads_reference or not self._head_is_plain:
            return False
        try:
            highest = torch.get_float32_matmul_precision() == "highest"
        except RuntimeError:  # somebody set another precision by torch's newer names
            return False
        return highest and all(p.dtype == torch.float32 for p in self.lm.parameters())

    @property
    def weights_id(self) -> tuple[str, int]:
        """Another one after each change of a weight by torch's own operations."""
        return self.identity, sum(p._version for p in self.parameters())

    def values(self, hidden: Tensor) -> Tensor:
        """(N,) float32 value of the state that each hidden vector (N, H) has read."""
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.value_head(hidden.float()).squeeze(-1)
        return values

    # -- the one pass --------------------------------------------------------------------------

    def forward(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        response_mask: Tensor,
        token_fn: TokenFn = all_outputs,
    ) -> dict[str, Tensor]:
        """`token_fn`'s tensors at every response token, each (B, T) float32 and 0 off the mask."""
        ids = torch.cat([prompt_ids, response_ids], 1)  # (B, P + T)
        mask = torch.cat([prompt_mask, response_mask], 1)
        predicts = torch.zeros_like(mask)  # position t predicts token t + 1
        predicts[:, prompt_ids.shape[1] - 1 : -1] = response_mask
        with self.autocast():
            hidden, logits = self._states(ids, mask, predicts)
            outputs = self._by_chunks(hidden, logits, response_ids[response_mask], token_fn)
        return {name: scatter(x, response_mask) for name, x in outputs.items()}

    def _states(self, ids: Tensor, mask: Tensor, predicts: Tensor) -> tuple[Tensor, Tensor | None]:
        """Hidden states (N, H) where `predicts`, and the logits (N, V) of an LM with its own way.

        Indexing by a mask also makes rows contiguous: a bf16 product on a strided slice is some 40
        times slower on a CPU.
        """
        place, trunk = positions(mask), self._trunk(self.lm)
        if self.packs and self._head_is_plain:
            layout = Layout.of(mask)
            row = packed_pass(trunk, ids[mask].unsqueeze(0), place[mask].unsqueeze(0), layout)
            return row[0][predicts[mask]], None
        inputs = {"input_ids": ids, "attention_mask": mask.long(), "use_cache": False}
        if self.takes_positions:
            inputs["position_ids"] = place
        if self._head_is_plain:
            return trunk(**inputs)[0][predicts], None
        out = self.lm(**inputs, output_hidden_states=True)
        return out.hidden_states[-1][predicts], out.logits[predicts]

    def _by_chunks(
        self, hidden: Tensor, logits: Tensor | None, targets: Tensor, token_fn: TokenFn
    ) -> dict[str, Tensor]:
        """`token_fn`'s tensors (N,), from logits of which only a chunk is held at a time."""
        head = self._base(self.lm).get_output_embeddings()
        is_frozen = not any(p.requires_grad for p in head.parameters())
        numbers = logits_at_once(hidden.device.type, torch.is_grad_enabled() and not is_frozen)
        size = max(numbers // head.weight.shape[0], 1)

        def outputs_of(hidden: Tensor, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
            if self.temperature != 1.0:
                logits = logits.float() / self.temperature
            return token_fn(self, logits, hidden, targets)

        def with_head(hidden: Tensor, targets: Tensor) -> dict[str, Tensor]:
            return outputs_of(hidden, head(hidden), targets)

        pieces = []
        for i in range(0, max(len(targets), 1), size):
            part, wanted = hidden[i : i + size], targets[i : i + size]
            if logits is not None:
                pieces.append(outputs_of(part, logits[i : i + size], wanted))
            elif not torch.is_grad_enabled() or len(targets) <= size:
                pieces.append(with_head(part, wanted))
            elif is_frozen:
                pieces.append(linearised(head, outputs_of, part, wanted))
            else:
                pieces.append(checkpoint(with_head, part, wanted, use_reentrant=False))
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    def next_state(
        self, ids: Tensor, mask: Tensor, position_ids: Tensor, cache: Cache
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (B, V) over the temperature of the token behind `ids` (B, L), and values (B,).

        Both float32; values inside `decoding` alone, and where a pass gives the same (`is_exact`).
        `cache` holds what came before `ids` and takes them in; `mask` covers both. One of four
        dimensions (B, 1, L, length), true where a token is attended to, is taken as it is.
        """
        values = None
        mask = mask if mask.dim() == 4 else mask.long()
        inputs = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}
        if self.takes_positions:
            inputs["position_ids"] = position_ids
        with self.autocast():
            if self._head_is_plain:
                hidden = self._trunk(self.lm)(**inputs, use_cache=True)[0][:, -1]  # (B, H)
                # Contiguous, or a CPU copies the whole head once a row: 3 s a prefill in bf16.
                logits = self._base(self.lm).get_output_embeddings()(hidden.contiguous())
                values = self.values(hidden) if self._notes else None
            else:
                logits = self.lm(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1]
        in_float32: Tensor = logits.float().contiguous()  # a thin product leaves them transposed
        if self.temperature != 1.0:
            in_float32 = in_float32 / self.temperature
        return in_float32, values

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """The LM as it decodes best, in eval mode: activation checkpointing drops its cache."""
        lm, was_training = self.lm, self.lm.training
        lm.eval()
        try:
            self._notes = self.is_exact
            weights = self._decode_weights(lm, self.autocast_dtype, keeps=not self.reads_reference)
            with torch.no_grad(), weights, thin_products(lm):
                yield
        finally:
            self._notes = False
            lm.train(was_training)

    # -- the reference -------------------------------------------------------------------------

    @contextmanager
    def reference(self) -> Iterator["Policy"]:
        """The same policy reading the reference's weights; gradients are off inside."""
        if not (self.uses_adapter or self._frozen):
            raise RuntimeError("this policy was built without a reference")
        own = self.lm
        off: Any = self.lm.disable_adapter() if self.uses_adapter else nullcontext()  # type: ignore[operator]
        with torch.no_grad(), off:
            self.lm = own if self.uses_adapter else self._frozen[0]
            self.reads_reference = True
            try:
                yield self
            finally:
                self.lm, self.reads_reference = own, False

    def place_reference(self, device: torch.device) -> None:
        for frozen in self._frozen:
            frozen.to(device)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that learn, by name; a tied weight appears once."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def in_float32(self) -> "Policy":
        """A float32 copy for measuring: policy and reference alike, nothing shared."""
        clone = copy.deepcopy(self).float().requires_grad_(False)
        clone._frozen = tuple(frozen.float() for frozen in clone._frozen)
        clone.autocast_dtype, clone.identity = None, uuid4().hex
        return clone


def positions(mask: Tensor) -> Tensor:
    """(B, L) position of each token among the real ones, so that left padding moves nothing."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def scatter(values: Tensor, mask: Tensor) -> Tensor:
    """(N,) values back to their places in the (B, T) `mask`; float32, 0 elsewhere."""
    out = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    return out.masked_scatter(mask, values.float())


def tensors(rollout: Rollout) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four tensors that `Policy.forward` reads."""
    prompts = rollout.prompts
    return prompts.prompt_ids, prompts.prompt_mask, rollout.response_ids, rollout.response_mask


def micro_batches(lengths: Tensor, budget: int) -> list[Tensor]:
    """Row indices in groups of at most `budget` tokens (rows x longest), longest rows first.

    Sorting by length keeps the padding small; a row longer than the budget stands alone.
    """
    longest, order = torch.sort(lengths, descending=True, stable=True)
    groups: list[list[int]] = []
    width = 0
    for row, length in zip(order.tolist(), longest.tolist(), strict=True):
        if not groups or (len(groups[-1]) + 1) * width > budget:
            groups.append([])
            width = max(length, 1)
        groups[-1].append(row)
    return [torch.tensor(group, device=lengths.device) for group in groups]


@torch.no_grad()
def evaluate_rollout(
    policy: Policy, rollout: Rollout, token_fn: TokenFn, budget: int
) -> dict[str, Tensor]:
    """`token_fn`'s tensors (B, T) for a whole rollout, in micro-batches under a token budget."""
    outputs: dict[str, Tensor] = {}
    for rows in micro_batches(rollout.lengths, budget):
        HERE.tick()
        for name, x in policy(*tensors(rollout.rows(rows)), token_fn).items():
            full = outputs.setdefault(name, x.new_zeros(rollout.response_ids.shape))
            full[rows, : x.shape[1]] = x
    return outputs
