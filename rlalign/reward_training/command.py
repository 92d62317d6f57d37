"""`rlalign rewards train`, as it is typed and as it answers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlalign.reward_training import settings as given
from rlalign.terminal import printable

if TYPE_CHECKING:
    from rlalign.reward_training.training import Trained

EXAMPLE = (
    "rlalign rewards train --data experiments/data/labelled.jsonl --label style --kind style "
    "--out runs/classifiers/style"
)
PASTED = 4  # labels that get a line to paste

Data = Annotated[Path, typer.Option(help="Labelled texts: .jsonl, .csv or .tsv.")]
Out = Annotated[Path, typer.Option(help="The folder to write; it must not be there.")]
Text = Annotated[str, typer.Option(help="The column of the texts.")]
Label = Annotated[str, typer.Option(help="The column of the labels.")]
Kind = Annotated[given.Kind, typer.Option(help="What the labels are about: the reward's family.")]
Method = Annotated[
    given.Method,
    typer.Option(
        help="TF-IDF or sentence embeddings under a logistic regression, or a fine-tuned encoder."
    ),
]
Features = Annotated[
    given.Features | None,
    typer.Option(help="tfidf: what is counted; words for a topic, characters for a style."),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="embedding: a sentence-transformers model; encoder: the base to fine-tune; "
        f"embedded, hub id or path. {given.MODEL} if left out."
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(min=1, help="encoder: passes over the data; if left out, by its size."),
]
Lr = Annotated[
    float | None, typer.Option(help=f"encoder: learning rate; {given.LR:g} if left out.")
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help=f"encoder: texts a step; {given.BATCH_SIZE} if left out."),
]
MaxLength = Annotated[
    int | None,
    typer.Option(min=1, help=f"encoder: tokens read; {given.MAX_LENGTH} if left out."),
]
HeldOut = Annotated[
    float, typer.Option(help="Share of each label's texts that is only measured on.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of the split and of all that is random.")]
Balanced = Annotated[
    bool, typer.Option("--balanced", help="Train as if all labels were equally frequent.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a classifier that is there.")]


def train(
    data: Data,
    out: Out,
    text: Text = "text",
    label: Label = "label",
    kind: Kind = "topic",
    method: Method = "tfidf",
    features: Features = None,
    model: Model = None,
    epochs: Epochs = None,
    lr: Lr = None,
    batch_size: BatchSize = None,
    max_length: MaxLength = None,
    held_out: HeldOut = 0.2,
    seed: Seed = 0,
    balanced: Balanced = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a topic or style classifier from your own labelled texts, and measure it."""
    from rlalign.reward_training.training import train_classifier

    settings = given.Settings(
        data=data,
        out=out,
        text=text,
        label=label,
        kind=kind,
        method=method,
        features=features,
        model=model,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        max_length=max_length,
        held_out=held_out,
        seed=seed,
        balanced=balanced,
        overwrite=overwrite,
    )
    print(printable("\n".join(answer(settings, train_classifier(settings)))))


def answer(settings: given.Settings, made: "Trained") -> list[str]:
    """What is printed: the numbers, what to mind, and the lines to paste."""
    report = made.report
    held_out, data = report["held_out"], report["training"]["data"]
    labels = report["labels"]
    lines = [
        f"{report['kind']} classifier ({report['method']}): {len(labels)} labels, "
        f"{data['train']} texts to learn from, {data['held_out']} held out (seed {settings.seed})",
        f"accuracy     {held_out['accuracy']:.3f}   "
        f"(always the most frequent label: {held_out['baseline']:.3f})",
        f"macro-F1     {held_out['macro_f1']:.3f}   AUC {held_out['auc']:.3f}",
        f"calibration  ECE {held_out['ece']:.3f}   Brier {held_out['brier']:.3f}   "
        f"log loss {held_out['log_loss']:.3f}",
        f"speed        {report['speed']['texts_per_second']:,.0f} texts/s of "
        f"{report['speed']['words_per_text']:.0f} words on {report['speed']['device']}",
        *(f"note: {note}" for note in made.notes),
        f"written: {made.folder} (report.json, report.png)",
        "",
        "To reward a label, paste its line under `rewards:` of a configuration:",
    ]
    lines += [f"  {entry_line(settings, label)}" for label in list(labels)[:PASTED]]
    if len(labels) > PASTED:
        lines.append(f"  … and so on for {', '.join(list(labels)[PASTED:])}")
    return lines


def entry_line(settings: given.Settings, label: str) -> str:
    """An entry as one line of YAML, under a name made of the label."""
    import re

    import yaml

    word = re.sub(r"[^A-Za-z0-9_-]+", "_", label).strip("_")
    name = word if re.match("[A-Za-z]", word) else f"is_{word}".rstrip("_")
    content: dict[str, Any] = {
        "kind": f"{settings.kind}.trained",
        "path": str(settings.out),
        "label": label,
    }
    dumped: str = yaml.safe_dump(
        {name: content}, default_flow_style=None, sort_keys=False, width=10_000, allow_unicode=True
    )
    return dumped.strip()
