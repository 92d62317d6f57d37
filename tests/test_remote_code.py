"""Code that comes with a model runs where `trust_remote_code` says so, and nobody is asked."""

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from canaries import CPU, READERS, adapter, nothing_asked, repository
from jinja2.exceptions import SecurityError, UndefinedError

from rewards.sequences import SequenceClassifier
from rlalign import reward_model
from rlalign.algorithms.ppo import PPORun
from rlalign.cli import main
from rlalign.models import load_lm, load_tokenizer
from rlalign.settings.sections import ModelSection
from rlalign.trained import whole_model
from rlalign.trl_bridge import render_chat


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace"


@pytest.mark.parametrize("model_type", ["evil", "llama"])
@pytest.mark.parametrize("reader", READERS)
def test_code_beside_a_model_is_not_run(
    tmp_path: Path, trace: Path, reader: str, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = repository(tmp_path / "repository", trace, model_type)
    with nothing_asked(monkeypatch), suppress(Exception):  # it is no model; llama has its own code
        READERS[reader](str(folder))
    assert not trace.exists()


@pytest.mark.parametrize("reader", ["policy", "tokenizer", "eval", "style and preference"])
def test_it_is_run_where_that_is_asked_for(tmp_path: Path, trace: Path, reader: str) -> None:
    """Or the tests here could not fail."""
    folder = str(repository(tmp_path / "repository", trace))
    model = ModelSection(name=folder, trust_remote_code=True)
    trusting = {
        "policy": lambda: load_lm(model, CPU),
        "tokenizer": lambda: load_tokenizer(model),
        "eval": lambda: whole_model(folder, PPORun(), torch.nn.Linear(1, 1), True),
        "style and preference": lambda: SequenceClassifier(folder, True, "cpu"),
    }
    with pytest.raises(Exception):  # noqa: B017  it is no model
        trusting[reader]()
    assert trace.exists()


@pytest.mark.parametrize("task", ["SEQ_CLS", "CAUSAL_LM"])
def test_an_adapters_base_is_no_more_trusted(
    tmp_path: Path, trace: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter(tmp_path / "adapter", repository(tmp_path / "base", trace), task)
    for read in READERS.values():
        with nothing_asked(monkeypatch), suppress(Exception):
            read(str(folder))
        assert not trace.exists()


@pytest.mark.parametrize("command", [
    "ppo --model.name=FOLDER",
    "grpo --model.name=FOLDER",
    "doctor --no-probe --model.name=FOLDER",
    "eval FOLDER --model.name=glass-tiny",
    "eval glass-tiny --model.name=FOLDER --out OUT",
    "rewards train --data experiments/data/labelled.jsonl --label style --kind style "
    "--method encoder --model FOLDER --out OUT",
    "rewards train --data experiments/data/labelled.jsonl --label style --kind style "
    "--method embedding --model FOLDER --out OUT",
])  # fmt: skip
def test_no_command_runs_it(
    tmp_path: Path, trace: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = repository(tmp_path / "repository", trace)
    argv = command.replace("FOLDER", str(folder)).replace("OUT", str(tmp_path / "out")).split()
    if argv[0] in ("ppo", "grpo", "eval"):
        argv += ["--config=experiments/quickstart.yaml", "--model.lora=null"]
    if argv[0] in ("ppo", "grpo"):
        argv += [f"--run.dir={tmp_path}"]
    with nothing_asked(monkeypatch):
        assert main(argv) in (2, 3, 5)
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["style.classifier", "model.preference", "topic.similarity"])
def test_no_reward_runs_it(
    tmp_path: Path, trace: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = repository(tmp_path / "repository", trace)
    more = {"style.classifier": "label: a, ", "topic.similarity": "topic: rain, "}.get(kind, "")
    (tmp_path / "a.yaml").write_text(f"rewards: {{x: {{kind: {kind}, {more}model: {folder}}}}}")
    with nothing_asked(monkeypatch):
        assert main(["rewards", "probe", f"--config={tmp_path / 'a.yaml'}", "It rains."]) in (2, 5)
    assert not trace.exists()


TEMPLATES = [
    "{{{{ cycler.__init__.__globals__.os.mkdir('{trace}') }}}}",
    "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}",
    "{{% set x = messages.append(1) %}}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_template_reaches_nothing_but_its_messages(trace: Path, template: str) -> None:
    tokenizer = load_tokenizer(ModelSection(name="glass-tiny"))
    tokenizer.chat_template = template.format(trace=trace)
    with pytest.raises((SecurityError, UndefinedError)):
        render_chat([{"role": "user", "content": "Hello."}], tokenizer)
    assert not trace.exists()


def test_the_training_of_a_reward_model_does_not_run_it(
    tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = repository(tmp_path / "repository", trace)
    with nothing_asked(monkeypatch):
        assert reward_model.main([f"--model.name={folder}", f"--run.dir={tmp_path}"]) == 2
    assert not trace.exists()
