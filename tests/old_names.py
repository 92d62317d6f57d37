"""Tables of the pages on moving here: old names to settings of ours."""

import re

import rewards
from rlalign.methods import METHODS
from rlalign.settings.schema import settings

SECTIONS = set().union(*(method.run_model.model_fields for method in METHODS.values()))
# What a table may give in the place of a setting: sections and kinds of rewards.
OURS = SECTIONS | set(rewards.kinds())
for method in METHODS.values():
    OURS |= {setting.path for setting in settings(method.run_model.model_json_schema())}
NAME = re.compile(r"`([\w.]+)`")


def rows(text):
    """(first cell, second cell) of every row of a page's tables."""
    cells = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ")]
    return [(old.strip(), new.strip()) for old, new in cells]


def names(text):
    return set(NAME.findall(text))


def settings_named(text):
    """What looks like a setting of ours in the second cells: a section, a dot, a name."""
    found = {name for _, new in rows(text) for name in names(new)}
    return {name for name in found if name.partition(".")[0] in SECTIONS}
