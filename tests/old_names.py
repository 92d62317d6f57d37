"""Tables of the pages on moving here: old names to settings of ours."""

import re

import rewards
from rlalign.methods import AnyRun
from rlalign.settings.schema import settings

# Names of ours that a table may give beside settings: sections and kinds of rewards.
OURS = {setting.path for setting in settings(AnyRun.model_json_schema())} | set(rewards.kinds())
OURS |= {*AnyRun.model_fields} | {"model.lora.r", "model.lora.alpha", "model.lora.target_modules"}
NAME = re.compile(r"`([\w.]+)`")


def rows(text):
    """(first cell, second cell) of every row of a page's tables."""
    cells = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ")]
    return [(old.strip(), new.strip()) for old, new in cells]


def names(text):
    return set(NAME.findall(text))


def settings_named(text):
    """What looks like a setting of ours in the second cells: a section, a dot, a name."""
    sections = {*AnyRun.model_fields}
    found = {name for _, new in rows(text) for name in names(new)}
    return {name for name in found if name.partition(".")[0] in sections}
