"""Matrix products of the policy that cost less than the stock ones and give the same numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Rows from which, and up to which, `W @ x.T` beats `x @ W.T` in float32 on a CPU: 1.3 to 1.6 times
# from 16 to 64 rows, as measured with MKL; the library packs the larger operand better first.
THIN = range(9, 129)


class LoraProduct(torch.autograd.Function):
    """x W' + scale (x A') B' with A (r, in), B (out, r), by two additions in place.

    peft adds the low-rank part by a product, a multiplication and an addition, each a pass over
    (N, out) in both directions. W and the bias stay as they are: they get no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        ctx.of_a, ctx.of_b, ctx.scale = a.dtype, b.dtype, scale
        rows = x.reshape(-1, x.shape[-1])  # (N, in)
        a, b = a.to(x.dtype), b.to(x.dtype)
        low = rows @ a.t()  # (N, r)
        ctx.save_for_backward(rows, low, weight, a, b)
        out = thin_linear(rows, weight, bias).addmm_(low, b.t(), alpha=scale)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, weight, a, b = ctx.saved_tensors
        grads = grad.reshape(-1, grad.shape[-1])  # (N, out)
        of_low = (grads @ b).mul_(ctx.scale)  # (N, r)
        of_a = (of_low.t() @ rows).to(ctx.of_a)
        of_b = (grads.t() @ low).mul_(ctx.scale).to(ctx.of_b)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (grads @ weight).addmm_(of_low, a).view(*grad.shape[:-1], -1)
        return of_x, None, None, of_a, of_b, None


class FastLoraLinear(LoraLinear):
    """peft's LoRA layer with `LoraProduct`; whatever is not the plain case is left to peft."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = [name for name in self.active_adapters if name in self.lora_A]
        base: Any = self.base_layer
        is_plain = (
            not (args or kwargs or self.disable_adapters or self.merged or self.lora_variant)
            and len(names) == 1
            and type(base) in (nn.Linear, ThinLinear)
        )
        if not is_plain:
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        down, up, device = self.lora_A[names[0]], self.lora_B[names[0]], x.device.type
        weight, bias = base.weight, base.bias
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        with torch.autocast(device, enabled=False):
            out: Tensor = LoraProduct.apply(
                x, weight, bias, down.weight, up.weight, self.scaling[names[0]]
            )  # type: ignore[no-untyped-call]
        return out


def speed_up_lora(lm: nn.Module) -> None:
    """Make every plain LoRA layer of a model a FastLoraLinear, in place."""
    for module in lm.modules():
        if type(module) is not LoraLinear:
            continue
        frozen = not any(p.requires_grad for p in module.base_layer.parameters())
        dropout = any(not isinstance(d, nn.Identity) for d in module.lora_dropout.values())
        biased = any(up.bias is not None for up in module.lora_B.values())
        if frozen and not dropout and not biased:
            module.__class__ = FastLoraLinear


class ThinLinear(nn.Linear):
    """nn.Linear while few rows are decoded; see `thin_products`."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        return thin_linear(rows, self.weight, self.bias).view(*x.shape[:-1], -1)


def thin_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W' + bias (N, out) for x (N, in), by the quicker order of the two."""
    is_thin = len(x) in THIN and x.device.type == "cpu" and x.dtype == torch.float32
    if not is_thin or torch.get_num_threads() == 1:
        return nn.functional.linear(x, weight, bias)
    out = (weight @ x.t()).t()
    return out if bias is None else out.add_(bias)


class LowWeights:
    """Copies, in the precision of autocast, of weights that learn in float32.

    Autocast would cast all of them anew at each decoded token: twice the traffic of reading them.
    The products are the same to the bit. A weight that is an embedding too stays as it is, for
    autocast leaves look-ups in float32.
    """

    def __init__(self, lm: nn.Module, dtype: torch.dtype) -> None:
        tied = {id(m.weight) for m in lm.modules() if isinstance(m, nn.Embedding)}
        weights = [m.weight for m in lm.modules() if type(m) is nn.Linear]
        self.pairs = [
            (w, torch.empty_like(w, dtype=dtype, requires_grad=False))
            for w in weights
            if w.dtype == torch.float32 and id(w) not in tied
        ]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside, the layers hold the copies, taken now into the same memory every time."""
        masters = [w.data for w, _ in self.pairs]
        try:
            for (w, low), master in zip(self.pairs, masters, strict=True):
                low.copy_(master)
                w.data = low
            yield
        finally:
            for (w, _), master in zip(self.pairs, masters, strict=True):
                w.data = master


@contextmanager
def thin_products(lm: nn.Module) -> Iterator[None]:
    """Inside, the linear layers of `lm` take the quicker order where few rows meet a CPU."""
    layers = [m for m in lm.modules() if type(m) is nn.Linear]
    for layer in layers:
        layer.__class__ = ThinLinear
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Linear
