"""Rewards in a worker process: the same values and errors, and a run that outlives their faults."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rewards import (
    RewardConfigError,
    RewardError,
    RewardSet,
    Span,
    isolation,
    load_file,
    registry,
    reward,
)
from rewards.asking import Call
from rewards.compose import RewardEntry
from rewards.contract import WorkerFault, WorkerLost
from rewards.entries import parse_entries
from rewards.isolation import Isolated

DEADLINE = 1.0
REWARD_FILE = '''
import ctypes
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

from rewards import isolation
from rewards import RewardConfigError, RewardError, Score, Span, reward

seen = 0


@reward("own.moody")
def moody(completions: list[str], *, factor: float = 1.0) -> list[float]:
    """What the text says that it should do."""
    return [react(text, factor) for text in completions]


def react(text, factor):
    global seen
    seen += 1
    if text.startswith("hang"):
        while True:
            pass
    if text == "sleep":
        time.sleep(60)
    if text == "power":  # one call into C, which holds the interpreter
        9 ** (9 ** 9)
    if text == "backtrack":
        re.fullmatch("(a|a)*b", "a" * 64)
    if text == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if text == "flood":
        while True:
            for number in range(3, 20):
                try:
                    os.write(number, b"x" * 65536)
                except OSError:
                    pass
    if text.startswith("child "):
        log = text.split()[1]
        shell = ["sh", "-c", f"echo $$ > {log}; exec sleep 120"]
        subprocess.Popen(shell, start_new_session=True)
        while not os.path.exists(log) or not open(log).read():
            time.sleep(0.01)
        while True:
            pass
    if text == "segfault":
        ctypes.string_at(0)
    if text == "exit":
        os._exit(3)
    if text == "scribble":
        for number in range(3, 20):
            try:
                os.write(number, b"nonsense\\n")
            except OSError:
                pass
    if text == "leave":
        sys.exit(3)
    if text == "memory":
        raise MemoryError
    if text == "raise":
        raise ValueError("bad text")
    if text == "print":
        print('{"returned": [9.0]}', flush=True)
        os.write(1, b'{"returned": [9.0]}\\n')
        os.system("echo from a shell; read line")
        threading.Thread(target=time.sleep, args=(60,)).start()
    if text.startswith("doze"):
        time.sleep(0.3)
    if text == "ours":
        raise RewardError("inner trouble")
    if text.startswith("chance"):
        return random.random()
    if text == "pid":
        return os.getpid()
    if text == "seen":
        return seen
    if text == "tiny":
        return Score(0.1 + 0.2, [Span(0, 1, 5e-324), Span(1, 2, -0.0)])
    if text == "none":
        return None
    # Unlike for a text that came back changed in any character.
    value = factor * sum((i + 1) * ord(c) for i, c in enumerate(text)) / 7
    return Score(value, [Span(0, len(text) // 2, value / 3), Span(0, len(text), value / 7)])


RETURNED = {
    "no list": lambda: 0.5,
    "a string": lambda: "ab",
    "nothing": lambda: None,
    "too few": lambda: [0.5],
    "text": lambda: [0.0, "0.5"],
    "complex": lambda: [0.0, 1j],
    "list": lambda: [0.0, [0.5]],
    "nan": lambda: [0.0, math.nan],
    "infinite": lambda: [0.0, -math.inf],
    "huge": lambda: [0.0, 10**400],
    "beyond": lambda: [0.0, Score(1.0, [Span(0, 9, 1.0)])],
    "credit": lambda: [0.0, Score(1.0, [Span(0, 1, math.nan)])],
}


@reward("own.wrong", cache=False)
def wrong(completions: list[str], how: list[str]) -> list[float]:
    return RETURNED[how[0]]()


@reward("own.heavy")
class Heavy:
    """Writes down the worker that builds and loads it."""

    def __init__(self, *, log: str, fault: str = "") -> None:
        self.log, self.loads = log, 0
        open(log, "a").write(f"{os.getpid()}\\n")
        if fault == "config":
            raise RewardConfigError("fault='config' is wrong; remove it")
        self.fault = fault

    def load(self) -> None:
        if self.fault == "crash":
            os._exit(3)
        self.loads += 1

    def __call__(self, completions: list[str]) -> list[float]:
        return [self.loads if "loads" in text else os.getpid() for text in completions]
'''


@pytest.fixture(scope="module", autouse=True)
def reward_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    specs, files = dict(registry._specs), dict(registry._files)
    path = tmp_path_factory.mktemp("isolated") / "moody.py"
    path.write_text(REWARD_FILE)
    load_file(path)
    yield path
    for kept, now in ((specs, registry._specs), (files, registry._files)):
        now.clear()
        now.update(kept)


def reward_set(kind: str = "own.moody", isolate: bool = True, **options) -> RewardSet:
    return RewardSet([RewardEntry("x", kind, isolate=isolate, **options)])


@pytest.fixture(scope="module")
def isolated() -> Iterator[RewardSet]:
    """One for all tests, which start a new worker where the one before has lost its own."""
    rewards = reward_set()
    yield rewards
    rewards.close()


@pytest.fixture(scope="module")
def hasty() -> Iterator[RewardSet]:
    rewards = reward_set(on_error="skip", deadline=DEADLINE)
    yield rewards
    rewards.close()


@pytest.fixture(scope="module")
def function() -> Iterator[Callable[..., list]]:
    made = Isolated(registry.get("own.moody"), {}, DEADLINE)
    yield lambda completions: made.call({"completions": completions}, len(completions), Call())
    made.close()


def exists(pid: int) -> bool:
    """Whether there is such a process, a dead one that nobody waited for included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def worker_of(rewards: RewardSet) -> int:
    return int(rewards([""], ["pid"]).values[0, 0])


AWKWARD = [
    "", "\n", "\r\n\x00\x1b[0m", "\u2028\x85", "\ud800", "\ud83d\ude80", "\U0001f680", "a\udcff",
    "e\u0301 \u202e", '"}\\u0041', "none",
]  # fmt: skip


def test_values_and_spans_are_those_of_the_process_itself(isolated):
    alone = reward_set(isolate=False)([""] * len(AWKWARD), AWKWARD)
    out = isolated([""] * len(AWKWARD), AWKWARD)
    assert out.values.tolist()[:-1] == alone.values.tolist()[:-1]
    assert math.isnan(out.values[-1, 0]) and math.isnan(alone.values[-1, 0])
    assert out.spans == alone.spans != ((),) * len(AWKWARD)
    assert out.values[5] != out.values[6]  # two surrogates are not the character they would make


def test_floats_come_back_to_the_last_bit(function):
    (value,) = function(completions=["tiny"])
    assert value == 0.1 + 0.2 and value.spans[0] == Span(0, 1, 5e-324)
    assert math.copysign(1, value.spans[1].credit) == -1


def test_a_batch_beyond_the_pipes_size_comes_back_whole(isolated):
    texts = [f"{i} " + "long 東京 " * 40 for i in range(2_000)]
    out = isolated([""] * len(texts), texts)
    alone = reward_set(isolate=False)([""] * len(texts), texts)
    assert (out.values == alone.values).all() and out.spans == alone.spans


def test_what_a_reward_prints_is_no_reply(capfd):
    rewards = reward_set()  # a worker that has this test's stdout and stderr
    out = rewards([""] * 2, ["print", "ab"])
    rewards.close()
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.count('{"returned": [9.0]}') == 2
    alone = reward_set(isolate=False)([""] * 2, ["print", "ab"])
    assert out.values.tolist() == alone.values.tolist()


def test_equal_texts_are_sent_once(isolated):
    out = isolated([""] * 3, ["seen", "seen", "seen"])
    assert len({*out.values[:, 0]}) == 1


@pytest.fixture(scope="module")
def wrong() -> Iterator[tuple[RewardSet, RewardSet]]:
    pair = reward_set("own.wrong"), reward_set("own.wrong", isolate=False)
    yield pair
    pair[0].close()


@pytest.mark.parametrize(
    "how",
    [
        *("no list", "a string", "nothing", "too few", "text", "complex", "list"),
        *("nan", "infinite", "huge", "beyond", "credit", "unknown"),
    ],
)
def test_a_wrong_return_is_the_same_error_as_in_process(wrong, how):
    messages = []
    for rewards in wrong:
        with pytest.raises(RewardError) as caught:
            rewards([""] * 2, ["a", "b"], {"how": [how] * 2})
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "reward 'x' (own.wrong, " in messages[0]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("leave", "raised SystemExit: 3"),
        ("memory", "raised MemoryError"),
        ("raise", "raised ValueError: bad text"),
    ],
)
def test_an_exception_leaves_the_worker_alive(function, text, fault):
    before = function(completions=["pid"])
    with pytest.raises(WorkerFault, match=f"^{fault}\n") as caught:
        function(completions=[text])
    assert "moody.py" in caught.value.__notes__[0]  # the worker's traceback
    assert function(completions=["pid"]) == before


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("hang", "took more than 1 s"),
        ("sleep", "took more than 1 s"),
        ("power", "took more than 1 s"),
        ("backtrack", "took more than 1 s"),
        ("stop", "took more than 1 s"),
        ("flood", "(sent back more than 8 MiB|took more than 1 s)"),
        ("segfault", r"ended its worker process \(SIGSEGV\)"),
        ("exit", r"ended its worker process \(exit code 3\)"),
        ("scribble", "wrote into its worker's pipe"),
    ],
)
def test_a_lost_worker_is_ended_and_the_next_call_has_another(function, text, fault, monkeypatch):
    monkeypatch.setattr(isolation, "LARGEST_REPLY", 8 << 20)
    before = int(function(completions=["pid"])[0])
    start = time.monotonic()
    with pytest.raises(WorkerLost, match=f"^{fault}$"):
        function(completions=[text])
    assert time.monotonic() - start < DEADLINE + 2
    assert not exists(before)
    assert function(completions=["pid"]) != [before]


def test_what_a_worker_started_ends_with_it_even_in_a_session_of_its_own(function, tmp_path):
    log = tmp_path / "pid"
    with pytest.raises(WorkerLost, match="took more than 1 s"):
        function(completions=[f"child {log}"])
    child = int(log.read_text())
    until = time.monotonic() + 5
    while runs(child):  # killed already; whoever adopts it may take a moment to wait for it
        assert time.monotonic() < until
        time.sleep(0.02)


def test_samples_that_hang_cost_five_deadlines_and_then_the_run_ends(monkeypatch):
    monkeypatch.setattr("rewards.calling.FAILURE_CEILING", 1.0)  # whatever on_error says
    rewards = reward_set(on_error="skip", deadline=0.2)
    rewards([""], ["a"])
    begun = time.monotonic()
    with pytest.raises(RewardError) as caught:
        rewards([""] * 40, ["a", *(f"hang {i}" for i in range(39))])
    rewards.close()
    message = str(caught.value)
    assert "took more than 0.2 s on 40 samples, and 5 were tried alone; it took more" in message
    assert "the 1 s that hanging samples of a batch may cost are over" in message
    assert message.endswith("raise rewards.x.deadline where it is slow, or find what makes it hang")
    assert time.monotonic() - begun < 39 * 0.2 + 20  # with five starts of a worker in it


def test_only_the_samples_that_hang_or_crash_fail(hasty):
    texts = [*"abcd", "hang", *"efgh", "segfault"]
    out = hasty([""] * 10, texts)
    assert out.valid[:, 0].tolist() == [text not in ("hang", "segfault") for text in texts]
    assert out.skipped == {"x": 2}


def test_a_crash_stops_the_run_with_the_sample_named(isolated, reward_file):
    with pytest.raises(RewardError) as caught:
        isolated([""] * 3, ["a", "bb", "exit"])
    assert str(caught.value).startswith("reward 'x' (own.moody, ")
    assert f"{reward_file}:19) ended its worker process (exit code 3) for " in str(caught.value)
    assert str(caught.value).endswith("for sample 2: 'exit'")


def test_a_batch_that_is_slow_only_as_a_whole_is_scored_one_by_one(hasty, caplog):
    texts = [f"doze {i}" for i in range(5)]
    out = hasty([""] * 5, texts)
    assert out.values[3, 0] == pytest.approx(
        sum((i + 1) * ord(c) for i, c in enumerate("doze 3")) / 7
    )
    assert "took more than 1 s on 5 samples, though on none of them alone" in caplog.text


def test_an_interrupted_call_is_not_answered_in_the_next(isolated):
    def interrupt(*_):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            isolated([""], ["doze"])
    finally:
        signal.signal(signal.SIGALRM, old)
    assert isolated([""], ["\x01"]).values.tolist() == [[1 / 7]]


def test_a_worker_that_starts_again_loads_again_and_runs_the_code_of_the_start(tmp_path):
    log, path = tmp_path / "log", tmp_path / "own.py"
    code = REWARD_FILE.replace("own.", "edited.")
    path.write_text(code)
    load_file(path)
    rewards = reward_set("edited.heavy", params={"log": str(log)})
    path.write_text(code.replace("self.loads += 1", "self.loads += 2"))
    assert rewards([""], ["loads"]).values.tolist() == [[1.0]]
    os.kill(worker_of(rewards), signal.SIGKILL)  # as the kernel does where memory runs out
    assert rewards([""], ["loads again"]).values.tolist() == [[1.0]]
    rewards.close()
    pids = [int(line) for line in log.read_text().split()]
    assert len(pids) == 2 and os.getpid() not in pids and not any(map(exists, pids))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("config", r"^rewards\.x\.fault='config' is wrong; remove it$"),
        (
            "crash",
            r"^rewards\.x \(own\.heavy, .*\) cannot be loaded: its worker ended its worker process",
        ),
    ],
)
def test_a_worker_that_cannot_start_is_a_configuration_error_and_leaves_none(
    tmp_path, fault, message
):
    log = tmp_path / "log"
    entry = RewardEntry("y", "own.heavy", {"log": str(log)}, isolate=True)
    faulty = RewardEntry("x", "own.heavy", {"log": str(log), "fault": fault}, isolate=True)
    with pytest.raises(RewardConfigError, match=message):
        RewardSet([entry, faulty])
    pids = [int(line) for line in log.read_text().split()]
    assert len(pids) == 2 and not any(map(exists, pids))


@pytest.mark.usefixtures("own_registry")
def test_a_reward_that_no_other_process_can_import_is_refused():
    @reward("own.local")
    def local(completions: list[str]) -> list[float]: ...

    with pytest.raises(RewardConfigError, match=r"^rewards\.x\.isolate=True needs a reward that"):
        reward_set("own.local")


def test_settings_from_a_column_share_one_worker_that_is_built_anew_when_lost():
    entry = RewardEntry(
        "x", "own.moody", {"factor": {"column": "by"}}, isolate=True, on_error="skip",
        deadline=DEADLINE,
    )  # fmt: skip
    rewards = RewardSet([entry])
    rewards.check([""] * 2, {"by": [1.0, 2.0]})
    out = rewards([""] * 3, ["\x07", "pid", "pid"], {"by": [2.0, 1.0, 3.0]})
    (worker,) = {*out.values[1:, 0]}
    assert out.values[0, 0] == 2.0 and worker != os.getpid()
    texts, by = ["\x07", "exit", *["\x0e"] * 8], [2.0, 1.0, *[3.0] * 8]
    out = rewards([""] * 10, texts, {"by": by})
    assert out.skipped == {"x": 1} and out.values[2:, 0].tolist() == [6.0] * 8
    again = rewards([""] * 2, ["pid", "pid"], {"by": [4.0, 5.0]})
    (another,) = {*again.values[:, 0]}
    rewards.close()
    assert another != worker and not any(exists(int(pid)) for pid in (worker, another))


def test_a_set_from_columns_whose_worker_was_lost_closes_without_a_word():
    entry = RewardEntry(
        "x", "own.moody", {"factor": {"column": "by"}}, isolate=True, deadline=DEADLINE
    )
    rewards = RewardSet([entry])
    with pytest.raises(RewardError, match=r"took more than 1 s for sample 0: 'hang'$"):
        rewards([""], ["hang"], {"by": [1.0]})
    rewards.close()


def test_isolated_parts_fail_and_end_as_their_combination_does():
    parts = {"a": {"kind": "own.moody"}, "b": {"kind": "structure.word_count", "min": 0}}
    (entry,) = parse_entries(
        {"x": {"kind": "combine.min", "parts": parts, "isolate": True, "on_error": "skip"}}
    )
    rewards = RewardSet([entry])
    out = rewards([""] * 5, ["exit", "pid", *["\x01"] * 3])
    assert out.skipped == {"x": 1} and out.values[2, 0] == 1 / 7
    workers = [part._function._worker._process.pid for part in rewards._rewards[0]._parts]
    rewards.close()
    assert len({*workers}) == 2 and not any(map(exists, workers))


@pytest.mark.parametrize("isolate", [False, True])
def test_an_error_of_ours_that_a_reward_raises_fails_its_sample_alone(isolate):
    rewards = reward_set(isolate=isolate, on_error="skip")
    out = rewards([""] * 5, ["ours", *"abcd"])
    rewards.close()
    assert out.skipped == {"x": 1}
    alone = reward_set(isolate=isolate)
    with pytest.raises(RewardError, match=r"^reward 'x' .* raised RewardError: inner .*'ours'$"):
        alone([""] * 2, ["a", "ours"])
    alone.close()


def test_equal_runs_meet_equal_noise():
    drawn = []
    for _ in range(2):
        rewards = reward_set()
        drawn.append(rewards([""] * 2, ["chance", "chance "]).values[:, 0].tolist())
        rewards.close()
    assert drawn[0] == drawn[1] and drawn[0][0] != drawn[0][1]


def test_built_in_rewards_can_be_isolated():
    entry = RewardEntry("x", "lexical.contains", {"words": ["she"]}, isolate=True)
    rewards = RewardSet([entry])
    alone = RewardSet([RewardEntry("x", "lexical.contains", {"words": ["she"]})])
    out = rewards([""] * 2, ["so she ran", "he"])
    assert out.spans == alone([""] * 2, ["so she ran", "he"]).spans != ((), ())
    rewards.close()


PARENT = """
import os, sys
from rewards import RewardSet, load_file
from rewards.asking import Call
from rewards.compose import RewardEntry

load_file({file!r})
entry = RewardEntry("x", "own.moody", isolate=True, deadline=60.0)
if __name__ == "__main__":
    rewards = RewardSet([entry])
    print(int(rewards([""], ["pid"]).values[0, 0]), flush=True)
    {then}
"""


@pytest.mark.parametrize(
    ("then", "code"),
    [
        ("sys.exit(0)", 0),
        ("raise ValueError", 1),
        ("rewards([''], ['hang'])", -signal.SIGKILL),
    ],
)
def test_no_worker_outlives_its_parent(tmp_path, reward_file, then, code):
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT).format(file=str(reward_file), then=then))
    parent = subprocess.Popen(
        [sys.executable, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    worker = int(parent.stdout.readline())
    if code < 0:
        assert runs(worker)
        time.sleep(0.2)
        parent.kill()
    assert parent.wait() == code
    until = time.monotonic() + 2
    while runs(worker):
        assert time.monotonic() < until
        time.sleep(0.02)
    parent.stdin.close()
    parent.stdout.close()


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie, which an orphan's new parent may leave."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
