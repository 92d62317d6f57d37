"""How much memory a pass of a model takes, from the shapes that its configuration states."""

from dataclasses import dataclass
from typing import Any

import torch

# Of the memory that a process may use, what the activations of one micro-batch get.
SHARE_OF_DEVICE = 0.25
ON_CPU = 512 * 2**20  # bytes; products of some hundred rows are as quick as those of thousands
FEWEST, MOST = 256, 8192  # tokens


def logits_at_once(device: str, head_learns: bool) -> int:
    """How many numbers of logits are made, used and dropped at a time.

    On a CPU 32 MB of them stay near the processor. Where the head learns, each further chunk costs
    a product that is made twice and a gradient of the head's size to add, so 128 MB are kept.
    """
    if device != "cpu":
        return 2**27
    return 2**25 if head_learns else 2**23


@dataclass(frozen=True)
class Shape:
    """A decoder's dimensions."""

    layers: int
    hidden: int
    inner: int  # of the feed-forward part
    vocabulary: int
    key_values: int  # numbers that a token leaves in a layer's cache

    @classmethod
    def of(cls, config: Any) -> "Shape":
        """The shape that a transformers configuration states; 4 times hidden where inner is not.

        Of a list with a number for each layer the largest; no cache where nothing attends.
        """
        text = config.get_text_config()

        def stated(name: str, otherwise: int) -> int:
            number = getattr(text, name, None)
            return int(max(number) if isinstance(number, list | tuple) else number or otherwise)

        hidden = int(text.hidden_size)
        heads = stated("num_attention_heads", 0)
        head = stated("head_dim", hidden // max(heads, 1))
        return cls(
            layers=int(text.num_hidden_layers),
            hidden=hidden,
            inner=stated("intermediate_size", 4 * hidden),
            vocabulary=int(text.vocab_size),
            key_values=2 * head * (stated("num_key_value_heads", heads) if heads else 0),
        )

    def activations(self, itemsize: int, checkpointing: bool = False) -> int:
        """Bytes that one token leaves behind for the backward pass.

        A gated layer keeps about eight vectors of the hidden size (two norms with their inputs,
        queries, keys and values before and after rotation, the attention's output) and five of the
        inner one; with checkpointing each layer keeps its input, and one layer at a time the rest.
        """
        of_layer = 8 * self.hidden + 5 * self.inner
        kept = self.layers * self.hidden + of_layer if checkpointing else self.layers * of_layer
        return itemsize * kept


def token_budget(
    wanted: int | str, config: Any, device: torch.device, itemsize: int, checkpointing: bool
) -> int:
    """Tokens of a micro-batch: `wanted`, or for "auto" what keeps its activations small.

    On a GPU a quarter of its memory, on a CPU 512 MB, and between 256 and 8192 tokens.
    """
    if not isinstance(wanted, str):
        return wanted
    room: float = ON_CPU
    if device.type == "cuda":
        room = SHARE_OF_DEVICE * torch.cuda.get_device_properties(device).total_memory
    fitting = int(room / Shape.of(config).activations(itemsize, checkpointing))
    return min(max(fitting, FEWEST), MOST)
