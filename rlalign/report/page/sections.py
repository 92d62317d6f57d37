"""The sections of a report, as HTML: everything that comes from a run goes through `safe`."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rlalign.report.changes import Change
from rlalign.report.markup import lines_of, paragraphs, plain, safe
from rlalign.report.page import tables
from rlalign.report.page.asked import formula_of, in_words, parts
from rlalign.report.page.record import EVAL, RunRecord
from rlalign.report.yardstick_table import DASH

Found = Sequence[Sequence[Change]]


def opening(records: Sequence[RunRecord], found: Found) -> str:
    """What stands above everything: the outcome in a few numbers, and what could not be read."""
    problems = [f"{r.label}: {line}" for r in records for line in r.problems]
    notices = "".join(f'<p class="warn">{safe(line)}</p>' for line in problems)
    if len(records) > 1:
        return notices + tables.of_runs(records, found)
    (record,), (of_run,) = records, found
    return notices + status_line(record) + tiles(record, of_run)


def status_line(record: RunRecord) -> str:
    about = record.about
    told = [str(about.get("status") or "unknown")]
    if about.get("method"):
        told.append(str(about["method"]).upper())
    told.append(str(record.setting("model.name", "a model given from Python")))
    if isinstance(about.get("started_at"), str):
        told.append(f"started {about['started_at'].replace('T', ' ').replace('+00:00', ' UTC')}")
    message = about.get("message")
    said = f'<p class="warn">{safe(message)}</p>' if message else ""
    return f'<p class="soft">{" · ".join(map(safe, told))}</p>{said}'


def tiles(record: RunRecord, of_run: Sequence[Change]) -> str:
    """Score, KL, diversity and time in large."""
    shown: list[tuple[str, str, str]] = []
    by_name = {each.name: each for each in of_run if not each.is_reward}
    titles = {"score": "Score", "KL, nats": "KL to the reference", "distinct-2": "Distinct-2"}
    for name, title in titles.items():
        each = by_name.get(name)
        if each is None or each.after is None or each.before is None:
            continue
        value = f"{each.after.value:.2f}"
        since = "nats" if name.startswith("KL") else f"from {each.before.value:.2f}"
        ends = each.after
        about = f"95%: {ends.low:.2f} … {ends.high:.2f}" if ends.high > ends.low else ""
        shown.append((title, value, ", ".join(filter(None, (since, about)))))
    iterations = [row["iteration"] for row in record.metrics if "score" in row]
    samples = max((row.get("samples", 0) for row in record.metrics), default=0)
    if iterations:
        about = f"{max(iterations):g} iterations, {samples:,.0f} responses"
        shown.append(("Training", tables.time_of(record), about))
    body = "".join(
        f'<div class="tile"><span>{safe(a)}</span><b>{safe(b)}</b><small>{safe(c)}</small></div>'
        for a, b, c in shown
    )
    return f'<div class="tiles">{body}</div>'


def asked(records: Sequence[RunRecord]) -> str:
    """The target in words and as a formula; of several runs each different one."""
    seen: dict[str, list[RunRecord]] = {}
    for record in records:
        seen.setdefault(asked_of(record), []).append(record)
    if len(seen) == 1:
        return next(iter(seen))
    # Each alone is long, so they open on demand; the first stands open as the pattern.
    return "".join(
        f"<details{' open' * (not i)}><summary>{safe(', '.join(r.label for r in of))}</summary>"
        f"{body}</details>"
        for i, (body, of) in enumerate(seen.items())
    )


def asked_of(record: RunRecord) -> str:
    formula, notes = formula_of(record)
    rows = "".join(
        f'<tr><th scope="row">{safe(p.name)}</th><td><code>{safe(p.kind)}</code>'
        f"<small>{safe(p.settings)}</small></td>"
        f'<td data-name="weight">{safe(p.weight)}</td>{plain(p.words)}</tr>'
        for p in parts(record)
    )
    titles = ("reward", "what it measures", "weight", "what the target does")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    shown = ""
    if formula:
        shown = f'<p class="formula">{with_subscripts(lines_of(formula))}</p>' + paragraphs([
            " · ".join(unbroken(each) for each in ("x is the prompt, y the response", *notes))
        ])  # fmt: skip
    return (
        f"<p>{safe(in_words(record), 2000)}</p>"
        f'<div class="wide"><table class="asked"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{shown}"
    )


def unbroken(note: str) -> str:
    """A short note whose words stay on one line."""
    return note if len(note) > 60 else note.replace(" ", "\u00a0")


def with_subscripts(formula: str) -> str:
    """`P_T` and `λ_name` as mathematics sets them; the formula is escaped already."""
    return re.sub(r"\b(P|λ)_([\w-]+)", r"\1<sub>\2</sub>", formula)


def outcome(records: Sequence[RunRecord], found: Found) -> str:
    """Before and after, and what the numbers are of."""
    if not any(found):
        return paragraphs([
            "There is nothing to compare yet: neither two evaluations nor two iterations."
        ])  # fmt: skip
    told: dict[str, list[str]] = {}
    for record in records:
        if record.ends:
            told.setdefault(of_what(record), []).append(record.label)
    said = [f"{', '.join(of)}: {line}" for line, of in told.items()]
    said = [*told] if len(told) == 1 else said
    said.append(
        "In small: 95% bootstrap intervals, which draw whole prompts; the change is over pairs of "
        "responses where both had the same prompts. A bold change is one whose interval leaves out "
        "0. In the pictures grey is before, colour after."
    )
    shown = tables.came_out(records, found) + paragraphs(said)
    if distances := tables.measured(records):
        shown += "<h3>As rlalign eval measured it</h3>" + distances + paragraphs([
            "Of eval.json, like the target's means: π is the policy, a its reference, P_T the "
            "target, ± half of a 95% interval. docs/eval.md explains each."
        ])  # fmt: skip
    return shown


def of_what(record: RunRecord) -> str:
    assert record.ends is not None
    (first, split), (last, _) = record.ends
    before, after = len(record.before), len(record.after)
    if record.is_evaluated:
        return (
            f"Before is the reference, after the policy at iteration {last}: {after} responses of "
            "each to the prompts of the evaluation."
        )
    what = "evaluation" if split == EVAL else "iteration"
    return (
        f"There was no evaluation of the reference, so before is the {what} at {first} "
        f"({before} responses) and after the one at {last} ({after})."
    )


def warnings(records: Sequence[RunRecord]) -> str:
    """What the audit warned of, run by run."""
    items = []
    for record in records:
        given = record.about.get("warnings")
        for each in given if isinstance(given, list) else ():
            if isinstance(each, Mapping):
                name = f"{record.label}: " if len(records) > 1 else ""
                items.append(f"<li><b>{safe(name)}{safe(each.get('name'))}</b> {told(each)}</li>")
    if items:
        return f'<ul class="warnings">{"".join(items)}</ul>' + paragraphs([
            "Signs that a reward was hacked; docs/reward-hacking.md explains each."
        ])  # fmt: skip
    return paragraphs([
        "The audit warned of nothing. That proves nothing: read the samples below."
    ])  # fmt: skip


def told(warning: Mapping[str, Any]) -> str:
    began, ended = warning.get("began"), warning.get("ended")
    until = "" if ended is None else f" until {ended}"
    return f'<span class="soft">from iteration {safe(began)}{safe(until)}</span>: ' + safe(
        warning.get("text"), 2000
    )


def again(records: Sequence[RunRecord]) -> str:
    """Command, versions and configuration of each run."""
    parts = [again_of(record) for record in records]
    if len(records) == 1:
        return parts[0]
    named = zip(records, parts, strict=True)
    return tables.differing(records) + "".join(
        f"<details><summary>{safe(record.label)}</summary>{part}</details>"
        for record, part in named
    )


def again_of(record: RunRecord) -> str:
    about = record.about
    command = about.get("command")
    line = shlex.join(map(str, command)) if isinstance(command, list) else ""
    rows = {
        "versions": joined(about.get("versions")),
        "commit": joined(about.get("git")),
        "seeds": joined(about.get("seeds")),
        "processes": str(about.get("world_size") or DASH),
        "reward files": joined(about.get("reward_files")),
        "plug-ins": joined(about.get("plugins")),
    }
    return (
        f"{code('It was started as', line)}{same_again(record)}"
        f"{tables.pairs({k: v for k, v in rows.items() if v})}"
        f"<details><summary>config.yaml</summary><pre>{lines_of(record.config_text)}</pre></details>"
    )


def same_again(record: RunRecord) -> str:
    """The command that trains anew by config.yaml, if that holds all that the run was made of."""
    if not record.setting("model.name") or not all(record.rewards.values()):
        return paragraphs([
            "A model or rewards came from Python, so config.yaml alone does not run it again: "
            "start that script."
        ])  # fmt: skip
    config = shlex.quote(str(record.folder / "config.yaml"))
    settings = f"--config {config} --run.name=again --run.resume=never"
    world = record.about.get("world_size")
    if isinstance(world, int) and world > 1:  # how the launcher was told is not known
        return code(f"The same settings again, after the launcher, for {world} processes", settings)
    return code(
        "The same settings again", f"rlalign {record.about.get('method') or 'ppo'} {settings}"
    )


def code(title: str, line: str) -> str:
    """A command that can be copied, where there is one."""
    if not line:
        return ""
    return (
        f'<p class="label">{safe(title)}</p><div class="code"><pre>{safe(line, 4000)}</pre>'
        '<button type="button" class="copy" hidden>Copy</button></div>'
    )


def joined(value: object) -> str:
    """A mapping of run.json in one line; nothing where it is none, or empty."""
    if not isinstance(value, Mapping):
        return ""
    return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
