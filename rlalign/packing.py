"""Sequences side by side in one row, so that no product is spent on padding.

Everything in a transformer but attention works token by token. A packed pass therefore gives the
model one row of N real tokens, and attention alone sees the sequences apart: its inputs are laid
out as (B, L), right-padded, where plain causal attention needs no mask at all.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "packed_sdpa"  # what transformers knows this attention by


@dataclass(frozen=True)
class Layout:
    """Where the N tokens of a packed row stand when their sequences are laid out apart."""

    sequences: int  # B
    longest: int  # L
    places: Tensor  # (N,) int64 into B x L
    windows: list[int | None] | None = None  # takes down what each layer says of its window

    @classmethod
    def of(cls, mask: Tensor) -> "Layout":
        """The layout of the real tokens of a (B, any) mask, each sequence moved to the left."""
        longest = int(mask.sum(1).amax())
        rows = torch.arange(len(mask), device=mask.device).unsqueeze(1) * longest
        return cls(len(mask), longest, (rows + mask.long().cumsum(1) - 1)[mask])

    def apart(self, x: Tensor) -> Tensor:
        """(B, heads, L, d) from the (1, heads, N, d) of a packed row; zeros behind each end."""
        rows = x[0].transpose(0, 1)  # (N, heads, d)
        if len(rows) < self.sequences * self.longest:
            room = rows.new_zeros(self.sequences * self.longest, *rows.shape[1:])
            rows = room.index_copy(0, self.places, rows)
        return rows.view(self.sequences, self.longest, *rows.shape[1:]).transpose(1, 2)

    def together(self, x: Tensor) -> Tensor:
        """(1, N, heads, d) from (B, L, heads, d)."""
        rows = x.flatten(0, 1)
        return (rows if len(self.places) == len(rows) else rows[self.places]).unsqueeze(0)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed: Layout | None = None,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """transformers' sdpa attention; with a layout, of each packed sequence by itself."""
    if packed is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, sliding_window=sliding_window, **settings
        )
    if packed.windows is not None:
        packed.windows.append(sliding_window)
    window = None
    if sliding_window is not None and packed.longest > sliding_window:
        places = torch.arange(packed.longest, device=query.device)
        back = places.unsqueeze(1) - places  # (L, L) tokens from query back to key
        window = ((back >= 0) & (back < sliding_window))[None, None]
    apart = packed.apart
    out, _ = sdpa_attention_forward(
        module, apart(query), apart(key), apart(value), window, **settings
    )
    return packed.together(out), None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def can_pack(lm: Any, trunk: nn.Module) -> bool:
    """Switch a model from sdpa to packed attention, where a packed pass gives the same states.

    The model itself is asked, by two sequences read both ways: no list of architectures could say
    whether each of their parts works token by token.
    """
    if lm.config._attn_implementation == NAME:  # the model of an earlier policy
        return True
    if lm.config._attn_implementation != "sdpa" or not lm._can_set_attn_implementation():
        return False
    lm.set_attn_implementation(NAME)
    if lm.config._attn_implementation == NAME and _agrees(lm, trunk):
        return True
    lm.set_attn_implementation("sdpa")
    return False


@torch.no_grad()
def _agrees(lm: Any, trunk: nn.Module) -> bool:
    device = next(trunk.parameters()).device
    config = lm.config.get_text_config()
    ids = torch.arange(1, 10, device=device).view(1, 9) % config.vocab_size
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool, device=device)
    places = torch.cat([positions_of(4, device), positions_of(5, device)], 1)
    first, second = ids[:, :4], ids[:, 4:]
    windows: list[int | None] = []
    try:
        together = packed_pass(trunk, ids, places, replace(Layout.of(mask), windows=windows))
    except Exception:  # a model that takes no such argument, or cannot work on it, in its own words
        return False
    if Counter(windows) != Counter(_windows(config)):
        return False  # a window that only a mask would hold
    apart = torch.cat([trunk(input_ids=x, use_cache=False)[0] for x in (first, second)], 1)
    # A sequence that saw its neighbour is off by some tenths; rounding in bfloat16 by hundredths.
    error = (together.float() - apart.float()).abs().amax() / apart.float().abs().amax()
    return bool(error < (1e-4 if apart.dtype == torch.float32 else 3e-2))


def _windows(config: Any) -> list[int | None]:
    """The window of each layer's attention as a configuration states it; None: the whole text."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["full_attention" if window is None else "sliding_attention"]
        kinds = kinds * config.num_hidden_layers
    other = {"full_attention": None, "sliding_attention": window}
    return [other.get(kind, -1) for kind in kinds]  # -1: a kind that no call states


def positions_of(length: int, device: torch.device) -> Tensor:
    return torch.arange(length, device=device).unsqueeze(0)


def packed_pass(trunk: nn.Module, ids: Tensor, positions: Tensor, layout: Layout) -> Tensor:
    """(1, N, H) hidden states of a packed row `ids` (1, N)."""
    # A mask of four dimensions is handed on as it is: none is built, and none is read.
    unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)
    hidden: Tensor = trunk(
        input_ids=ids,
        position_ids=positions,
        attention_mask=unread,
        use_cache=False,
        packed=layout,
    )[0]
    return hidden
