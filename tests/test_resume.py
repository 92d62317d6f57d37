"""A run that stops and goes on is the run that never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hashes
import oracle
import pytest
from forked import in_ranks
from hashes import metrics
from ports import free_port

from rewards.contract import RewardError
from rlalign import loop
from rlalign.algorithms.ppo import PPO, PPORun
from rlalign.checkpoints.folder import CheckpointError, best, load_checkpoint, newest_sound
from rlalign.config import from_mapping
from rlalign.session import Session
from rlalign.symptoms import batch_numbers
from rlalign.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
LORA = {"lora": {"r": 2}}


def run(folder: Path, *, iterations: int = 5, reward: Any = oracle.sparse, **sections: Any) -> Path:
    settings = oracle.config(
        train={"iterations": iterations, "samples": 16, "seed": 3},
        ppo={"minibatches": 2, "lr": 1e-3},
        kl={"coef": 0.1, "target": 1.0, "horizon": 100},
        score={"normalize": True},
        optim={"schedule": "linear", "warmup_iterations": 1},
        eval={"every": 2, "samples": 8},
        checkpoint={"every": 2},
        run={"dir": str(folder), "name": "a", "resume": "auto"},
    )
    for name, values in {"trackers": [], **sections}.items():
        is_section = isinstance(values, dict)
        settings[name] = settings.get(name, {}) | values if is_section else values
    config = from_mapping(PPORun, settings, rewards_given=True)
    with Session(
        config,
        lm=oracle.language_model(),
        tokenizer=oracle.tokenizer(),
        prompts=list(oracle.PROMPTS),
        rewards=[reward],
    ) as session:
        return loop.train(Trainer(session, PPO(config)), quiet=True).folder


def breaks_at_call(n: int) -> Any:
    """The sparse reward, raising at its n-th call."""
    calls = 0

    def sparse(completions: list[str]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == n:
            raise ValueError("the power went out")
        return oracle.sparse(completions)

    return sparse


def test_a_run_that_failed_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    """From a checkpoint of an iteration before: the rows behind it are written again."""
    unbroken = run(tmp_path / "unbroken")
    with pytest.raises(RewardError, match="the power went out"):
        run(tmp_path / "broken", reward=breaks_at_call(7))
    assert json.loads((tmp_path / "broken/a/run.json").read_text())["exit_code"] == 5
    resumed = run(tmp_path / "broken")
    assert len(metrics(resumed)) == 6  # the evaluation before, and five iterations
    assert hashes.of_run(resumed) == hashes.of_run(unbroken)


def test_resuming_with_another_model_is_refused(tmp_path: Path) -> None:
    run(tmp_path, iterations=2)
    with pytest.raises(CheckpointError, match="resume with the model"):
        run(tmp_path, model=LORA)


def test_a_resumed_run_follows_the_settings_that_it_is_given_now(tmp_path: Path) -> None:
    fixed = {"target": None}
    run(tmp_path, iterations=2, kl=fixed | {"coef": 0.1}, optim={"betas": [0.5, 0.6]})
    folder = run(tmp_path, iterations=3, kl=fixed | {"coef": 0.4}, optim={"betas": [0.7, 0.8]})
    assert [row.get("kl/coef") for row in metrics(folder)] == [None, 0.1, 0.1, 0.4]
    newest = max((folder / "checkpoints").glob("step-*"))
    groups = json.loads((newest / "state.json").read_text())["optimizer"]["groups"]
    assert [group["betas"] for group in groups] == [[0.7, 0.8]] * 2


@pytest.mark.parametrize("first", [True, False])
def test_a_checkpoint_with_another_scaling_of_the_score_is_refused(
    tmp_path: Path, first: bool
) -> None:
    run(tmp_path, iterations=2, score={"normalize": first})
    made = "with" if first else "without"
    with pytest.raises(CheckpointError, match=f"made {made} score.normalize; resume as it was"):
        run(tmp_path, iterations=3, score={"normalize": not first})


def test_the_best_of_another_metric_is_no_rival(tmp_path: Path) -> None:
    run(tmp_path, iterations=2, checkpoint={"best": "eval/length"})
    folder = run(tmp_path, iterations=4, checkpoint={"best": "eval/score"})  # below any length
    held = best(folder / "checkpoints")
    assert held is not None and held.metric == "eval/score"


def test_resuming_a_finished_run_leaves_it_as_it_is(tmp_path: Path) -> None:
    before = metrics(run(tmp_path))
    assert metrics(run(tmp_path)) == before


def test_two_processes_resume_to_the_same_metrics(tmp_path: Path) -> None:
    def launch(folder: str, *arguments: str) -> tuple[int, str]:
        script = Path(__file__).with_name("launched_run.py")
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
        command += [str(ROOT / "launch/accelerate/cpu2.yaml")]
        command += ["--main_process_port", str(free_port())]
        done = subprocess.run(
            [*command, str(script), str(tmp_path / folder), *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=ROOT,
            check=False,
        )
        return done.returncode, done.stderr

    folder = tmp_path / "unbroken"
    assert in_ranks(2, lambda: run(folder, model=LORA) and None) == [0, 0]
    assert launch("broken", "10")[0] != 0
    ended = json.loads((tmp_path / "broken/a/run.json").read_text())
    assert ended["exit_code"] == 5  # rank 1's reward failed; rank 0 wrote it down
    assert "'sparse'" in ended["message"] and "rank 1" in ended["message"]
    code, stderr = launch("broken")
    assert code == 0, stderr
    unbroken, resumed = tmp_path / "unbroken/a", tmp_path / "broken/a"
    assert json.loads((resumed / "run.json").read_text())["world_size"] == 2
    assert metrics(resumed) == metrics(unbroken)
    # Both ranks' samples are in the file, and are what one process would have audited.
    rows = [json.loads(line) for line in (unbroken / "samples.jsonl").read_text().splitlines()]
    for entry in metrics(unbroken)[1:]:
        at = (entry["iteration"], "train")
        batch = [row for row in rows if (row["iteration"], row["split"]) == at]
        audited = {f"audit/{k}": v for k, v in batch_numbers(batch, {"sparse": float}).items()}
        assert len(batch) == 16 and audited.items() <= entry.items()
    assert hashes.of_run(resumed) == hashes.of_run(unbroken)


def test_sigterm_saves_and_ends_with_143(tmp_path: Path) -> None:
    script = Path(__file__).with_name("launched_run.py")
    environment = os.environ | {"ITERATIONS": "500"}
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    rows = tmp_path / "a/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (rows.exists() and len(rows.read_text().splitlines()) > 3):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "--run.resume=auto" in stderr.strip().splitlines()[-1]
    written = json.loads((tmp_path / "a/run.json").read_text())
    assert (written["status"], written["exit_code"]) == ("preempted", 143)
    last, newest = (
        metrics(tmp_path / "a")[-1]["iteration"],
        newest_sound(tmp_path / "a/checkpoints"),
    )
    assert newest is not None
    saved = load_checkpoint(newest)
    # An iteration that was to be evaluated just then is saved, and its row not yet written.
    assert saved.step == last + ("learned" in saved.state)
