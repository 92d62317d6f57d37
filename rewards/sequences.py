"""Sequence classifiers of the Hugging Face stack: one value a label for a text, in any batch."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from rewards.classifiers import Floats, device, loading, needs, pays_bfloat16, sigmoid, softmax
from rewards.contract import RewardConfigError
from rewards.waiting import alive

Encoding = Mapping[str, list[int]]  # input_ids, and token_type_ids where the tokenizer has them


class SequenceClassifier:
    """A Hugging Face sequence classifier: logits of texts, and the column of a label.

    An adapter's folder (peft) is opened with its base model and merged into it.
    """

    def __init__(
        self, model: str, trust_remote_code: bool, device: str, dtype: str = "float32"
    ) -> None:
        transformers = needs("transformers", "classifiers")
        self._torch = needs("torch", "classifiers")
        self.name, self._device = model, device
        trust = {"trust_remote_code": trust_remote_code}
        with loading(model) as path:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(path, **trust)
            if transformers.utils.find_adapter_config_file(path) is not None:
                network, missing = _merged_adapter(model, path, trust)
                if self.tokenizer.pad_token_id is not None:
                    # An adapter keeps no configuration of the model; the id that it was trained
                    # with is the tokenizer's, where TRL took it from.
                    network.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
            else:
                network, found = transformers.AutoModelForSequenceClassification.from_pretrained(
                    path, output_loading_info=True, dtype=getattr(self._torch, dtype), **trust
                )
                missing = found["missing_keys"]
        if missing:  # transformers only warns, and classifies at random
            raise RewardConfigError(
                f"model={model!r} is no trained sequence classifier: its files lack "
                f"{', '.join(sorted(missing)[:3])}"
            )
        self._network = network.to(device, getattr(self._torch, dtype)).eval()
        head = getattr(network, "score", None)
        if dtype != "float32" and isinstance(head, self._torch.nn.Linear):
            # A bfloat16 head gives values in steps of 1/128 of their size.
            head.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._text_config = network.config.get_text_config()
        self._own_pad: int | None = self._text_config.pad_token_id
        self._pads = self._survives_padding(tolerance=1e-3 if dtype == "float32" else 0.1)

    @property
    def has_chat_template(self) -> bool:
        return self.tokenizer.chat_template is not None

    @property
    def labels(self) -> list[str]:
        names = self._network.config.id2label
        return [names[i] for i in sorted(names)]

    def column(self, label: str | int) -> int:
        """The index of a label by name (case does not matter) or number."""
        folded = [name.casefold() for name in self.labels]
        if isinstance(label, int) and 0 <= label < len(folded):
            return label
        if isinstance(label, str) and label.casefold() in folded:
            return folded.index(label.casefold())
        raise RewardConfigError(
            f"label={label!r} is no label of {self.name!r}; it has: {self.described_labels}"
        )

    @property
    def described_labels(self) -> str:
        return ", ".join(f"{i} {name!r}" for i, name in enumerate(self.labels))

    def as_chat(self, prompt: str | Sequence[Any], completion: str | Sequence[Any]) -> str:
        """Prompt and completion, texts or messages, as a conversation in the model's template."""
        said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
        answer = (
            [{"role": "assistant", "content": completion}]
            if isinstance(completion, str)
            else [*completion]
        )
        text: str = self.tokenizer.apply_chat_template([*said, *answer], tokenize=False)
        return text

    def logits(
        self,
        texts: Sequence[str],
        max_length: int | None = None,
        batch_size: int = 32,
        *,
        special_tokens: bool = True,
    ) -> Floats:
        """(B, labels); texts beyond `max_length` tokens (null: the model's own limit) are cut.

        `special_tokens` is false for text from `as_chat`, which holds them already.
        """
        limit = min(max_length or self.longest, self.longest)
        encoded = [
            self.tokenizer(
                text, truncation=True, max_length=limit, add_special_tokens=special_tokens
            )
            for text in texts
        ]
        return self.forward(encoded, rows=batch_size)

    def forward(
        self, encodings: Sequence[Encoding], *, rows: int | None = None, tokens: int | None = None
    ) -> Floats:
        """(B, labels), whatever is in a batch with what: at most `rows`, or padded `tokens`."""
        # Without special tokens an empty text has no token at all, and no logits.
        filler = [self.tokenizer.pad_token_id or 0]
        ids = [list(one["input_ids"]) or filler for one in encodings]
        types = [list(one.get("token_type_ids", ())) or [0] * len(ids[i])
                 for i, one in enumerate(encodings)]  # fmt: skip
        typed = any("token_type_ids" in one for one in encodings)
        out = np.zeros((len(ids), len(self.labels)))
        for batch in by_length([len(one) for one in ids], rows, tokens, alike=not self._pads):
            width = len(ids[batch[-1]])
            pad = self._pad_beside([ids[i][-1] for i in batch])
            inputs = {
                "input_ids": [ids[i] + [pad] * (width - len(ids[i])) for i in batch],
                "attention_mask": [[1] * len(ids[i]) + [0] * (width - len(ids[i])) for i in batch],
            }
            if typed:
                inputs["token_type_ids"] = [types[i] + [0] * (width - len(types[i])) for i in batch]
            out[batch] = self._logits_of(inputs, pad)
            alive()
        return out

    def _logits_of(self, inputs: Mapping[str, list[list[int]]], pad: int) -> Floats:
        on_device = {k: self._torch.tensor(v, device=self._device) for k, v in inputs.items()}
        self._text_config.pad_token_id = pad
        try:
            with self._torch.inference_mode():
                logits = self._network(**on_device).logits
        finally:
            self._text_config.pad_token_id = self._own_pad
        result: Floats = logits.double().cpu().numpy()
        return result

    def _pad_beside(self, last: Sequence[int]) -> int:
        """The id to pad with, on the right of texts that end in the tokens `last`.

        Decoders read their value at the last token that is not the pad id of their configuration.
        A model that names none reads the very last one: any id does that no text here ends in.
        """
        if self._own_pad is not None:
            return self._own_pad
        taken = set(last)
        return next(i for i in range(len(taken) + 1) if i not in taken)

    def _survives_padding(self, tolerance: float) -> bool:
        """Whether a text has the same logits beside a longer one as alone.

        Not so where a model reads the last position, padding or not (XLNet): its batches hold texts
        of one length.
        """
        self._pads = True
        short, long = (
            self.tokenizer(text) for text in ("A moon.", "A moon and a much longer text.")
        )
        together, alone = self.forward([short, long])[:1], self.forward([short])
        return bool(np.all(np.abs(together - alone) <= tolerance * (1 + np.abs(alone))))

    def probabilities(self, logits: Floats) -> Floats:
        """(B, labels): a softmax, or a sigmoid each where labels do not exclude each other."""
        several = self._network.config.problem_type == "multi_label_classification"
        return sigmoid(logits) if several or logits.shape[1] == 1 else softmax(logits)

    @property
    def longest(self) -> int:
        """Tokens that the model can read; astronomic where neither file names a limit."""
        limits = [self.tokenizer.model_max_length]
        positions = self._network.config.to_dict().get("max_position_embeddings")
        return int(min(limits if positions is None else [*limits, positions]))


def sequence_classifier(
    model: str, trust_remote_code: bool = False, dtype: str = "float32"
) -> SequenceClassifier:
    """One for the process; `dtype` is torch's name, or `auto`: bfloat16 where hardware has it."""
    if dtype == "auto":
        dtype = "bfloat16" if pays_bfloat16(device()) else "float32"
    return _kept(model, trust_remote_code, device(), dtype)


@cache
def _kept(model: str, trust_remote_code: bool, device: str, dtype: str) -> SequenceClassifier:
    return SequenceClassifier(model, trust_remote_code, device, dtype)


def by_length(
    lengths: Sequence[int], rows: int | None, tokens: int | None, *, alike: bool = False
) -> Iterator[list[int]]:
    """Indices sorted by length, in batches of at most `rows` and, once padded, `tokens` tokens.

    A batch has one row at least; with `alike` its rows are of one length.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        full = (
            (rows is not None and len(batch) == rows)
            or (tokens is not None and (len(batch) + 1) * lengths[i] > tokens)
            or (alike and batch and lengths[batch[-1]] != lengths[i])
        )
        if batch and full:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _merged_adapter(model: str, path: str, trust: Mapping[str, bool]) -> tuple[Any, list[str]]:
    """An adapter's base model with the adapter in it, in float32, and which weights are nowhere."""
    transformers, peft = (
        needs("transformers", "classifiers"),
        needs("peft", "classifiers"),
    )
    config = peft.PeftConfig.from_pretrained(path)
    if config.task_type != "SEQ_CLS":
        raise RewardConfigError(
            f"model={model!r} is an adapter for {config.task_type}, no sequence classifier; give a "
            "folder that a reward model was saved to"
        )
    weights = peft.load_peft_weights(path, device="cpu")
    saved = [f".{module}." for module in config.modules_to_save or ()]
    heads = [
        weight for name, weight in weights.items()
        if weight.ndim == 2 and any(module in name for module in saved)
    ]  # fmt: skip
    labels = {"num_labels": heads[-1].shape[0]} if heads else {}
    base, found = transformers.AutoModelForSequenceClassification.from_pretrained(
        config.base_model_name_or_path, output_loading_info=True, dtype="float32", **labels, **trust
    )
    # Merging in bfloat16 would round the adapter away in part.
    merged = peft.PeftModel.from_pretrained(base, path).merge_and_unload()
    missing = [
        name for name in found["missing_keys"]
        if not any(weight.endswith(f".{name}") for weight in weights)
    ]  # fmt: skip
    return merged, missing
