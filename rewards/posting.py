"""JSON posted to a server: one deadline for a whole call, retries, bounded concurrency."""

import itertools
import json
import random
import re
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field

from rewards.contract import Failure, described
from rewards.endpoints import Hider
from rewards.waiting import alive

if TYPE_CHECKING:  # httpx is imported where a request is made: `import rewards` stays light
    import httpx

TotalTimeout = Annotated[
    float,
    Field(gt=0, allow_inf_nan=False, description="seconds for a batch of samples, retries and all"),
]
Timeout = Annotated[
    float,
    Field(
        gt=0,
        allow_inf_nan=False,
        description="seconds without a byte from the server after which a request is tried again",
    ),
]
Retries = Annotated[int, Field(ge=0, le=20, description="more requests after one that failed")]
Backoff = Annotated[
    float,
    Field(
        ge=0,
        allow_inf_nan=False,
        description="seconds before the first retry, doubled for each further one, at most 60; "
        "chance takes off up to half",
    ),
]
Concurrency = Annotated[int, Field(ge=1, le=256, description="requests under way at a time")]

MOST_BYTES = 16 * 2**20  # of an answer, after decompression
LONGEST_BACKOFF = 60.0
SHORTEST = 8  # of a secret in a URL's query; what is shorter is an ordinary word too often
_jitter = random.Random()  # its own: the global generator belongs to the run


@dataclass(frozen=True)
class Limits:
    """How patient a call is; each field is the setting of that name."""

    total_timeout: float
    timeout: float
    retries: int
    backoff: float
    concurrency: int


class Server:
    """One URL that takes JSON and answers JSON."""

    def __init__(
        self, url: str, limits: Limits, secret_headers: Callable[[], Mapping[str, str]]
    ) -> None:
        self._url, self._limits, self._secret_headers = url, limits, secret_headers
        self._shown = url.split("?")[0]  # a query may hold a key
        given = [value for _, value in parse_qsl(urlsplit(url).query)]
        self._in_url = [value for value in given if len(value) >= SHORTEST]

    def load(self) -> None:
        """Raise RewardConfigError where a header's value cannot be had from the environment."""
        self._secret_headers()

    def post(self, bodies: Sequence[Any]) -> list[Any]:
        """The answer's JSON for each body, or a Failure that says why there is none.

        Returns by the deadline whatever the server does. 429, 5xx and failed connections are tried
        again, the rest is final.
        """
        import httpx

        if not bodies:
            return []
        contents = [json.dumps(body, allow_nan=False).encode("ascii") for body in bodies]
        secrets = self._secret_headers()
        headers = {"Content-Type": "application/json", "Accept": "application/json", **secrets}
        slots = min(self._limits.concurrency, len(bodies))
        client = httpx.Client(
            headers=headers, limits=httpx.Limits(max_connections=slots), verify=_certificates()
        )
        call = _Call(client, self._url, self._limits, Hider([*secrets.values(), *self._in_url]))
        exchanges = [_Exchange(call, content) for content in contents]
        threads = ThreadPoolExecutor(slots, thread_name_prefix="rewards-post")
        try:
            futures = [threads.submit(exchange.answer) for exchange in exchanges]
            with suppress(TimeoutError):
                for _ in as_completed(futures, timeout=call.remaining()):
                    alive()
            return [self._settled(*pair) for pair in zip(futures, exchanges, strict=True)]
        finally:  # nobody waits for what is under way; it ends with its socket
            call.stopped.set()
            threads.shutdown(wait=False, cancel_futures=True)
            client.close()

    def failure(self, rule: str, answer: Any) -> Failure:
        """Why an answer with success is of no use: the rule that it breaks, and what it says."""
        hide = Hider([*self._secret_headers().values(), *self._in_url])
        return Failure(f"got no value from {self._shown} ({rule}: {hide.brief(answer)})")

    def _settled(self, future: "Future[Any]", exchange: "_Exchange") -> Any:
        try:
            if not future.done():
                raise _NoAnswer(exchange.overdue())
            return future.result()
        except _NoAnswer as error:
            return Failure(f"got no value from {self._shown} ({error})")


class _NoAnswer(Exception):
    """No usable answer came; the message says why."""


class _Call:
    """What the requests of one call share."""

    def __init__(self, client: "httpx.Client", url: str, limits: Limits, hide: Hider) -> None:
        self.client, self.url, self.limits, self.hide = client, url, limits, hide
        self.stopped = Event()  # nobody waits for answers any more
        self._end = time.monotonic() + limits.total_timeout

    def remaining(self) -> float:
        """Seconds to the deadline, at least 0."""
        return max(self._end - time.monotonic(), 0.0)


class _Exchange:
    """One body on its way to an answer; `tries` and `problem` are read while it is under way."""

    def __init__(self, call: _Call, content: bytes) -> None:
        self._call, self._content = call, content
        self.tries = 0
        self.problem = ""

    def answer(self) -> Any:
        """The answer's JSON; _NoAnswer where there is none."""
        import httpx

        limits = self._call.limits
        for self.tries in itertools.count(1):
            delay = backoff_delay(limits.backoff, self.tries, _jitter.random())
            seconds = min(limits.timeout, self._call.remaining())
            if seconds == 0 or self._call.stopped.is_set():
                self.tries -= 1
                raise _NoAnswer(self.overdue())
            try:
                response, body = self._request(seconds)
            except httpx.TimeoutException:
                self.problem = f"nothing came for {seconds:.3g} s"
            except httpx.TransportError as error:
                self.problem = self._call.hide(described(error))
            except httpx.DecodingError as error:
                why = self._call.hide(described(error))
                raise _NoAnswer(f"its answer cannot be decoded: {why}") from error
            else:
                if response.is_success:
                    return self._parsed(body)
                self.problem = self._refusal(response, body)
                if response.status_code != 429 and response.status_code < 500:
                    raise _NoAnswer(self.problem)
                delay = max(delay, retry_after(response.headers.get("Retry-After"), time.time()))
            self._sleep(delay)
        raise AssertionError("the loop above has no other end")

    def overdue(self) -> str:
        """What became of it when the deadline came."""
        so_far = f"{_requests(self.tries)}{', the last: ' if self.problem else ''}{self.problem}"
        return f"no answer within total_timeout={self._call.limits.total_timeout:g} s, {so_far}"

    def _request(self, seconds: float) -> tuple["httpx.Response", bytes]:
        """Send once, and read in pieces, so that an endless answer is dropped."""
        call, body = self._call, bytearray()
        with call.client.stream("POST", call.url, content=self._content, timeout=seconds) as answer:
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > MOST_BYTES:
                    raise _NoAnswer(f"its answer is longer than {MOST_BYTES} bytes")
        return answer, bytes(body)

    def _parsed(self, body: bytes) -> Any:
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise _NoAnswer(f"its answer is no JSON: {self._quoted(body)}") from error

    def _refusal(self, response: "httpx.Response", body: bytes) -> str:
        status = f"{response.status_code} {response.reason_phrase}".strip()
        return f"answered {self._call.hide.brief(status)[1:-1]} with {self._quoted(body)}"

    def _quoted(self, body: bytes) -> str:
        return self._call.hide.brief(body.decode("utf-8", "backslashreplace"))

    def _sleep(self, delay: float) -> None:
        """Wait before the next try, or raise _NoAnswer where there is to be none."""
        limits = self._call.limits
        if self.tries > limits.retries:
            raise _NoAnswer(f"{self.problem}, {_requests(self.tries)}")
        if delay >= self._call.remaining():
            raise _NoAnswer(
                f"{self.problem}, {_requests(self.tries)}; the next, in {delay:.3g} s, would miss "
                f"total_timeout={limits.total_timeout:g} s"
            )
        if self._call.stopped.wait(delay):
            raise _NoAnswer(self.overdue())


def backoff_delay(backoff: float, tries: int, chance: float) -> float:
    """Seconds to wait after `tries` requests: doubled each time, less up to half by `chance`."""
    return min(backoff * 2.0 ** (tries - 1), LONGEST_BACKOFF) * (1 - chance / 2)


def retry_after(header: str | None, now: float) -> float:
    """Seconds that a Retry-After header asks for at `now` (Unix time): a number, or a date.

    0 where there is none or it makes no sense.
    """
    if header is None:
        return 0.0
    if re.fullmatch(r"[0-9]{1,9}", header.strip()):
        return float(header)
    try:
        return max(parsedate_to_datetime(header).timestamp() - now, 0.0)
    except (ValueError, OverflowError):
        return 0.0


@cache
def _certificates() -> ssl.SSLContext:
    """One for all clients: reading them takes 0.1 s."""
    import httpx

    return httpx.create_ssl_context()


def _requests(tries: int) -> str:
    return f"{tries} request{'' if tries == 1 else 's'}"
