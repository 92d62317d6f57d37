"""Matrix products of the policy that cost less than the stock ones and give the same numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Rows for which `W @ x.T` beats `x @ W.T` in float32 on several threads of a CPU: 1.3 to 1.7 times
# at 4 rows and from 16 to 64, never slower, as measured with MKL, which splits the larger dimension
# between threads only where it comes first.
THIN = range(2, 129)


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
        return out.view(*x.shape[:-1], out.shape[-1])

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
            of_x = (grads @ weight).addmm_(of_low, a).view(*grad.shape[:-1], a.shape[-1])
        return of_x, None, None, of_a, of_b, None


class FastLoraLinear(LoraLinear):
    """peft's LoRA layer with `LoraProduct`; whatever is not the plain case is left to peft."""

    is_merged_copy = False  # the base's weight is, while decoding, a copy with the adapter in it

    def adapter(self) -> tuple[Tensor, Tensor, float] | None:
        """A (r, in), B (out, r) and the scale of the one adapter at work; None in other cases."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        busy = self.disable_adapters or self.merged or self.lora_variant
        if busy or len(names) != 1 or type(self.base_layer) not in (nn.Linear, ThinLinear):
            return None
        down: Any = self.lora_A[names[0]]
        up: Any = self.lora_B[names[0]]
        return down.weight, up.weight, self.scaling[names[0]]

    def can_merge(self) -> bool:
        """Whether base and adapter are float32, where merging moves nothing but the last bits."""
        adapter = self.adapter()
        tensors = () if adapter is None else (self.base_layer.weight, *adapter[:2])
        plain = bool(tensors) and all(x.dtype == torch.float32 for x in tensors)
        return plain and not self.is_merged_copy

    def merged_into(self, room: Tensor) -> Tensor:
        """`room`, filled with the base's weight and the adapter's product."""
        adapter = self.adapter()
        assert adapter is not None
        a, b, scale = adapter
        base: Any = self.base_layer
        return torch.addmm(base.weight, b, a, alpha=scale, out=room)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.is_merged_copy:
            decoded: Tensor = self.base_layer(x)
            return decoded
        adapter = None if args or kwargs else self.adapter()
        if adapter is None:
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        a, b, scale = adapter
        base: Any = self.base_layer
        weight, bias, device = base.weight, base.bias, x.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        with torch.autocast(device, enabled=False):
            out: Tensor = LoraProduct.apply(x, weight, bias, a, b, scale)  # type: ignore[no-untyped-call]
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
        out = thin_linear(rows, self.weight, self.bias)
        return out.view(*x.shape[:-1], out.shape[-1])


def thin_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W' + bias (N, out) for x (N, in), by the quicker order of the two."""
    is_thin = len(x) in THIN and x.device.type == "cpu" and x.dtype == torch.float32
    if not is_thin or torch.get_num_threads() == 1:
        return nn.functional.linear(x, weight, bias)
    out = (weight @ x.t()).t()
    return out if bias is None else out.add_(bias)


class DecodeWeights:
    """Weights for decoding, made anew each time they are asked for.

    - Under autocast, copies in its precision of the linear layers' weights that are float32.
      Autocast would cast them all at each token, which is twice the traffic of reading them; the
      products are the same to the bit.
    - In float32, adapters merged into copies of their base, which saves three products a layer and
      moves the log-probabilities by their last bits. In bfloat16 a merged weight would be rounded,
      and another distribution sampled.

    A layer is handed a parameter of its own for as long as it decodes. The one that learns is not
    touched: whoever shares it or waits for its gradient (a tied embedding) sees no change, and
    the reference stays as it is to the bit.
    """

    def __init__(self) -> None:
        # On a GPU copies keep their place from one rollout to the next: graphs hold on to it.
        self._kept: dict[tuple[nn.Module, torch.dtype], nn.Parameter] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "DecodeWeights":
        return DecodeWeights()  # a copied model makes copies of its own

    @contextmanager
    def __call__(
        self, lm: nn.Module, autocast: torch.dtype | None, keeps: bool = True
    ) -> Iterator[None]:
        """Inside, the layers of `lm` hold the weights for decoding; on a GPU room may be kept."""
        masters: list[tuple[nn.Module, nn.Parameter]] = []
        merged: list[FastLoraLinear] = []

        def hand(layer: nn.Module, copied: nn.Parameter) -> None:
            masters.append((layer, layer._parameters["weight"]))  # type: ignore[arg-type]
            layer._parameters["weight"] = copied

        try:
            if autocast is None:
                for layer in fast_layers(lm):
                    base: Any = layer.base_layer
                    room = self._room(base, base.weight.dtype, keeps)
                    layer.merged_into(room.data)
                    hand(base, room)
                    merged.append(layer)
                    layer.is_merged_copy = True
            else:
                for linear in lm.modules():
                    if type(linear) is nn.Linear and linear.weight.dtype == torch.float32:
                        room = self._room(linear, autocast, keeps)
                        room.data.copy_(linear.weight.data)
                        hand(linear, room)
            yield
        finally:
            for owner, master in masters:
                owner._parameters["weight"] = master
            for layer in merged:
                layer.is_merged_copy = False

    def _room(self, layer: Any, dtype: torch.dtype, keeps: bool) -> nn.Parameter:
        """Room for a copy of the layer's weight."""
        room = self._kept.get((layer, dtype))
        if room is None:
            empty = torch.empty_like(layer.weight.data, dtype=dtype)
            room = nn.Parameter(empty, requires_grad=False)
            if keeps and empty.device.type == "cuda":
                self._kept[layer, dtype] = room
        return room


def fast_layers(lm: nn.Module) -> list[FastLoraLinear]:
    """The layers whose adapter can be merged as they stand, adapters on or off."""
    return [m for m in lm.modules() if type(m) is FastLoraLinear and m.can_merge()]


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
