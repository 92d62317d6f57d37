"""A run that was killed after any iteration and gone on with leaves what an unbroken one leaves."""

from pathlib import Path

import exact_runs
import hashes
import pytest

SOME = ["dpg", "wild", "reinforce", "divergence", "policy", "importance"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Hashes of a run that nothing stopped, by case and number of processes."""
    root, known = tmp_path_factory.mktemp("unbroken"), {}

    def find(case: str, world: int = 1) -> dict[str, str]:
        if (case, world) not in known:
            run = exact_runs.whole(root / f"{case}-{world}", case, world)
            known[case, world] = hashes.of_run(run)
        return known[case, world]

    return find


def gone_on_with(folder: Path, case: str, stops: list[int], world: int = 1) -> dict[str, str]:
    """Hashes of a run that was killed after each of these iterations, one after the other."""
    for after in stops:
        exact_runs.killed(folder, case, after, world)
    return hashes.of_run(exact_runs.whole(folder, case, world))


@pytest.mark.parametrize("stops", [[1], [2], [3], [1, 2, 3]], ids=str)
@pytest.mark.parametrize("case", ["ppo", "ppo-lora"])
def test_one_process_goes_on_bit_by_bit(tmp_path, unbroken, case, stops):
    assert gone_on_with(tmp_path, case, stops) == unbroken(case)


@pytest.mark.parametrize("case", ["warmup", "dpg-lora", *SOME])
def test_every_method_goes_on_bit_by_bit_after_each_iteration(tmp_path, unbroken, case):
    assert gone_on_with(tmp_path, case, [1, 2, 3]) == unbroken(case)


@pytest.mark.parametrize("stops", [[1], [2], [3]], ids=str)
def test_two_processes_go_on_bit_by_bit(tmp_path, unbroken, stops):
    assert gone_on_with(tmp_path, "ppo-lora", stops, world=2) == unbroken("ppo-lora", 2)


@pytest.mark.parametrize("case", ["ppo", *SOME])
def test_two_processes_of_every_method_go_on_bit_by_bit(tmp_path, unbroken, case):
    assert gone_on_with(tmp_path, case, [2], world=2) == unbroken(case, 2)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("case", ["ppo-lora", "dpg", "reinforce"])
def test_the_same_configuration_leaves_the_same_run(tmp_path, unbroken, case, world):
    assert hashes.of_run(exact_runs.whole(tmp_path, case, world)) == unbroken(case, world)


def test_another_seed_leaves_another_run(tmp_path, unbroken):
    run = exact_runs.whole(tmp_path, "reinforce", train={"seed": 4})
    assert hashes.of_run(run) != unbroken("reinforce")
