"""What a decode loop remembers of the rows it writes: growing caches and static ones.

Both take a prompt's pass over for all of its samples, drop finished rows, and give the next
logits. Growing caches serve every model. Static ones are written in place, so that on a GPU a step
is one replayed CUDA graph instead of a thousand launches; they serve models whose layers all
attend to the whole text.
"""

import logging
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

from rlalign.packing import NAME as PACKED
from rlalign.policy import Policy, positions

logger = logging.getLogger(__name__)

# Finished rows are dropped once so few of the decoded rows are alive: the copy of the cache then
# costs less than the rows it saves.
COMPACT_BELOW = 0.75
# A graph is captured for one number of rows, so rows are halved, not dropped one by one.
HALVE_BELOW = 0.5
WARM_UP = 3  # steps on a side stream before a capture, which torch asks for


State = tuple[Tensor, Tensor | None]  # logits (L, V) and values (L,), as Policy.next_state's


class Decoding(Protocol):
    """Rows that are being written."""

    rows: Tensor  # (L,) their places in the output
    logits: Tensor  # (L, V) of the next token
    values: Tensor | None  # (L,) of the state before it

    def dropped(self, alive: Tensor) -> Tensor | None:
        """The kept rows' indices (L',) once it pays to drop those that are not `alive` (L,)."""

    def advance(self, token: Tensor) -> None:
        """Take in a token (L,) of each row."""


class Growing:
    """A DynamicCache: each step appends to it by a copy."""

    def __init__(self, policy: Policy, ids: Tensor, mask: Tensor, n: int) -> None:
        self.policy, self.cache = policy, DynamicCache()
        logits, values = policy.next_state(ids, mask, positions(mask), self.cache)
        if n > 1:  # one pass over each prompt serves all of its samples
            self.cache.batch_repeat_interleave(n)
            logits, mask = logits.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
            values = None if values is None else values.repeat_interleave(n, 0)
        self.logits, self.values, self.mask = logits, values, mask  # mask: (L, tokens so far)
        self.next_position = mask.long().sum(1)  # (L,)
        self.rows = torch.arange(len(mask), device=mask.device)

    def dropped(self, alive: Tensor) -> Tensor | None:
        if float(alive.float().mean()) > COMPACT_BELOW:
            return None
        index = alive.nonzero().squeeze(-1)
        self.rows, self.mask = self.rows[index], self.mask[index]
        self.next_position, self.logits = self.next_position[index], self.logits[index]
        self.cache.batch_select_indices(index)
        return index

    def advance(self, token: Tensor) -> None:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(token), 1)], 1)
        self.logits, self.values = self.policy.next_state(
            token.unsqueeze(1), self.mask, self.next_position.unsqueeze(1), self.cache
        )
        self.next_position = self.next_position + 1


class StaticLayer(CacheLayerMixin):
    """One layer's keys and values (rows, heads, length, d), written where `place` points."""

    def __init__(self, keys: Tensor, values: Tensor, place: Tensor, used: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values, self.place, self.used = keys, values, place, used
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        self.keys.index_copy_(2, self.place, key_states)
        self.values.index_copy_(2, self.place, value_states)
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise AssertionError("a static layer is made of its tensors")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.used, 0

    def get_seq_length(self) -> int:
        return self.used

    def get_max_length(self) -> int:
        return self.used


class StaticBuffers:
    """Room for `rows` texts of `length` tokens that stays where it is, and the graphs over it."""

    def __init__(self, policy: Policy, filled: DynamicCache, rows: int, length: int) -> None:
        self.policy, self.of_reference = policy, policy.reads_reference
        self.length, self.capacity = length, rows
        device = policy.device
        self.pairs = []  # of each layer: keys and values (rows, heads, length, d)
        for keys, values in states(filled):
            shapes = [(rows, x.shape[1], length, x.shape[3]) for x in (keys, values)]
            self.pairs.append([keys.new_zeros(shape) for shape in shapes])
        self.ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.mask = torch.zeros(rows, 1, 1, length, dtype=torch.bool, device=device)
        self.place = torch.zeros(1, dtype=torch.long, device=device)
        self.graphs: dict[int, tuple[Any, State]] = {}  # by rows: a CUDA graph and what it writes
        self.replays = device.type == "cuda"

    def serves(self, policy: Policy, rows: int, length: int) -> bool:
        # A graph goes on with the weights that it was captured with; the reference's are not kept.
        is_same = self.policy is policy and not (self.of_reference or policy.reads_reference)
        return is_same and rows <= self.capacity and length <= self.length

    def fill(self, cache: DynamicCache, mask: Tensor, n: int) -> None:
        """Take over a prompt's pass, `n` rows for each of its own."""
        rows, width = len(mask) * n, mask.shape[1]
        for filled, pair in zip(states(cache), self.pairs, strict=True):
            for room, x in zip(pair, filled, strict=True):
                room[:rows, :, :width] = x.repeat_interleave(n, 0)
        self.mask[:rows].fill_(False)
        self.mask[:rows, 0, 0, :width] = mask.repeat_interleave(n, 0)
        self.positions[:rows, 0] = mask.long().sum(1).repeat_interleave(n, 0)

    def keep(self, index: Tensor, used: int) -> None:
        """Move the rows of `index` to the front."""
        count = len(index)
        for pair in self.pairs:
            for room in pair:
                room[:count, :, :used] = room[index, :, :used]
        self.mask[:count] = self.mask[index]
        self.positions[:count] = self.positions[index]

    def step(self, rows: int, used: int) -> State:
        """The state behind the tokens in `ids`, which stand at `place`, the last one used."""
        if not self.replays:
            return self._forward(rows, used)
        if rows not in self.graphs:
            try:
                self.graphs[rows] = self._captured(rows)
            except RuntimeError as error:
                self.replays = False
                warn_once(f"decoding without CUDA graphs: {str(error).splitlines()[0]}")
                return self._forward(rows, used)
        graph, state = self.graphs[rows]
        graph.replay()
        return state

    def _forward(self, rows: int, used: int) -> State:
        layers: list[Any] = [
            StaticLayer(k[:rows], v[:rows], self.place, used) for k, v in self.pairs
        ]
        return self.policy.next_state(
            self.ids[:rows], self.mask[:rows, :, :, :used], self.positions[:rows],
            Cache(layers=layers),
        )  # fmt: skip

    def _captured(self, rows: int) -> tuple[Any, State]:
        """A graph of one step over the whole length. Running a step twice changes nothing."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._forward(rows, self.length)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            state = self._forward(rows, self.length)
        return graph, state


class Static:
    """Rows in static buffers."""

    def __init__(
        self,
        policy: Policy,
        ids: Tensor,
        mask: Tensor,
        n: int,
        limit: int,
        held: StaticBuffers | None,
    ) -> None:
        filled = DynamicCache()
        logits, values = policy.next_state(ids, mask, positions(mask), filled)
        rows, self.used = len(ids) * n, ids.shape[1]
        if held is None or not held.serves(policy, rows, self.used + limit):
            held = StaticBuffers(policy, filled, rows, self.used + limit)
        held.fill(filled, mask, n)
        self.buffers = held
        self.logits = logits.repeat_interleave(n, 0)
        self.values = None if values is None else values.repeat_interleave(n, 0)
        self.rows = torch.arange(rows, device=mask.device)

    def dropped(self, alive: Tensor) -> Tensor | None:
        replays = self.buffers.replays
        if float(alive.float().mean()) > (HALVE_BELOW if replays else COMPACT_BELOW):
            return None
        index = alive.nonzero().squeeze(-1)
        if replays:  # finished rows fill up to the number of rows that a graph is there for
            wanted = len(alive)
            while (wanted + 1) // 2 >= max(len(index), 1) and wanted > 1:
                wanted = (wanted + 1) // 2
            spare = (~alive).nonzero().squeeze(-1)[: wanted - len(index)]
            index = torch.cat([index, spare])
        self.buffers.keep(index, self.used)
        self.rows, self.logits = self.rows[index], self.logits[index]
        return index

    def advance(self, token: Tensor) -> None:
        buffers, rows = self.buffers, len(token)
        buffers.ids[:rows, 0] = token
        buffers.place.fill_(self.used)
        buffers.mask[:rows, :, :, self.used] = True
        self.used += 1
        self.logits, self.values = buffers.step(rows, self.used)
        buffers.positions[:rows] += 1


@cache
def warn_once(message: str) -> None:
    """Buffers are made anew for longer texts, and what cannot be captured cannot be then either."""
    logger.warning(message)


def states(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values (rows, heads, tokens, d) of each layer."""
    layers: list[Any] = list(cache.layers)
    return [(layer.keys, layer.values) for layer in layers]


def takes_static(policy: Policy, length: int) -> bool:
    """Whether every layer of a policy attends to the whole of `length` tokens, by a given mask."""
    config: Any = policy.lm.config.get_text_config()  # type: ignore[operator, union-attr]
    fields = config.to_dict()
    kinds = set(fields.get("layer_types") or ["full_attention"])
    window = fields.get("sliding_window")
    slides = kinds != {"full_attention"} or (window is not None and window < length)
    # Without positions a model counts them by the cache, which static ones fill with prompts' pads.
    is_told = policy.takes_positions and config._attn_implementation in ("sdpa", PACKED)
    return is_told and not slides


@torch.no_grad()
def static_agrees(policy: Policy) -> bool:
    """Whether static caches give the logits that growing ones do, asked of the model itself."""
    vocabulary = policy.lm.config.get_text_config().vocab_size  # type: ignore[operator, union-attr]
    ids = torch.arange(1, 9, device=policy.device).view(2, 4) % vocabulary
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, 0] = False
    steps = ids[:, 1:3].T
    try:
        growing = Growing(policy, ids, mask, 1)
        static = Static(policy, ids, mask, 1, len(steps), None)
        for live in (growing, static):
            for token in steps:
                live.advance(token)
    except Exception as error:  # whatever a model says to a cache or a mask that it does not know
        logger.warning("decoding with growing caches: %s: %s", type(error).__name__, error)
        return False
    scale = growing.logits.abs().amax()
    bound = 1e-4 if policy.autocast_dtype is None else 3e-2
    agrees = bool((static.logits - growing.logits).abs().amax() / scale < bound)
    if not agrees:
        logger.warning("decoding with growing caches: this model's static ones give other logits")
    return agrees
