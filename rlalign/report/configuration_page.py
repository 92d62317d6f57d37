"""`docs/configuration.md`, written from the schema: `rlalign config --markdown`."""

import json
from collections.abc import Iterator
from typing import Any

from rewards.entries import options_json_schema
from rlalign.settings.schema import Node, Setting, alternatives, properties, settings
from rlalign.settings.sections import RunConfig

INTRODUCTION = """\
# Configuration

This page is generated from the schema: `rlalign config --markdown > docs/configuration.md`.

A run is a YAML file and overrides. A file states what differs from the defaults below;
`experiments/quickstart.yaml` is one to copy. On the command line these mean the same:

    --kl.coef=0.2      --kl.coef 0.2      kl.coef=0.2

- A value is read as a Python literal first and as YAML second, so `1e-5`, `None`, `True`,
  `null`, `[a, b]` and `['a', 'b']` all work. Where a setting is text, it is taken as typed.
- `--prompts.chat` alone means true; only bools can stand alone. Every bool defaults to false.
- One string is enough where a list of strings is wanted: `--reward_files my.py`.
- `rewards` is a mapping by name: `--rewards.space.weight=2` changes one, `--rewards.space=null`
  removes it, `--rewards.new.kind=lexical.contains --rewards.new.words=rain` adds one.
- Nothing is interpolated: a `${` anywhere is refused.
- Paths are relative to the working directory.

`rlalign config` prints the resolved configuration, and `rlalign config --schema` its JSON Schema.
`rlalign config --explain kl.coef` says what a setting means, what it may be and where its value
comes from; a section (`kl`) or a reward (`rewards.space`) is explained whole. `rlalign config
--diff A B` shows what differs between two files or runs. `rlalign rewards list` has the kinds of
reward. Every run saves its resolved configuration, and `--config` takes a run's folder for it.
"""

REWARDS = """\
## rewards

`rewards.NAME` is an entry with a `kind`, the kind's own parameters (`rlalign rewards show KIND`)
and these. It adds `weight * clip(scale * value)` to the score, where under `threshold` the value is
1 or 0; a value of `null` adds nothing. The metric `reward/NAME` is the value itself.

- Any parameter of a kind may come from the data, a value for each prompt:
  `topic: {column: subject}`, or `--rewards.space.topic='{column: subject}'`. Every row's value is
  checked before training as one in this file would be.
- `combine.all` (the product) and `combine.min` (the smallest) make one value of named `parts`. A
  part is written as an entry without `weight` and `on_error`; where one gives `null`, so do they:
  `{kind: combine.min, parts: {rain: {kind: lexical.contains, words: rain}, brief: {…}}}`.
- A weight on a schedule is `{from: 0.0, to: 2.0, iterations: 20}`: `from` in the first iteration,
  `to` after 20 of them, linear between. The target is that of the final weight, and evaluations use
  it.

"""


def configuration_page(run_model: type[RunConfig]) -> str:
    """The page for a run model, a section for each group of settings."""
    root = run_model.model_json_schema()
    top = properties(root, root)
    parts = [INTRODUCTION]
    for name in sorted(top, key=lambda key: key == "rewards" or not properties(root, top[key])):
        node = top[name]
        if properties(root, node):
            parts.append(f"## {name}\n\n{_description(root, node)}{_table(root, node, name)}")
    options = options_json_schema()
    parts.append(REWARDS + _table(options, options, "rewards.NAME"))
    single = [s for s in settings(root) if "." not in s.path]
    parts.append("## Settings without a section\n\n" + "".join(_rows(single)))
    return "\n".join(parts)


def _description(root: Node, node: Node) -> str:
    texts = [leaf["description"] for leaf in alternatives(root, node) if "description" in leaf]
    return f"{texts[0]}\n\n" if texts else ""


def _table(root: Node, node: Node, name: str) -> str:
    return "".join(_rows(settings(root, node, f"{name}.")))


def _rows(shown: Any) -> Iterator[str]:
    yield "| setting | value | default | meaning |\n|---|---|---|---|\n"
    for setting in shown:
        yield _row(setting)


def _row(setting: Setting) -> str:
    cells = (
        f"`{setting.path}`",
        setting.kind,
        f"`{json.dumps(setting.default)}`",
        setting.description,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
