"""How `rlalign doctor` prints: tables that fold at 80 columns, findings with their fixes."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlalign.doctor.checks import Check, Finding
from rlalign.terminal import plain_text

STYLES = {"ok": "green", "note": "bold yellow", "problem": "bold red"}


def show_checks(console: Console, title: str, checks: Sequence[Check]) -> None:
    """A row for each thing that was looked at; below it what was found, and what to do."""
    table = make_table(title)
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        cell = plain_text(check.says)
        for finding in check.findings:
            cell.append("\n")
            cell.append(plain_text(finding.says).plain, style=STYLES[_state(finding)])
            if finding.fix:
                cell.append(f"\n→ {plain_text(finding.fix).plain}", style="bold")
        table.add_row(Text(check.state, style=STYLES[check.state]), check.name, cell)
    console.print(table)


def _state(finding: Finding) -> str:
    return "problem" if finding.code else "note"


def count(findings: Sequence[Finding]) -> str:
    """`1 problem, 2 notes`."""
    problems = sum(bool(finding.code) for finding in findings)
    parts = [(problems, "problem"), (len(findings) - problems, "note")]
    said = [f"{n} {word}{'s' if n > 1 else ''}" for n, word in parts if n]
    return ", ".join(said) or "nothing amiss"


def show_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Problems, then what is worth knowing, each with its fix."""
    for finding in sorted(findings, key=lambda finding: finding.code == 0):
        name, style = ("problem", "bold red") if finding.code else ("note", "bold yellow")
        line = Text(f"{name}: ", style=style) + plain_text(finding.says)
        console.print(line)
        if finding.fix:
            console.print(Text("    fix: ", style="bold") + plain_text(finding.fix))


def show_facts(console: Console, title: str, facts: Mapping[str, str]) -> None:
    if not facts:
        return
    table = make_table(title)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, plain_text(value))
    console.print(table)


def make_table(title: str) -> Table:
    return Table(
        title=f"\n{title}", title_justify="left", title_style="bold", box=None, show_header=False
    )


def make_console() -> Console:
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:  # a pipe has no width to fold lines to
        console.width = 200
    return console
