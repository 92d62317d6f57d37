"""How work is cut: into an update's steps, into micro-batches, into an engine's calls."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

AT_ONCE = 64  # samples of a call; no setting, because it says which random numbers a response gets


def rows_of(batch: Any, index: Tensor) -> dict[str, Any]:
    """The fields of an algorithm's batch for the chosen samples, trimmed to the longest of them.

    Tensors of one dimension are a number a sample, of two a number a token; a scalar is for all.
    """
    rollout = batch.rollout.rows(index)
    width = rollout.response_ids.shape[1]
    cut: dict[str, Any] = {"rollout": rollout}
    for each in fields(batch):
        x = getattr(batch, each.name)
        if isinstance(x, Tensor):
            chosen = x if x.dim() == 0 else x[index]
            cut[each.name] = chosen[:, :width] if x.dim() == 2 else chosen
    return cut


def shuffled_parts(
    size: int, parts: int, epochs: int, generator: torch.Generator, device: torch.device
) -> Iterator[Tensor]:
    """Row indices of each optimiser step: every epoch sees every sample once, in another order."""
    for _ in range(epochs):
        order = torch.randperm(size, generator=generator).to(device)
        # Not chunk, which makes three parts where 6 rows are asked to become four.
        yield from order.tensor_split(min(parts, size))


def shares(available: int, samples: int, least: int) -> tuple[int, int]:
    """Into how many prompts that many samples go, and how many to each: `least` or more."""
    prompts = min(max(samples // least, 1), available)
    return prompts, max(-(-samples // prompts), least)


def calls_of_rank(
    numbers: Sequence[int], each: int, rank: int, size: int
) -> list[tuple[int, list[int], int]]:
    """(number, prompts, samples to each) of a rank's share of the calls.

    A call's number is its own among those of all ranks: random numbers that depend on it, and not
    on the rank, make a response independent of how many processes there are.
    """
    every = [(i, part, n) for i, (part, n) in enumerate(calls(numbers, each, AT_ONCE))]
    return every[rank::size]


def calls(numbers: Sequence[int], each: int, most: int) -> Iterator[tuple[list[int], int]]:
    """(prompts, samples to each) of every call of an engine, at most `most` samples at once."""
    at_once = max(most // each, 1)
    for start in range(0, len(numbers), at_once):
        for drawn in range(0, each, most):
            yield list(numbers[start : start + at_once]), min(most, each - drawn)
