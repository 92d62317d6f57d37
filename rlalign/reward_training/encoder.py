"""A transformers encoder fine-tuned on labelled texts, through transformers' own Trainer."""

import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np

from rewards import embedded
from rewards.classifiers import first_line
from rewards.embedded.converters import quiet_transformers
from rlalign.problems import ConfigError
from rlalign.reward_training.examples import Example
from rlalign.reward_training.linear import label_weights

# Without `--epochs`: so many steps, but a sane number of passes over the data.
STEPS, LEAST_EPOCHS, MOST_EPOCHS = 200, 3, 20


@dataclass(frozen=True)
class FineTuning:
    base: str  # embedded name, hub id or path
    epochs: int | None
    lr: float
    batch_size: int
    max_length: int  # tokens that are read
    balanced: bool
    seed: int


def fine_tune(
    how: FineTuning, rows: Sequence[Example], labels: Sequence[str], out: Path
) -> dict[str, Any]:
    """Train, write model and tokenizer to `out` as safetensors and JSON; what was chosen.

    Raises ConfigError where the base cannot be loaded.
    """
    from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, set_seed

    set_seed(how.seed)  # the new head is drawn here
    tokenizer, network = _load(how.base, labels)
    limit = min(how.max_length, _longest(tokenizer, network))
    targets = [labels.index(row.label) for row in rows]
    data: Any = [
        {**tokenizer(row.text, truncation=True, max_length=limit), "labels": target}
        for row, target in zip(rows, targets, strict=True)
    ]
    steps = math.ceil(len(rows) / how.batch_size)  # of one pass
    epochs = how.epochs or min(max(math.ceil(STEPS / steps), LEAST_EPOCHS), MOST_EPOCHS)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=network,
            args=_arguments(how, epochs, steps, scratch),
            train_dataset=data,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_loss_func=_weighted_loss(targets, how.balanced),
        )
        trainer.remove_callback(PrinterCallback)  # it prints dictionaries where there is no bar
        result = trainer.train()
    with quiet_transformers():
        network.save_pretrained(out)
        tokenizer.save_pretrained(out)
    chosen = {"base": how.base, "epochs": epochs, "lr": how.lr, "batch_size": how.batch_size}
    return chosen | {"max_length": limit, "train_loss": round(float(result.training_loss), 4)}


def _arguments(how: FineTuning, epochs: int, steps: int, scratch: str) -> Any:
    """Nothing is logged, reported or saved along the way."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=scratch,
        num_train_epochs=epochs,
        learning_rate=how.lr,
        per_device_train_batch_size=how.batch_size,
        warmup_steps=math.ceil(0.1 * epochs * steps),
        weight_decay=0.01,
        seed=how.seed,
        data_seed=how.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=False,
    )


def _weighted_loss(targets: Sequence[int], balanced: bool) -> Callable[..., Any]:
    """Cross-entropy, each label with its weight, over the texts of a batch.

    torch's own weighted mean divides by the batch's weights: a batch of frequent labels alone would
    then count as much as one with rare ones.
    """
    import torch

    by_label = dict(zip(targets, label_weights(np.array(targets), balanced), strict=True))
    weight = torch.tensor([by_label[i] for i in sorted(by_label)], dtype=torch.float32)

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs.logits
        each = torch.nn.functional.cross_entropy(
            logits, labels, weight.to(logits.device), reduction="none"
        )
        return each.mean()

    return loss


def _load(base: str, labels: Sequence[str]) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = str(embedded.path(base)) if embedded.is_embedded(base) else str(Path(base).expanduser())
    if base.startswith((".", "/", "~")) and not Path(path).is_dir():
        raise ConfigError(f"--model {base}: there is no such directory in {Path.cwd()}")
    names = dict(enumerate(labels))
    try:
        with quiet_transformers():
            # Unsaid, transformers would ask on the terminal whether to run a model's code.
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            network = AutoModelForSequenceClassification.from_pretrained(
                path,
                trust_remote_code=False,
                num_labels=len(labels),
                id2label=names,
                label2id={name: i for i, name in names.items()},
                problem_type="single_label_classification",
                ignore_mismatched_sizes=True,  # a head for other labels is replaced
                dtype=torch.float32,
            )
    except (OSError, ValueError, ImportError, UnpicklingError) as error:
        raise ConfigError(
            f"--model {base} cannot be loaded as a sequence classifier "
            f"({type(error).__name__}: {first_line(error)}); give an embedded model "
            f"({', '.join(embedded.names())}), a hub id or a directory"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    network.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, network


def _longest(tokenizer: Any, network: Any) -> int:
    limits = [tokenizer.model_max_length]  # astronomic where the files name none
    positions = network.config.to_dict().get("max_position_embeddings")
    return int(min(limits if positions is None else [*limits, positions]))
