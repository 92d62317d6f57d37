"""Which characters of a response are fixed by each of its tokens, whatever token comes next.

The sampled ids are what counts: a text is never tokenised again, since it may fall into other
tokens than those that were drawn.
"""

import codecs
import re
from collections.abc import Sequence
from itertools import accumulate

from tokenizers import decoders
from transformers import PreTrainedTokenizerBase

# What bytes that are no character are decoded as. At the end of a prefix it may still become one.
UNFINISHED = "\ufffd"
_BYTE_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
# The letters in which byte-level BPE writes bytes (GPT-2): a printable one is itself.
BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + i): byte for i, byte in enumerate(sorted(set(range(256)) - set(_PRINTABLE)))
}


class Offsets:
    """Counts the characters that are fixed after each token, for one tokenizer.

    A character is fixed by the first token after which no continuation can change it or anything
    before it: é of two bytes by the second. Exact, and the count depends on the tokens so far only.
    One exception: outside byte-level BPE a U+FFFD counts once a character follows it. Linear in the
    response, but for tokenizers whose tokens do not decode one by one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._special = frozenset(i for i, token in added.items() if token.special)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._is_byte_level = isinstance(getattr(backend, "decoder", None), decoders.ByteLevel)
        self._names: dict[int, str] = {}
        self._pieces: dict[tuple[int, ...], str] = {}
        # The same name may be meant as text, in a vocabulary that does not fall back to bytes.
        byte = tokenizer.convert_tokens_to_ids("<0x80>")
        self._falls_back = isinstance(byte, int) and self._decode([byte]) == UNFINISHED
        before = tokenizer("a", add_special_tokens=False)["input_ids"][:1]
        self._before, self._begin = tuple(before), len(self._decode(before))

    def fixed(self, ids: Sequence[int], text: str) -> list[int]:
        """How many characters of `text`, the decoded `ids`, each of them fixes; never falling."""
        count = self._of_bytes if self._is_byte_level else self._of_pieces
        counts, decoded = count(ids)
        return counts if decoded == text else self._of_prefixes(ids, text)

    def _of_bytes(self, ids: Sequence[int]) -> tuple[list[int], str]:
        """Counts and text where the text is the tokens' bytes read as UTF-8."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        parts = [decoder.decode(token_bytes(self._name(i))) for i in ids]
        counts = list(accumulate(map(len, parts)))
        return counts, "".join(parts) + decoder.decode(b"", final=True)

    def _of_pieces(self, ids: Sequence[int]) -> tuple[list[int], str]:
        """Counts and text where each token, or run of byte tokens, adds a piece of its own."""
        counts: list[int] = []
        run: tuple[int, ...] = ()
        text, is_first = "", True
        for i in ids:
            name = self._name(i)
            if self._is_byte(name):
                # One bad byte undoes the whole run, so nothing of it stands before its end.
                run = (*run, i)
            elif name:
                if run:
                    text, run, is_first = text + self._piece(run, is_first), (), False
                text, is_first = text + self._piece((i,), is_first), False
            counts.append(solid(text))
        return counts, text + (self._piece(run, is_first) if run else "")

    def _of_prefixes(self, ids: Sequence[int], text: str) -> list[int]:
        """Counts by decoding every prefix: for what the other two do not understand."""
        counts, before = [], 0
        for t, i in enumerate(ids):
            name = self._name(i)
            if name and not self._is_byte(name):
                prefix = self._decode(ids[: t + 1])
                before = common_prefix(prefix[: solid(prefix)], text)
            counts.append(before)
        return list(accumulate(reversed(counts), min))[::-1]

    def _piece(self, ids: tuple[int, ...], is_first: bool) -> str:
        """What tokens add to a text, or begin one with, where the first space may be dropped."""
        key = ids if is_first else (*self._before, *ids)
        if key not in self._pieces:
            self._pieces[key] = self._decode(key)[0 if is_first else self._begin :]
        return self._pieces[key]

    def _name(self, i: int) -> str:
        """A token as the vocabulary spells it, empty where it leaves no trace in a text."""
        if i not in self._names:
            # None where the model has an output that the tokenizer has no token for.
            name = self.tokenizer.convert_ids_to_tokens([i])[0] or ""
            self._names[i] = "" if i in self._special else name
        return self._names[i]

    def _is_byte(self, name: str) -> bool:
        return self._falls_back and _BYTE_FALLBACK.fullmatch(name) is not None

    def _decode(self, ids: Sequence[int]) -> str:
        texts: list[str] = self.tokenizer.batch_decode(
            [list(ids)], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return texts[0]


def token_bytes(name: str) -> bytes:
    """The bytes of a byte-level token; one that was added with other letters is its own UTF-8."""
    try:
        return bytes(BYTE_OF[letter] for letter in name)
    except KeyError:
        return name.encode()


def solid(text: str) -> int:
    """Length without the U+FFFD at the end, which the next token may complete."""
    return len(text.rstrip(UNFINISHED))


def common_prefix(a: str, b: str) -> int:
    """Length of the longest common prefix."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
