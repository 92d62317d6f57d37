"""Two real processes learn what one process learns from the same samples."""

import os
import subprocess
import sys
from pathlib import Path

import one_update
import pytest
import torch
from ports import free_port
from torch import Tensor
from torch.testing import assert_close

from rlalign.policy import micro_batches
from rlalign.types import PromptBatch, Rollout, ScoredRollout

ROOT = Path(__file__).parent.parent
BUDGET = one_update.SECTIONS["optim"]["micro_batch_tokens"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> dict[str, list[dict]]:
    """What each of two processes saw and learnt, by model."""
    folder = tmp_path_factory.mktemp("two")
    launched("one_update.py", folder)
    return {
        name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(2)]
        for name in one_update.MODELS
    }


def launched(script: str, folder: Path) -> None:
    """Run a script of the tests in two processes."""
    config = ROOT / "launch" / "accelerate" / "cpu2.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--main_process_port", str(free_port())]
    done = subprocess.run(
        [*command, str(ROOT / "tests" / script), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def joined(parts: list[ScoredRollout]) -> ScoredRollout:
    """Both ranks' samples as one process would hold them, rank 0's first."""
    width = max(part.rollout.response_ids.shape[1] for part in parts)
    prompt_width = max(part.rollout.prompts.prompt_ids.shape[1] for part in parts)

    def right(tensors: list[Tensor]) -> Tensor:
        pad = [torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in tensors]
        return torch.cat(pad)

    def left(tensors: list[Tensor]) -> Tensor:
        pad = [torch.nn.functional.pad(x, (prompt_width - x.shape[1], 0)) for x in tensors]
        return torch.cat(pad)

    rollouts = [part.rollout for part in parts]
    prompts = [rollout.prompts for rollout in rollouts]
    return ScoredRollout(
        log_potential=torch.cat([part.log_potential for part in parts]),
        features=torch.cat([part.features for part in parts]),
        rollout=Rollout(
            prompts=PromptBatch(
                left([p.prompt_ids for p in prompts]),
                left([p.prompt_mask for p in prompts]),
                [text for p in prompts for text in p.texts],
                {},
            ),
            response_ids=right([r.response_ids for r in rollouts]),
            response_mask=right([r.response_mask for r in rollouts]),
            action_mask=right([r.action_mask for r in rollouts]),
            logprobs=right([r.logprobs for r in rollouts]),
            finished=torch.cat([r.finished for r in rollouts]),
            # Each rank counts its own prompts from 0.
            group=torch.cat([r.group + 1000 * i for i, r in enumerate(rollouts)]),
            policy_step=0,
            texts=[text for r in rollouts for text in r.texts],
        ),
        rewards=torch.cat([part.rewards for part in parts]),
        valid=torch.cat([part.valid for part in parts]),
        score=torch.cat([part.score for part in parts]),
        token_rewards=right([part.token_rewards for part in parts]),
        ref_logprobs=right([part.ref_logprobs for part in parts]),
    )


@pytest.fixture(scope="module", params=["full", "lora"])
def both(request, ranks) -> tuple[list[dict], dict]:
    """The two ranks' results and one process's on the same samples."""
    parts = ranks[request.param]
    scored = joined([part["scored"] for part in parts])
    return parts, one_update.update(one_update.new_trainer(request.param), scored)


def test_two_processes_met(both):
    parts, alone = both
    assert [part["world"] for part in parts] == [2, 2] and alone["world"] == 1


def test_ranks_draw_different_samples_from_one_order_of_prompts(both):
    parts, alone = both
    texts = [part["scored"].rollout.texts for part in parts]
    assert [len(part) for part in texts] == [12, 12] and texts[0] != texts[1]
    session = one_update.new_trainer("full").session
    assert alone["scored"].rollout.prompts.texts == session.prompt_batch(0).texts


def test_the_ranks_ran_different_numbers_of_micro_batches(both):
    """So the test below sees padded micro-batches."""
    lengths = [part["scored"].rollout.lengths for part in both[0]]
    assert len({len(micro_batches(x, BUDGET)) for x in lengths}) == 2
    assert min(len(micro_batches(x, BUDGET)) for x in lengths) > 1


def test_two_processes_learn_what_one_learns_from_the_same_samples(both):
    (first, second), alone = both
    assert_close(first["parameters"], second["parameters"], rtol=0, atol=0)
    assert_close(first["parameters"], alone["parameters"], rtol=0, atol=1e-5)


def test_ranks_stay_equal_in_bfloat16_whose_weights_are_copied_to_decode(ranks):
    """DDP would lose sight of a parameter whose storage were swapped for the copy's."""
    first, second = (rank["parameters"] for rank in ranks["bfloat16"])
    assert_close(first, second, rtol=0, atol=0)
    start = one_update.builders.parameters(one_update.new_trainer("bfloat16").session.policy)
    assert not torch.equal(first["lm.lm_head.weight"], start["lm.lm_head.weight"])


def test_two_processes_say_what_one_says(both):
    parts, alone = both
    for part in parts:
        for ours, theirs in zip(part["stats"], alone["stats"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
        assert part["kl_coef"] == pytest.approx(alone["kl_coef"]) != 0.2
        assert part["optimizer_steps"] == alone["optimizer_steps"] == 4
        assert part["samples"] == alone["samples"] == 48


def test_the_update_moves_the_policy_and_not_the_reference(both):
    parts, alone = both
    start = one_update.builders.parameters(
        one_update.new_trainer(
            "lora" if any("lora" in name for name in alone["parameters"]) else "full"
        ).session.policy
    )
    learns = {name for name in start if not torch.equal(start[name], alone["parameters"][name])}
    assert len(learns) > 5 and "value_head.weight" in learns
    change = max(float((alone["parameters"][name] - start[name]).abs().max()) for name in learns)
    assert change > 1e-3  # a hundred times what the two may differ by
    assert not any(part["reference_moved"] for part in [*parts, alone])
