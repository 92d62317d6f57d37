"""What `rlalign eval` prints: the content of eval.json as a table of 80 columns."""

import math
from collections.abc import Mapping
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlalign.report.visible import visible

DASH = "–"  # noqa: RUF001 - a dash is meant
DIVERGENCES = {
    "forward_kl": "KL(P_T‖π), nats",
    "reverse_kl": "KL(π‖P_T), nats",
    "js": "Jensen-Shannon, nats",
    "tv": "total variation",
}
TO_REFERENCE = {
    "kl_policy_reference": "KL(π‖a), nats",
    "kl_reference_policy": "KL(a‖π), nats",
}
TEXTS = {
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "self_bleu_5_words": "self-BLEU-5, words",
    "self_bleu_5_characters": "self-BLEU-5, characters",
    "perplexity_under_reference": "perplexity under a",
    "length": "length, tokens",
    "unfinished": "share unfinished",
}
Content = Mapping[str, Any]


def yardstick_table(content: Content) -> str:
    """Features, divergences and texts; a is the reference, π the policy, P_T the target."""
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    table.add_column("", no_wrap=True, max_width=28)
    for title in ("reference a", "policy π", "target P_T"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in feature_rows(content):
        table.add_row(*row)
    table.add_section()
    for name, title in DIVERGENCES.items():
        both = content["to_target"][name]
        table.add_row(title, *(with_error(both[of]) for of in ("reference", "policy")), "")
    for name, title in TO_REFERENCE.items():
        table.add_row(title, "", with_error(content["to_reference"][name]), "")
    table.add_section()
    for name, title in TEXTS.items():
        texts = content["texts"]
        table.add_row(title, *(number(texts[of][name]) for of in ("reference", "policy")), "")
    stream = StringIO()
    console = Console(file=stream, width=80, highlight=False, markup=False, emoji=False)
    console.print(Text(content["target"]["formula"].split("\n")[0], style="bold"))
    console.print(table)
    for line in remarks(content):
        console.print(Text(line))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def feature_rows(content: Content) -> list[list[str]]:
    """A row for each reward, with what was wished of it."""
    rows = []
    for name, feature in content["features"].items():
        title = f"{visible(name)} ({asked(feature)})"
        rows.append([title, *(with_error(feature[of]) for of in ("reference", "policy", "target"))])
    return rows


def asked(feature: Content) -> str:
    """weight, judge, metric, hard, or the wish of a moment."""
    if feature["wish"] is None:
        return str(feature["role"])
    low, high = feature["wish"]
    return f"{low:g} asked" if low == high else f"{low:g} to {high:g} asked"


def remarks(content: Content) -> list[str]:
    """What the numbers are of, how far they are to be trusted, and what was refused, in words."""
    support, log_z, n = content["support"], content["log_z"], content["samples"]
    lines = [
        "",
        f"± is half of a 95% interval, of the responses: {n} of the policy and as many of its "
        f"reference to {content['prompts']} "
        + ("held-out prompt(s)" if content["held_out"] else "prompt(s) of the training"),
    ]
    lower, upper = log_z["lower"], log_z["upper"]
    if upper["value"] is not None:
        lines.append(
            f"log Z is between {with_error(lower)} and {with_error(upper)} "
            f"({log_z['exact_samples']} exact samples of P_T by rejection)"
        )
    elif lower["value"] is not None:
        lines.append(f"log Z is at least {with_error(lower)}; {upper['note']}")
    elif note := lower.get("note"):
        lines.append(f"no bound on log Z: {note}")
    if support["refusal"]:
        lines.append(f"no distance to P_T: {support['refusal']}")
    else:
        k = support["pareto_k"]
        tail = f"Pareto k {k or 0.0:.2f} of at most {support['threshold']:.2f}"
        if k is None or support["is_whole"]:
            tail = "no tail: none can weigh much more than those seen"
        lines.append(f"the samples are worth {support['ess']:.0f} of P_T ({tail})")
        if note := content["to_target"]["reverse_kl"]["policy"].get("note"):
            lines.append(f"KL(π‖P_T) is {note}")
    lines += [f"λ: {note}" for note in content["target"]["notes"]]
    lines.append(f"diversity is of {content['texts']['policy']['texts']} texts each")
    return [visible(line) for line in lines]


def with_error(estimate: Content, shown: int = 2) -> str:
    """0.481 ± 0.031, half of the 95% interval in so many digits; a dash where there is none."""
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    if value is None:
        return DASH
    if low is None:
        return number(value)
    half = (high - low) / 2
    digits = places(half, shown)
    # Plus 0.0, because a rounded -1e-17 is -0.0.
    return f"{round(value, digits) + 0.0:.{digits}f} ± {half:.{digits}f}"


def places(error: float, shown: int) -> int:
    """Decimals that show so many digits of an error."""
    if error <= 0 or not math.isfinite(error):
        return 4
    return min(max(shown - 1 - math.floor(math.log10(error)), 0), 5)


def number(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
