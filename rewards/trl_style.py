"""Reward functions as they are written for TRL: what its trainers hand them, they find here too.

A function with `**kwargs` is one: TRL passes every function `prompts`, `completions`,
`completion_ids`, the data's columns, `trainer_state`, `log_extra` and `log_metric`, so one that
works there cannot do without. Where the prompt is a conversation it gets messages, not texts.
"""

import asyncio
import inspect
import json
import math
import threading
import types
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from rewards.apart import Apart, lend, lends
from rewards.contract import RewardConfigError, RewardError, brief
from rewards.spec import RewardSpec, Signature, read_plain, source_of

CONTEXT = "trl_context"  # the column that carries, for each sample, its `Sampled`
MESSAGES = "prompt_messages"  # a sample's prompt where it is a conversation, else None
HANDED = (CONTEXT, MESSAGES, "completion_ids")  # by the run, so no column of the data has the name
PROVIDED = ("completion_ids", "trainer_state", "log_extra", "log_metric")
_MAKING = threading.Lock()
_apart: ContextVar[Apart | None] = ContextVar("apart", default=None)  # of the reward that waits
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Logged:
    """What functions logged while one batch was scored; names are `ENTRY/NAME`."""

    extra: dict[str, list[Any]] = field(default_factory=dict)  # a value for each of B samples
    metrics: dict[str, list[float]] = field(default_factory=dict)  # a value for each call


@dataclass(frozen=True)
class Sampled:
    """What TRL hands to a function beside columns of the data, for one sample of a batch."""

    row: int  # of `size`
    size: int
    messages: Messages | None  # the prompt, where it is a conversation
    state: Any  # a transformers.TrainerState
    logged: Logged
    entry: str = ""


def context(
    completion_ids: Sequence[Sequence[int]],
    messages: Sequence[Messages | None],
    state: Any,
    logged: Logged,
) -> dict[str, Sequence[Any]]:
    """The columns that a batch of B samples has beside those of the data."""
    size = len(completion_ids)
    given = list(messages) or [None] * size
    samples = [Sampled(i, size, m, state, logged) for i, m in enumerate(given)]
    handed: dict[str, Sequence[Any]] = {"completion_ids": list(completion_ids), CONTEXT: samples}
    return handed | ({MESSAGES: given} if any(messages) else {})


def for_entry(data: Mapping[str, Sequence[Any]], name: str) -> Mapping[str, Sequence[Any]]:
    """The batch as the reward `name` gets it: what it logs is logged under its name."""
    if CONTEXT not in data:
        return data
    return {**data, CONTEXT: [replace(sample, entry=name) for sample in data[CONTEXT]]}


def as_script(messages: Messages) -> str:
    """A conversation as one text, a paragraph for each message: `user: What is rain?`"""
    return "\n\n".join(f"{m.get('role')}: {m.get('content') or ''}" for m in messages)


def plain_text(item: Any) -> str:
    """A completion as text: of messages, what the assistant's say."""
    if isinstance(item, str):
        return item
    said = [m for m in item if m.get("role") in (None, "assistant")] or list(item)
    return "\n".join(str(message.get("content") or "") for message in said)


def prompt_text(prompt: Any) -> str:
    """A prompt as the rewards see it: of a conversation, the last message of its user."""
    if isinstance(prompt, str):
        return prompt
    return str(next((m["content"] for m in reversed(prompt) if m["role"] == "user"), ""))


class TRLFunction:
    """A function written for TRL as a reward here; of an async one a call returns the coroutine."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__wrapped__ = function  # where `source_of` looks
        self.__module__ = function.__module__
        self.is_async = is_async(function)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> object:
        given: Sequence[Sampled] = columns.pop(CONTEXT, ())
        arguments: dict[str, Any] = {"prompts": prompts, "completions": completions, **columns}
        if any(sample.messages is not None for sample in given):
            arguments["prompts"] = [
                text if sample.messages is None else list(sample.messages)
                for text, sample in zip(prompts, given, strict=True)
            ]
            arguments["completions"] = [
                text if sample.messages is None else said(text)
                for text, sample in zip(completions, given, strict=True)
            ]
        arguments["trainer_state"] = given[0].state if given else _no_state()
        arguments["log_extra"] = lambda column, items: _log_extra(given, column, items)
        arguments["log_metric"] = lambda name, value: _log_metric(given, name, value)
        return self.__wrapped__(**arguments)


def said(text: str) -> list[dict[str, str]]:
    """A completion in TRL's conversational form."""
    return [{"role": "assistant", "content": text}]


def takes_everything(function: Callable[..., Any]) -> bool:
    """Whether it has `**kwargs`, as every function that is written for TRL does."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def reads_samples(function: Callable[..., Any]) -> bool:
    """Whether it names what a trainer samples, rather than being some other helper."""
    return bool({"completions", "completion_ids"} & set(inspect.signature(function).parameters))


def spec_of(function: Callable[..., Any], kind: str) -> RewardSpec:
    """The spec of a function that is written for TRL; called for each of equal samples.

    Raises RewardConfigError where it has no `**kwargs`, or reads no data.
    """
    if not takes_everything(function):
        raise RewardConfigError(
            f"{kind} ({source_of(function)}) has no **kwargs: TRL would hand it trainer_state, "
            "log_extra and more; add **kwargs, or put @reward above it"
        )
    read = read_plain(function)
    if read.data.get("environments") is False:
        raise RewardConfigError(
            f"{kind} ({source_of(function)}) needs environments, which only TRL's "
            "environment_factory makes; a reward here reads prompts, completions and columns"
        )
    data = {name: optional for name, optional in read.data.items() if name not in PROVIDED}
    signature = Signature(data, takes_all=True, annotations={}, defaults={})
    return RewardSpec(kind, TRLFunction(function), signature, None, None, cache=False)


def is_async(function: Callable[..., Any]) -> bool:
    function = getattr(function, "func", function)  # of a functools.partial
    call = getattr(function, "__call__", None)  # noqa: B004 - the method itself is wanted
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def wait_for(coroutine: Coroutine[Any, Any, object], apart: Apart) -> object:
    """Its result, from the one event loop that all async rewards of this process share.

    The same loop in every call: a client or a lock that a function keeps belongs to its loop. Each
    of its steps, and of the tasks that it makes, runs within `apart`.
    """
    with _MAKING:  # each reward waits in a thread of its own, and the first two may come at once
        loop = _loop()
    context, lent = copy_context(), lends()
    context.run(_apart.set, apart)  # its tasks inherit it
    context.run(lend, lent)
    return context.run(asyncio.run_coroutine_threadsafe, coroutine, loop).result()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(_task)
    threading.Thread(target=loop.run_forever, name="async rewards", daemon=True).start()
    return loop


def _task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
    apart = _apart.get()
    steps = coroutine if apart is None else _await(coroutine, apart)
    return asyncio.Task(steps, loop=loop, **options)


async def _await(coroutine: Any, apart: Apart) -> object:
    return await _in_steps(coroutine, apart)


@types.coroutine
def _in_steps(coroutine: Any, apart: Apart) -> Generator[Any, Any, object]:
    """Drive a coroutine: between two steps others run, who must not find its generators."""
    go_on, given = coroutine.send, None
    while True:
        try:
            with apart:
                awaited = go_on(given)
        except StopIteration as end:
            return end.value
        try:
            go_on, given = coroutine.send, (yield awaited)
        except BaseException as error:  # what it waited for failed, or it is cancelled
            go_on, given = coroutine.throw, error


def _log_extra(given: Sequence[Sampled], column: str, items: Sequence[Any]) -> None:
    if not given:  # a probe, which logs nothing
        return
    items = list(items.tolist() if hasattr(items, "tolist") else items)
    if len(items) != len(given):
        raise RewardError(
            f"log_extra({column!r}) was given {len(items)} values for {len(given)} samples"
        )
    name = f"{given[0].entry}/{column}"
    kept = given[0].logged.extra.setdefault(name, [None] * given[0].size)
    for sample, item in zip(given, items, strict=True):
        kept[sample.row] = _jsonable(item)


def _log_metric(given: Sequence[Sampled], name: str, value: Any) -> None:
    if not given:
        return
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise RewardError(f"log_metric({name!r}) was given {brief(value)}, no number") from error
    if not math.isfinite(number):
        raise RewardError(f"log_metric({name!r}) was given {number}")
    given[0].logged.metrics.setdefault(f"{given[0].entry}/{name}", []).append(number)


def _jsonable(item: Any) -> Any:
    try:
        json.dumps(item)
    except (TypeError, ValueError):
        return str(item)
    return item


@cache
def _no_state() -> Any:
    from transformers import TrainerState

    return TrainerState()
