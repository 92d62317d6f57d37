"""Reward models: what a network that was trained on preferences says of a completion."""

from bisect import bisect_left
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from rewards.contract import RewardConfigError
from rewards.registry import reward
from rewards.sequences import Encoding, SequenceClassifier, sequence_classifier
from rewards.trl_style import plain_text

Format = Literal["auto", "chat", "plain", "pair", "completion"]
Item = str | list[dict[str, Any]]  # text, or a conversation's messages


@reward(
    "model.preference",
    example={"model": "OpenAssistant/reward-model-deberta-v3-large-v2", "format": "pair"},
)
class Preference:
    """What a reward model gives prompt and completion: its raw output, unbounded.

    Any Hugging Face sequence classifier with one output, or one `label` of several; a folder that
    `launch/reward_model.py` saved, or an adapter's (peft, trained by TRL's RewardTrainer). A text
    has the same value in any batch. Where a text is longer than the model reads, the prompt loses
    its beginning; only a completion that is too long by itself is cut, at its end.
    """

    def __init__(
        self,
        *,
        model: Annotated[str, Field(min_length=1, description="hub id or local directory")],
        label: Annotated[
            str | int | None,
            Field(description="the label's name or number; null: the model has one output"),
        ] = None,
        format: Annotated[
            Format,
            Field(
                description="how prompt and completion are joined: `chat`, in the model's chat "
                "template; `plain`, one behind the other; `pair`, as the tokenizer's text pair; "
                "`completion`, that alone; auto: chat where there is a template, else plain"
            ),
        ] = "auto",
        eos: Annotated[
            bool,
            Field(description="end plain text with EOS, as TRL's RewardTrainer does in training"),
        ] = False,
        max_length: Annotated[
            int | None, Field(ge=1, description="tokens that are read; null: the model's limit")
        ] = None,
        batch_tokens: Annotated[
            int, Field(ge=1, description="tokens in one forward pass, padding included")
        ] = 8192,
        dtype: Annotated[
            Literal["auto", "float32", "bfloat16"],
            Field(description="auto takes bfloat16 where the processor has it"),
        ] = "auto",
    ) -> None:
        self.model, self.label, self.format, self.eos = model, label, format, eos
        self.max_length, self.batch_tokens, self.dtype = max_length, batch_tokens, dtype

    def load(self) -> None:
        classifier = self._classifier
        self._column(classifier)
        if self.format == "chat" and not classifier.has_chat_template:
            raise RewardConfigError(
                f"format='chat', but {self.model!r} has no chat template; use auto or plain"
            )
        if self.eos and self._format(classifier) != "plain":
            raise RewardConfigError(
                f"eos=True belongs to plain text, and {self.model!r} is read as "
                f"{self._format(classifier)}; add format: plain, or remove eos"
            )
        if self.eos and classifier.tokenizer.eos_token is None:
            raise RewardConfigError(f"eos=True, but the tokenizer of {self.model!r} has no EOS")
        empty = len(self._encode(classifier, "", "")["input_ids"])
        if self._limit(classifier) <= empty:
            raise RewardConfigError(
                f"max_length={self.max_length} leaves no room for text: what the model's "
                f"{self._format(classifier)} format adds has {empty} tokens"
            )

    def __call__(
        self,
        prompts: list[Item],
        completions: list[Item],
        prompt_messages: list[Any] | None = None,
    ) -> list[float]:
        classifier = self._classifier
        prompts = [
            text if chat is None else chat
            for text, chat in zip(prompts, prompt_messages or [None] * len(prompts), strict=True)
        ]
        encodings = [
            self._fitted(classifier, prompt, completion)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        logits = classifier.forward(encodings, tokens=self.batch_tokens)
        return [float(value) for value in logits[:, self._column(classifier)]]

    @property
    def _classifier(self) -> SequenceClassifier:
        return sequence_classifier(self.model, dtype=self.dtype)

    def _column(self, classifier: SequenceClassifier) -> int:
        if self.label is not None:
            return classifier.column(self.label)
        if len(classifier.labels) > 1:
            raise RewardConfigError(
                f"label=None, but {self.model!r} has several outputs: "
                f"{classifier.described_labels}; name the one that is the reward"
            )
        return 0

    def _format(self, classifier: SequenceClassifier) -> str:
        if self.format != "auto":
            return self.format
        return "chat" if classifier.has_chat_template else "plain"

    def _limit(self, classifier: SequenceClassifier) -> int:
        return min(self.max_length or classifier.longest, classifier.longest)

    def _encode(self, classifier: SequenceClassifier, prompt: Item, completion: Item) -> Encoding:
        tokenizer, chosen = classifier.tokenizer, self._format(classifier)
        if chosen == "chat":  # the template writes its own special tokens
            text = classifier.as_chat(prompt, completion)
            encoded: Encoding = tokenizer(text, add_special_tokens=False)
            return encoded
        before, after = plain_text(prompt), plain_text(completion)
        if chosen == "pair":
            encoded = tokenizer(before, after)
        elif chosen == "completion":
            encoded = tokenizer(after)
        else:
            encoded = tokenizer(before + after + (tokenizer.eos_token if self.eos else ""))
        return encoded

    def _fitted(self, classifier: SequenceClassifier, prompt: Item, completion: Item) -> Encoding:
        """Prompt and completion as tokens, cut to what the model reads."""

        def encode(dropped: int, kept: int) -> Encoding:
            return self._encode(
                classifier, without_start(prompt, dropped), with_start(completion, kept)
            )

        return fitted(encode, characters(prompt), characters(completion), self._limit(classifier))


def fitted(
    encode: Callable[[int, int], Encoding], prompt: int, completion: int, limit: int
) -> Encoding:
    """`encode(dropped, kept)` with as few characters dropped as makes at most `limit` tokens.

    First from the start of the prompt, of `prompt` characters, then from the completion's end.
    """

    def fits(dropped: int, kept: int) -> bool:
        return len(encode(dropped, kept)["input_ids"]) <= limit

    whole = encode(0, completion)
    if len(whole["input_ids"]) <= limit:
        return whole
    dropped = bisect_left(range(prompt + 1), True, key=lambda n: fits(n, completion))
    if dropped <= prompt:
        return encode(dropped, completion)
    cut = bisect_left(range(completion + 1), True, key=lambda n: fits(prompt, completion - n))
    return encode(prompt, completion - cut)


def characters(item: Item) -> int:
    """How many characters there are to drop: a conversation's system messages are kept whole."""
    if isinstance(item, str):
        return len(item)
    return sum(len(_content(message)) for message in item if message["role"] != "system")


def without_start(item: Item, dropped: int) -> Item:
    """The item less its first characters; emptied messages stay, as templates want turns."""
    if isinstance(item, str):
        return item[dropped:]
    kept = []
    for message in item:
        content = _content(message)
        if message["role"] != "system":
            content, dropped = content[dropped:], max(dropped - len(content), 0)
        kept.append({**message, "content": content})
    return kept


def with_start(item: Item, kept: int) -> Item:
    """The first characters of the item."""
    if isinstance(item, str):
        return item[:kept]
    messages = []
    for message in item:
        content = _content(message)
        if message["role"] != "system":
            content, kept = content[:kept], max(kept - len(content), 0)
        messages.append({**message, "content": content})
    return messages


def _content(message: Any) -> str:
    return str(message.get("content") or "")
