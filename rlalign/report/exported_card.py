"""A run's model card for a folder that was exported from it."""

import yaml

from rlalign.report.card import ADAPTER, LOADING, LORA, how_to_load
from rlalign.settings.sections import RunConfig

FENCE = "---\n"
MERGED = "A merged LoRA fine-tuning of "


def exported_card(card: str, config: RunConfig, *, is_adapter: bool) -> str:
    """The card of the run's `model/`, saying what the export is and how that is loaded.

    What was measured stays as it is: a merged adapter computes the same.
    """
    body = card.partition(f"\n{LOADING}\n")[0].rstrip()
    if not is_adapter:
        body = without_adapter(body)
    loading = how_to_load(config, config.model.name, is_adapter, has_value_head=False)
    return f"{body}\n\n{loading}\n"


def without_adapter(card: str) -> str:
    """The head of an adapter's card as that of a whole model; other cards stay as they are."""
    if not card.startswith(FENCE):
        return card
    head, _, body = card.removeprefix(FENCE).partition(f"\n{FENCE}")
    fields = yaml.safe_load(head)
    if not isinstance(fields, dict) or fields.get("library_name") != "peft":
        return card
    fields["library_name"] = "transformers"
    if "base_model_relation" in fields:
        fields["base_model_relation"] = "finetune"
    for words in (LORA, ADAPTER):
        body = body.replace(f"\n\n{words}", f"\n\n{MERGED}", 1)
    shown = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    return f"{FENCE}{shown}{FENCE}{body}"
