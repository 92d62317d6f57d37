"""Rewards that are computed elsewhere: by any server that takes JSON."""

import math
from typing import Annotated, Any

from pydantic import Field

from rewards.contract import Failure, RewardConfigError
from rewards.endpoints import check_headers, check_url, from_environment
from rewards.posting import (
    Backoff,
    Concurrency,
    Limits,
    Retries,
    Server,
    Timeout,
    TotalTimeout,
)
from rewards.registry import reward

Values = list[float | Failure | None]


# Asked about each of equal samples: nothing says that the server is a pure function.
@reward("remote.http", example={"url": "http://127.0.0.1:8000/score"}, cache=False)
class Http:
    """What a server says: any finite number, or null where the reward does not apply.

        safe: {kind: remote.http, url: "https://host/score", headers: {Authorization: SAFE_AUTH},
               columns: [topic], total_timeout: 60, on_error: skip}

    Each request is a POST of {"prompts": [...], "completions": [...]} and a list for each of
    `columns`, all of the same length, at most `batch_size`; the answer to it is
    {"rewards": [0.5, null, ...]}, a number or null for each completion. `headers` names the
    environment variable that holds a header's value, here "Bearer ...", never the value.

    A sample fails, under `on_error`, where the server is dead, has not answered by the deadline,
    answers 429 or 5xx to the last retry or another error to any request, or breaks the form above.
    A request that fails does so for all of its samples, except that a value which is no finite
    number fails alone. on_error: skip forgives a fifth of a batch, so keep `batch_size` below that.
    """

    def __init__(
        self,
        *,
        url: Annotated[str, Field(description="where to POST, http:// or https://")],
        columns: Annotated[
            list[str] | None, Field(description="columns of the data that are sent as well")
        ] = None,
        headers: Annotated[
            dict[str, str] | None,
            Field(description="header -> environment variable that holds its value"),
        ] = None,
        batch_size: Annotated[int, Field(ge=1, description="completions in one request")] = 8,
        total_timeout: TotalTimeout = 120.0,
        timeout: Timeout = 30.0,
        retries: Retries = 3,
        backoff: Backoff = 0.5,
        concurrency: Concurrency = 4,
    ) -> None:
        self.columns = tuple(columns or ())
        for name in self.columns:
            if name in ("prompts", "completions") or self.columns.count(name) > 1:
                raise RewardConfigError(
                    f"columns={list(self.columns)}: {name!r} is sent already; remove it"
                )
        self.batch_size, self.headers = batch_size, check_headers(headers or {})
        limits = Limits(total_timeout, timeout, retries, backoff, concurrency)
        self._server = Server(check_url("url", url), limits, self._secret_headers)

    def load(self) -> None:
        self._server.load()

    def columns_read(self) -> tuple[str, ...]:
        return self.columns

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Values:
        data = {"prompts": prompts, "completions": completions, **columns}
        starts = range(0, len(completions), self.batch_size)
        batches = [
            {name: column[start : start + self.batch_size] for name, column in data.items()}
            for start in starts
        ]
        values: Values = []
        for batch, answer in zip(batches, self._server.post(batches), strict=True):
            values += self._read(answer, len(batch["completions"]))
        return values

    def _read(self, answer: Any, size: int) -> Values:
        """A value for each of `size` completions; all fail where the answer has another form."""
        if isinstance(answer, Failure):
            return [answer] * size
        rewards = answer.get("rewards") if isinstance(answer, dict) else None
        if not isinstance(rewards, list):
            return [self._server.failure('its answer is no {"rewards": [...]}', answer)] * size
        if len(rewards) != size:
            rule = f"its answer holds {len(rewards)} rewards for {size} completions"
            return [self._server.failure(rule, rewards)] * size
        return [self._value(item) for item in rewards]

    def _value(self, item: Any) -> float | Failure | None:
        if item is None:
            return None
        if is_finite_number(item):
            return float(item)
        return self._server.failure("a reward is a finite number or null", item)

    def _secret_headers(self) -> dict[str, str]:
        return {
            name: from_environment(f"headers={{{name!r}: {variable!r}}}", variable)
            for name, variable in self.headers.items()
        }


def is_finite_number(item: Any) -> bool:
    """Whether JSON's `item` is a number, which true is not, and fits a finite float."""
    if isinstance(item, bool) or not isinstance(item, int | float):
        return False
    try:
        return math.isfinite(item)
    except OverflowError:
        return False
