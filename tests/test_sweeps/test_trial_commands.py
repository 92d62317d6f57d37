"""A trial's command line is the one that W&B's own agent starts."""

from pathlib import Path
from typing import Any

import pytest
from local_sweeps import write
from wandb import wandb_agent

from rlalign.sweeps.file import FORMS, command_line, read_sweep

VALUES = {
    "kl.coef": 0.05,
    "ppo.lr": 1e-05,
    "ppo.epochs": 3,
    "kl.target": None,
    "prompts.chat": True,
    "score.normalize": False,
    "sampling.stop": ["it's", 'say "no"'],
    "kl": {"horizon": 500},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_trials_command_is_the_one_that_an_agent_starts(form, here, monkeypatch):
    """The agent's own code, with nothing but the start of the process taken out."""
    monkeypatch.setenv("WORDS", "a b")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "")  # the agent sets them; restored after the test
    command = ["${env}", "${interpreter}", "${program}", "${envvar:WORDS}", 3, f"${{{form}}}"]
    path = write({"x": {"value": 1}}, command=command)
    agent = object.__new__(wandb_agent.Agent)
    agent._sweep_command, agent._function, agent._in_jupyter = list(command), None, False
    agent._run_processes, agent._forward_signals = {}, False
    started: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], **more: Any) -> None:
            started.append(command)

    monkeypatch.setattr(wandb_agent, "AgentProcess", Process)
    given = {name: {"value": value} for name, value in VALUES.items()}
    agent._command_run({"run_id": "r", "program": "program.py", "args": given})
    ours = command_line(read_sweep(path), VALUES, Path("wandb/sweep-None/config-r.json"))
    assert [ours] == started and len(ours) > 5
