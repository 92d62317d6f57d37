"""The quickstart notebook runs as it is, and what it holds came from running it.

`python tests/test_notebook.py` runs it and writes its outputs anew.
"""

import re
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs" / "quickstart.ipynb"
SECONDS = 600  # for a machine that does other work; alone on a core the whole takes under 60
GAINS = re.compile(r"^(\w[\w/]*) +(-?[\d.]+) -> +(-?[\d.]+)$", re.MULTILINE)
SCORES = re.compile(r"^score +(-?[\d.]+) +KL", re.MULTILINE)
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|usr|work|opt|mnt)/")


def executed(folder):
    """The notebook run in a folder, by this Python."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=resources)
    return client.execute()


def stdout_of(notebook):
    """What its cells printed, one after the other."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return executed(tmp_path_factory.mktemp("notebook"))


@pytest.fixture(scope="module")
def kept():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.mark.parametrize("which", ["fresh", "kept"])
def test_both_loops_learn(which, request):
    printed = stdout_of(request.getfixturevalue(which))
    gains = {name: (float(a), float(b)) for name, a, b in GAINS.findall(printed)}
    assert gains["score"][1] > gains["score"][0] + 0.3
    assert gains["kl"][0] == 0 < gains["kl"][1]
    scores = [float(score) for score in SCORES.findall(printed)]
    assert len(scores) == 8 and sum(scores[-2:]) > sum(scores[:2]) + 1


def test_it_is_kept_with_its_outputs_and_no_machine_shows_in_them(kept):
    cells = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    texts = [o.get("text") or o.data.get("text/plain", "") for o in outputs]
    assert not [text for text in texts if MACHINE_PATH.search(text)]


def refresh():
    """Run the notebook and keep its outputs, but for warnings of this machine's packages."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = executed(folder)
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    refresh()
