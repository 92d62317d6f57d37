"""Small whole runs of every method, which can be killed after any iteration and gone on with."""

import os
import random
import signal
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import oracle
import torch
from forked import in_ranks

from rewards import reward
from rlalign import loop
from rlalign.checkpoints.resuming import RunCheckpoints
from rlalign.config import from_mapping
from rlalign.exits import exit_code, last_line
from rlalign.methods import METHODS
from rlalign.session import Session
from rlalign.trainer import Trainer


@reward("exact.wild", example={})
class Wild:
    """Draws at random, and remembers how much it was shown: all that a reward should not do."""

    def __init__(self) -> None:
        self.shown = 0

    def __call__(self, completions: list[str]) -> list[float]:
        random.seed(0)  # reaches nothing but what follows in this call
        noise = [random.random() + float(torch.rand(())) for _ in completions]
        self.shown += len(completions)
        return [
            x + 0.01 * self.shown + text.count("c")
            for x, text in zip(noise, completions, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"shown": self.shown}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shown = state["shown"]


LORA = {"model": {"name": "oracle", "dtype": "float32", "lora": {"r": 2}}}
MOMENT = {"hit": {"kind": "lexical.contains", "words": ["d a"], "moment": 0.5}}
NEAR = {"hit": {"kind": "lexical.contains", "words": ["d"], "moment": 0.8}}
SHARED: dict[str, Any] = {
    "sampling": {"max_new_tokens": 5, "samples_per_prompt": 8},
    "train": {"iterations": 4, "samples": 32, "seed": 3, "threads": 1},
    "optim": {"schedule": "linear", "warmup_iterations": 1},
    "target": {"samples": 256},
    "eval": {"every": 2, "samples": 8},
    "checkpoint": {"every": 1, "keep": 2},
    "audit": {"window": 2},
    "trackers": [],
}
STEERED = {"coef": 0.1, "target": 1.0, "horizon": 100}
PPO: dict[str, Any] = {
    "method": "ppo",
    "ppo": {"minibatches": 2, "epochs": 1, "lr": 1e-3},
    "kl": STEERED,
    "score": {"normalize": True},
}
OFF_POLICY = {"proposal": "best", "proposal_every": 1, "minibatches": 2, "lr": 1e-3}
CASES: dict[str, dict[str, Any]] = {
    "ppo": PPO,
    "ppo-lora": PPO | LORA,
    "warmup": PPO | {"ppo": PPO["ppo"] | {"critic_warmup": 3}},
    "divergence": {"method": "ppo", "ppo": PPO["ppo"] | {"divergence": "js"}},
    "dpg": {"method": "dpg", "dpg": OFF_POLICY},
    "dpg-lora": {"method": "dpg", "dpg": OFF_POLICY} | LORA,
    "reinforce": {"method": "reinforce", "reinforce": {"minibatches": 2}, "kl": STEERED},
    "wild": {
        "method": "reinforce",
        "reinforce": {"minibatches": 2, "baseline": "none"},
        "rewards": {"wild": {"kind": "exact.wild"}},
    },
    "policy": {
        "method": "dpg",
        "dpg": {"lr": 1e-2, "minibatches": 4},
        "rewards": NEAR,  # half of the way is gone within four iterations, and lambda moves
        "target": {"rate": 0.5},
    },
    "importance": {
        "method": "dpg",
        "dpg": {"lr": 1e-3},
        "rewards": MOMENT,
        "target": {"update": "importance", "rate": 0.5},
    },
}


def trainer_of(
    folder: Path,
    case: str,
    prompts: tuple[str, ...] = oracle.PROMPTS,
    base: int = 0,
    **sections: Any,
) -> Trainer:
    """A case's trainer, for a run that goes on where it was left; `base`: a base model's seed."""
    settings = oracle.config()
    own = {name: values for name, values in CASES[case].items() if name != "method"}
    where = {"run": {"dir": str(folder), "name": "a", "resume": "auto"}}
    for layer in (SHARED, where, own, sections):
        for name, values in layer.items():
            is_section = isinstance(values, dict) and name != "rewards"
            settings[name] = settings.get(name, {}) | values if is_section else values
    method = METHODS[CASES[case]["method"]]
    config = from_mapping(method.run_model, settings, rewards_given=True)
    session = Session(
        config,
        lm=oracle.language_model(base),
        tokenizer=oracle.tokenizer(),
        prompts=list(prompts),
        rewards=[] if "rewards" in settings else [oracle.dense],
    )
    return Trainer(session, method.objective(config))


def run(folder: Path, case: str, **sections: Any) -> Path:
    """One run of a case in this process, which ends with it."""
    loop.draw_plots = loop.write_model_card = lambda *_, **__: None  # longer than the training
    trainer = trainer_of(folder, case, **sections)
    with trainer.session:
        return loop.train(trainer, quiet=True).folder


@cache
def warm() -> None:
    """Have transformers build its tables once, and not in every process."""
    with tempfile.TemporaryDirectory() as folder:
        oracle.language_model().save_pretrained(folder)


def die_after(iteration: int) -> None:
    """Kill this process by SIGKILL once it has saved after this iteration."""
    save = RunCheckpoints.save_if_due

    def then_die(self: RunCheckpoints, *arguments: Any) -> None:
        save(self, *arguments)
        if self.trainer.iteration == iteration:
            os.kill(os.getpid(), signal.SIGKILL)

    RunCheckpoints.save_if_due = then_die  # type: ignore[method-assign]


def refusals(folder: Path, case: str, world: int = 1, **sections: Any) -> list[str]:
    """What each rank of a run that cannot go on says: its exit code and its message."""
    warm()

    def work() -> None:
        try:
            run(folder, case, **sections)
        except Exception as error:
            rank = os.environ.get("RANK", "0")
            text = f"{exit_code(error)} {last_line(error)}"
            (folder / f"refused-{rank}").write_text(text, encoding="utf-8")

    assert in_ranks(world, work) == [0] * world
    return [(folder / f"refused-{rank}").read_text(encoding="utf-8") for rank in range(world)]


def whole(folder: Path, case: str, world: int = 1, **sections: Any) -> Path:
    """A run in processes of its own, from where it was left to its end."""
    warm()
    assert in_ranks(world, lambda: run(folder, case, **sections) and None) == [0] * world
    return folder / "a"


def killed(folder: Path, case: str, after: int, world: int = 1, **sections: Any) -> None:
    """The same, killed after an iteration."""
    warm()

    def work() -> None:
        die_after(after)
        run(folder, case, **sections)

    assert in_ranks(world, work) == [signal.SIGKILL] * world
