"""A whole run on a terminal: its bar, and how it is told to stop."""

import json
import os
import signal

from rich.cells import cell_len
from terminals import run_on_terminal

CONFIG = {
    "model": {"name": "glass-tiny", "dtype": "float32", "lora": {"r": 2}},
    "sampling": {"max_new_tokens": 8},
    "rewards": {"short": {"kind": "structure.word_count", "min": 2, "max": 4}},
    "train": {"iterations": 500, "samples": 8, "threads": 1},
    "ppo": {"minibatches": 2},
    "eval": {"every": 2, "samples": 4},
    "trackers": [],
}
PROGRAM = """
import os, sys
from rlalign.cli import main
os.chdir(os.environ["PLACE"])
sys.exit(main(["ppo", "--config=run.yaml", "--run.name=a"]))
"""


def test_a_run_that_is_told_to_stop_takes_its_bar_away_and_says_how_to_go_on(tmp_path):
    prompts = "".join(json.dumps({"prompt": f"Alice saw {word}"}) + "\n" for word in ("a", "the"))
    (tmp_path / "prompts.jsonl").write_text(prompts)
    at = {"path": "prompts.jsonl", "eval_path": "prompts.jsonl"}
    (tmp_path / "run.yaml").write_text(json.dumps(CONFIG | {"prompts": at}))
    bars, told = [], []

    def worked(seen_bars):
        return any(f"/500 {phase}" in bar for bar in seen_bars for phase in ("generate", "update"))

    def stop(pid, seen):
        bar = seen.screen.display[seen.screen.cursor.y]
        if "tok/s" in bar and "━" in bar:
            bars.append(bar)
            assert cell_len(bar.rstrip()) < 80
        if worked(bars) and not told and any("▸" in line for line in seen.lines):
            told.append(True)
            os.kill(pid, signal.SIGTERM)

    seen = run_on_terminal(PROGRAM, meanwhile=stop, PLACE=str(tmp_path))
    assert seen.code == 143
    assert worked(bars)
    assert "rlalign: stopped after iteration" in seen.lines[-2] + seen.lines[-1]
    assert not any("tok/s " in line and "━" in line for line in seen.lines)
    assert any("SIGTERM in" in line for line in seen.lines)
    assert b"\x1b[?25l" not in seen.raw
