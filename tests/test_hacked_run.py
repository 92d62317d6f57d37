"""The run that docs/reward-hacking.md tells of: hacked as it is, quiet once it is mended."""

import json
import re
import shlex
from pathlib import Path

import pytest

from rlalign import train

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reward-hacking.md").read_text(encoding="utf-8")


def warned(folder: Path, overrides: list[str]) -> tuple[dict[str, int], float]:
    """By warning the iteration that it began after; the share of everyday words at the end."""
    own = [
        f"--run.dir={folder}",
        "--run.name=x",
        "--prompts.path=" + str(ROOT / "experiments/data/openings.jsonl"),
    ]
    result = train(ROOT / "experiments/hackable.yaml", overrides=[*own, *overrides], quiet=True)
    said = json.loads((result.folder / "run.json").read_text(encoding="utf-8")).get("warnings", [])
    assert result.after is not None
    return {each["name"]: each["began"] for each in said}, result.after.stats["eval/reward/plain"]


@pytest.mark.prove
def test_a_hacked_reward_is_noticed_and_a_mended_one_is_not(tmp_path):
    hacked, share = warned(tmp_path / "hacked", [])
    names = {"far-from-reference", "collapsed-diversity", "repeated-phrase", "judge-disagrees"}
    assert names <= hacked.keys() and max(hacked[name] for name in names) <= 20
    assert share > 0.9
    mend = re.search(r"^rlalign ppo .*?hackable.yaml (--kl.*)$", PAGE, re.MULTILINE)
    assert mend is not None
    quiet, share = warned(tmp_path / "mended", shlex.split(mend[1]))
    assert quiet == {} and 0.3 < share < 0.5
