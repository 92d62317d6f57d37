"""Files that leave a trace where somebody runs them, and everything that opens model folders."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from rewards.classifiers import Embedder
from rewards.sequences import SequenceClassifier
from rlalign import reward_model, trained
from rlalign.algorithms.ppo import PPORun
from rlalign.models import load_lm, load_tokenizer
from rlalign.reward_training import encoder
from rlalign.settings.sections import ModelSection

CPU = torch.device("cpu")
CODE = "from pathlib import Path\nPath({trace!r}).touch()\nclass Evil: pass\n"
KINDS = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")


class Canary:
    """Unpickled, it touches a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return (Path.touch, (self.trace,))


def read_tokenizer(folder: str) -> None:
    trained.check_tokens(load_tokenizer(ModelSection(name="glass-tiny")), folder, False)


READERS: dict[str, Callable[[str], object]] = {
    "policy": lambda folder: load_lm(ModelSection(name=folder), CPU),
    "tokenizer": lambda folder: load_tokenizer(ModelSection(name=folder)),
    "eval": lambda folder: trained.whole_model(
        folder, PPORun(), load_lm(ModelSection(name="glass-tiny"), CPU), False
    ),
    "eval's tokenizer": read_tokenizer,
    "style and preference": lambda folder: SequenceClassifier(folder, False, "cpu"),
    "topic": lambda folder: Embedder(folder, "cpu"),
    "rewards train": lambda folder: encoder._load(folder, ["a", "b"]),
    "reward model": lambda folder: reward_model._classifier(ModelSection(name=folder)),
}


def read_by_all(folder: Path) -> Iterator[str]:
    """The names of readers, each once it has tried."""
    for name, read in READERS.items():
        with suppress(Exception):
            read(str(folder))
        yield name


@contextmanager
def nothing_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail where a question is put on the terminal."""
    asked: list[object] = []

    def refuse(prompt: object = "") -> str:
        asked.append(prompt)
        return "n"

    with monkeypatch.context() as patch:
        patch.setattr("builtins.input", refuse)
        yield
    assert not asked


def repository(folder: Path, trace: Path, model_type: str = "evil") -> Path:
    """A model's folder in which all that transformers and others may run touches `trace`."""
    folder.mkdir()
    code = CODE.format(trace=str(trace))
    (folder / "evil.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    about = {
        "model_type": model_type, "architectures": ["Evil"],
        "auto_map": dict.fromkeys(KINDS, "evil.Evil"),
        "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1,
    }  # fmt: skip
    tokenizer = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    modules = [{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}]
    for name, content in {
        "config.json": about,
        "tokenizer_config.json": tokenizer,
        "modules.json": modules,
        "config_sentence_transformers.json": {"model_type": "SentenceTransformer"},
    }.items():
        (folder / name).write_text(json.dumps(content))
    torch.save({}, folder / "pytorch_model.bin")
    return folder


def adapter(folder: Path, base: Path, task: str) -> Path:
    """An adapter's folder that names `base`."""
    folder.mkdir()
    about = {"peft_type": "LORA", "task_type": task, "base_model_name_or_path": str(base), "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    shutil.copy(base / "tokenizer_config.json", folder)
    from safetensors.torch import save_file

    save_file({"base_model.model.score.weight": torch.zeros(2, 2)},
              folder / "adapter_model.safetensors")  # fmt: skip
    return folder
