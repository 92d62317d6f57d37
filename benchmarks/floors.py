"""The least time an iteration can take: its matrix products alone, measured in the same run.

For B responses of T tokens to prompts of P, N parameters of which n lie in linear layers, E epochs:

- decode: T reads of the weights, N bytes_each / bandwidth, or 2 n B T FLOP, whichever is longer;
- scoring: 2 n B (P + T) FLOP for the reference; in bfloat16 again for policy and values, which in
  float32 the decode loop has at hand;
- update: 6 n B (P + T) E FLOP in full training; with LoRA 4 n B (P + T) E and the adapters' own.

No rate is taken from a data sheet. The products of the model's own shapes are run, from weights
that are distinct in every layer so that no cache helps a decode step, with the number of rows that
are alive at that step. Attention, norms, activations, sampling, AdamW and Python are left out:
they are what a measured time over its floor pays for.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

TIMED_LAYERS = 2  # of the long passes, which are bound by arithmetic: the rest cost the same


@dataclass(frozen=True)
class Shape:
    """The linear layers of a causal LM."""

    layers: int
    linears: tuple[tuple[int, int], ...]  # (in, out) of one layer
    head: tuple[int, int]
    lora: int | None = None

    @property
    def layer_weights(self) -> int:
        return sum(i * o for i, o in self.linears)

    @property
    def adapter_weights(self) -> int:
        """Of one layer: A (r, in) and B (out, r) beside each linear; the head has none."""
        return sum((self.lora or 0) * (i + o) for i, o in self.linears)


def shape_of(config: Any, lora: int | None) -> Shape:
    """The shapes of a Llama-like configuration: four projections of attention, three of the MLP."""
    hidden, between = config.hidden_size, config.intermediate_size
    size = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    wide, narrow = size * config.num_attention_heads, size * config.num_key_value_heads
    linears = ((hidden, wide), (hidden, narrow), (hidden, narrow), (wide, hidden),
               (hidden, between), (hidden, between), (between, hidden))  # fmt: skip
    return Shape(config.num_hidden_layers, linears, (hidden, config.vocab_size), lora)


# -- by counting -----------------------------------------------------------------------------------


def forward_flop(shape: Shape, tokens: int, head_tokens: int, adapters: bool = True) -> int:
    """2 FLOP a weight and token; the head is needed at response tokens alone."""
    weights = shape.layer_weights + (shape.adapter_weights if adapters else 0)
    return 2 * (tokens * shape.layers * weights + head_tokens * shape.head[0] * shape.head[1])


def update_flop(shape: Shape, tokens: int, head_tokens: int, epochs: int) -> int:
    """Forward, and backward to activations; to weights too, of those that learn."""
    base = tokens * shape.layers * shape.layer_weights
    head = head_tokens * shape.head[0] * shape.head[1]
    adapters = tokens * shape.layers * shape.adapter_weights
    frozen = 3 if shape.lora is None else 2
    return epochs * 2 * (frozen * (base + head) + 3 * adapters)


def live_rows(lengths: Sequence[int]) -> list[int]:
    """Rows that each decode step must carry; the first token comes from the prompt's pass."""
    return [sum(n > step for n in lengths) for step in range(1, max(lengths))]


# -- by running ------------------------------------------------------------------------------------


class Products:
    """Random weights of a model's shapes, and the time that their products take."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str = "cpu") -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self.layers = [[self._weights(i, o) for i, o in shape.linears] for _ in range(shape.layers)]
        self.head = self._random(shape.head[1], shape.head[0])

    def _random(self, *size: int) -> Tensor:
        # Ordinary numbers: zeros and denormals are faster or slower than what a model holds.
        return (torch.rand(*size, device=self.device) - 0.5).mul_(0.1).to(self.dtype)

    def _weights(self, i: int, o: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        r = self.shape.lora
        adapters = (None, None) if r is None else (self._random(r, i), self._random(o, r))
        return self._random(o, i), *adapters

    def decode_step(self, rows: int) -> float:
        """Seconds of one step: every layer's products with `rows` rows, and the head's."""
        inputs = self._inputs(rows)
        head_input = self._random(rows, self.shape.head[0])

        def run() -> None:
            for layer in self.layers:
                forward(layer, inputs, adapters=True)
            head_input @ self.head.T

        return seconds(run, repeats=5)

    def forward(self, tokens: int, head_tokens: int, adapters: bool) -> float:
        """Seconds of one pass without gradients."""
        inputs, timed = self._inputs(tokens), self.layers[:TIMED_LAYERS]

        def run() -> None:
            for layer in timed:
                forward(layer, inputs, adapters)

        layer = seconds(run) / len(timed)
        return self.shape.layers * layer + self._head(head_tokens, backward_too=False)

    def train(self, tokens: int, head_tokens: int) -> float:
        """Seconds of forward and backward once."""
        inputs, timed = self._inputs(tokens), self.layers[:TIMED_LAYERS]
        grads = {o: self._random(tokens, o) for _, o in self.shape.linears}

        def run() -> None:
            for layer in timed:
                forward(layer, inputs, adapters=True)
                backward(layer, inputs, grads)

        layer = seconds(run) / len(timed)
        return self.shape.layers * layer + self._head(head_tokens, backward_too=True)

    def _head(self, tokens: int, backward_too: bool) -> float:
        x, grad = self._random(tokens, self.shape.head[0]), self._random(tokens, self.shape.head[1])

        def run() -> None:
            x @ self.head.T
            if backward_too:
                grad @ self.head
                if self.shape.lora is None:
                    grad.T @ x

        return seconds(run)

    def _inputs(self, rows: int) -> dict[int, Tensor]:
        return {i: self._random(rows, i) for i, _ in self.shape.linears}


Layer = list[tuple[Tensor, Tensor | None, Tensor | None]]


def forward(layer: Layer, inputs: dict[int, Tensor], adapters: bool) -> None:
    for weight, a, b in layer:
        x = inputs[weight.shape[1]]
        x @ weight.T
        if adapters and a is not None and b is not None:
            (x @ a.T) @ b.T


def backward(layer: Layer, inputs: dict[int, Tensor], grads: dict[int, Tensor]) -> None:
    """To activations through every weight; to weights for the adapters, or for all without them."""
    for weight, a, b in layer:
        x, grad = inputs[weight.shape[1]], grads[weight.shape[0]]
        grad @ weight
        if a is None or b is None:
            grad.T @ x
            continue
        inner = grad @ b
        inner @ a
        grad.T @ (x @ a.T)
        inner.T @ x


def seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """Median after one run that warms up."""
    times = []
    for _ in range(repeats + 1):
        wait()
        start = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def copy_bandwidth(device: str = "cpu", megabytes: int = 256) -> float:
    """Bytes read and written a second by a copy that no cache holds."""
    a = torch.zeros(megabytes * 2**18, dtype=torch.float32, device=device)
    b = torch.ones_like(a)
    return 2 * a.nbytes / seconds(lambda: b.copy_(a))


def interpolate(points: dict[int, float], x: int) -> float:
    """Between measured points, along straight lines; flat outside them."""
    known = sorted(points)
    at = bisect_left(known, x)
    if at == 0 or at == len(known):
        return points[known[max(at - 1, 0)]]
    low, high = known[at - 1], known[at]
    share = (x - low) / (high - low)
    return points[low] + share * (points[high] - points[low])


@torch.no_grad()
def measure(
    shape: Shape, dtype: torch.dtype, prompts: Sequence[int], responses: Sequence[int], epochs: int
) -> dict[str, float]:
    """Floors in seconds of an iteration with these lengths, and the rates they rest on."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    products = Products(shape, dtype, device)
    rows, answered = len(responses), sum(responses)
    tokens = sum(prompts) + answered
    counts = sorted({1, max(rows // 4, 1), max(rows // 2, 1), max(3 * rows // 4, 1), rows})
    steps = {n: products.decode_step(n) for n in counts}
    prefill = products.forward(sum(prompts), rows, adapters=True)
    policy = products.forward(tokens, answered, adapters=True)
    old_pass = policy if dtype == torch.bfloat16 else 0.0
    reference = products.forward(tokens, answered, adapters=False)
    update = epochs * products.train(tokens, answered)
    generation = prefill + sum(interpolate(steps, n) for n in live_rows(responses))
    weights = shape.layers * shape.layer_weights + shape.head[0] * shape.head[1]
    bandwidth = copy_bandwidth(device)
    return {
        "generation": generation,
        "scoring": old_pass + reference,
        "update": update,
        "total": generation + old_pass + reference + update,
        "decode_step": steps[rows],
        "weight_read": weights * products.head.element_size() / bandwidth,
        "copy_gb_s": bandwidth / 1e9,
        "forward_gflop_s": forward_flop(shape, tokens, answered) / policy / 1e9,
        "update_gflop_s": update_flop(shape, tokens, answered, epochs) / update / 1e9,
        "decode_gflop_s": forward_flop(shape, rows, rows) / steps[rows] / 1e9,
    }
