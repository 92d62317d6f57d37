"""Many made-up cases of one claim, each within seconds: `@fuzzed(1000, strategy)`.

The same cases in every run of the tests; `make fuzz` tries others, and many more of them.
"""

import functools
import os
import signal
from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import strategies as st

TIMES = int(os.environ.get("FUZZ_TIMES", "0"))  # 0: the cases of the ordinary tests
CPU_SECONDS = 10.0  # of one case; a hang takes for ever, and a busy machine is not counted
BUDGET: dict[str, int] = {}  # cases by test

AWKWARD_TEXTS = (
    "", " ", "\n", "\t", "\0", "\x1b[31mred", "\ud800", "\udcff", "\ufeff", "\u202e", "\u2028",
    "\ufffd", "e\u0301", "\U0001f469\U0001f3fd\u200d\U0001f680", "[/red]",
    "${x}", "{{", "%s", "../..", "~", "~nobody-here/x", "/dev/zero", "null", "no", "1e5", "1e999",
    "-.inf", "0xff", "1_000", "*a", "&a", "!!python/name:os.system", "<<",
    "- ", "a: b", "#", "'", '"', "\\", "|", "`", "<script>", "=HYPERLINK()", "{}", "[]", "--",
)  # fmt: skip
AWKWARD_NUMBERS = (
    0, -1, 1, 2, 0.5, -0.0, 1e-320, 1e39, -1e39, 1e308, float("inf"), float("-inf"), float("nan"),
    2**31, 2**53, 2**53 + 1, 2**63, -(2**63), 2**64, 10**400, True, False,
)  # fmt: skip


def texts(longest: int = 40) -> st.SearchStrategy[str]:
    """Text of any characters, lone surrogates too."""
    return st.sampled_from(AWKWARD_TEXTS) | st.text(st.characters(), max_size=longest)


def long_texts() -> st.SearchStrategy[str]:
    # Made late, as hypothesis writes out its strategies.
    return st.sampled_from(["9", "0xf", "(", "a", "\U0001f469"]).map(lambda text: text * 4400)


def numbers() -> st.SearchStrategy[Any]:
    # Made late: Python refuses to show so many digits, and hypothesis shows its strategies.
    huge = st.sampled_from([4299, 4300, 5000]).map(lambda digits: 10**digits)
    return st.sampled_from(AWKWARD_NUMBERS) | st.integers() | st.floats() | huge


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def plain_values(leaves: int = 8) -> st.SearchStrategy[Any]:
    """What JSON can hold, and a little more: any nesting of null, bool, numbers, text."""
    single = st.none() | st.booleans() | numbers() | texts() | long_texts()
    within = st.recursive(
        single,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts(12), inner, max_size=4),
        max_leaves=leaves,
    )
    return within | st.sampled_from([40, 60, 90]).map(nested)


def fuzzed(cases: int, *strategies: st.SearchStrategy[Any]) -> Callable[..., Any]:
    """A test on `cases` values of each strategy; it fails where one case does, or takes long."""
    examples = cases * max(TIMES, 1)

    def decorate(claim: Callable[..., None]) -> Callable[..., None]:
        BUDGET[f"{claim.__module__}.{claim.__name__}"] = cases
        done = 0

        def case(*values: Any) -> None:
            nonlocal done
            done += 1
            with limited(CPU_SECONDS):
                claim(*values)

        run = hypothesis.settings(
            max_examples=examples,
            derandomize=TIMES == 0,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )(hypothesis.given(*strategies)(_named(case, claim, len(strategies))))

        @functools.wraps(claim, assigned=("__module__", "__name__", "__doc__"), updated=())
        def test() -> None:
            nonlocal done
            done = 0
            run()
            assert done >= cases, f"{done} cases of {cases}: the strategy has no more"

        del test.__wrapped__  # whose parameters pytest would take for fixtures
        return test

    return decorate


class limited:
    """A TimeoutError after so many seconds of the processor's time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGPROF, _expired)
        signal.setitimer(signal.ITIMER_PROF, self._seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, self._before)


def _expired(*_: object) -> None:
    raise TimeoutError(f"one case took more than {CPU_SECONDS:g} s of the processor's time")


def _named(case: Callable[..., None], claim: Callable[..., None], count: int) -> Callable[..., Any]:
    """`case` with as many parameters as there are strategies, which hypothesis wants to see."""
    names = ", ".join(f"value{i}" for i in range(count))
    made: Callable[..., Any] = eval(f"lambda {names}: case({names})", {"case": case})
    made.__name__ = claim.__name__
    made.__module__ = claim.__module__
    made.__qualname__ = claim.__qualname__
    return made
