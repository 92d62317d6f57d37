"""`rlalign doctor`: whether a run can start here, what it will take, and what to change."""

import os
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

import rlalign.ppo  # noqa: F401  all that a run imports, so that its memory can be measured
from rewards.compose import RewardSet, parse_entries
from rewards.contract import RewardConfigError
from rlalign.algorithms.ppo import PPO
from rlalign.checkpoints.folder import CheckpointError
from rlalign.config import ConfigError, load_config
from rlalign.doctor.demand import Demand, demand
from rlalign.doctor.estimate import Part, total
from rlalign.doctor.machine import Facts, Finding, look
from rlalign.doctor.probe_time import Seconds, evaluations, probe
from rlalign.exits import run_safely
from rlalign.generation import check_engine
from rlalign.ranks import allowed_cores
from rlalign.runs import check_run
from rlalign.session import check_samples
from rlalign.settings.method_sections import PPORun
from rlalign.startup import QUICKSTART, quiet_libraries, say
from rlalign.terminal import plain_text

MIB = 2**20
CROWDED = 0.5  # programs for each core that ran in the last minute


def main(argv: Sequence[str], is_probing: bool = True, processes: int = 1) -> int:
    """Print the report; 0 where the run can start, 2 wrong configuration, 4 too few resources."""
    codes = [0]
    quiet_libraries()
    failed = run_safely(lambda: codes.append(examine(argv, is_probing, processes)))
    return failed or codes[-1]


def examine(argv: Sequence[str], is_probing: bool, processes: int) -> int:
    console = make_console()
    try:
        config = read(argv, processes)
        wants = demand(config, processes)
    except (ConfigError, RewardConfigError, CheckpointError):
        facts, findings = look("runs", [])
        show_findings(console, findings)
        show_facts(console, "This machine", facts)
        raise
    facts, findings = look(config.run.dir, list(config.trackers))
    findings = [*wants.findings, *findings]
    show_findings(console, findings)
    show_facts(console, "This machine", facts)
    show_facts(console, "This run, in each process", wants.facts)
    show_memory(console, wants)
    code = exit_code(findings)
    if not is_probing:
        console.print("\nSeconds were not measured (--no-probe).", style="dim")
    elif code or wants.work is None:
        console.print("\nSeconds were not measured: see above what is missing.", style="dim")
    else:
        crowd(console)
        say("trying the model on some prompts, for about a minute")
        show_seconds(console, config, probe(config, processes))
    verdict = "This run can start." if code == 0 else "This run cannot start: see the problems."
    console.print(f"\n{verdict}", style="bold green" if code == 0 else "bold red")
    return code


def read(argv: Sequence[str], processes: int) -> PPORun:
    """The configuration, after the checks that a run makes before it loads anything."""
    config = load_config(PPORun, argv, default=QUICKSTART)
    PPO(config)
    check_samples(config, processes)
    check_run(config.run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_engine(config, device, processes)
    RewardSet(parse_entries(config.rewards)).close()
    return config


def crowd(console: Console) -> None:
    """Say where others use the processor: what is measured then holds while they do."""
    waiting = os.getloadavg()[0] / allowed_cores()
    if waiting > CROWDED:
        line = f"others keep {waiting:.0%} of the cores busy: on a quiet machine seconds are fewer"
        console.print(Text("note: ", style="bold yellow") + Text(line))


def exit_code(findings: Sequence[Finding]) -> int:
    codes = {finding.code for finding in findings}
    return 2 if 2 in codes else max(codes, default=0)


# -- printing --------------------------------------------------------------------------------------


def show_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Problems, then what is worth knowing, each with its fix."""
    for finding in sorted(findings, key=lambda finding: finding.code == 0):
        name, style = ("problem", "bold red") if finding.code else ("note", "bold yellow")
        line = Text(f"{name}: ", style=style) + plain_text(finding.says)
        console.print(line)
        if finding.fix:
            console.print(Text("    fix: ", style="bold") + plain_text(finding.fix))
    if not findings:
        console.print("No problems were found.", style="green")


def show_facts(console: Console, title: str, facts: Facts) -> None:
    if not facts:
        return
    table = make_table(title)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, plain_text(value))
    console.print(table)


def show_memory(console: Console, wants: Demand) -> None:
    """The peak by what it is made of: held throughout, and at its worst phase."""
    if wants.memory is None:
        return
    where = "RAM" if wants.device.type == "cpu" else "GPU memory (a formula, never measured)"
    table = make_table(f"Peak {where} of a process, MiB")
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold", style="dim")
    worst = wants.memory.worst
    add_parts(table, wants.memory.held)
    table.add_row(Text(f"and while it does: {worst}", style="italic"), "", "")
    add_parts(table, wants.memory.phases[worst])
    table.add_row("peak", mib(wants.memory.peak), others(wants), style="bold")
    console.print(table)
    if wants.host:
        table = make_table("RAM of a process beside it, MiB")
        add_parts(table, wants.host)
        table.add_row("peak", mib(total(wants.host)), "", style="bold")
        console.print(table)


def others(wants: Demand) -> str:
    """The peaks of the other phases."""
    assert wants.memory is not None
    held = total(wants.memory.held)
    return "; ".join(
        f"{phase}: {mib(held + total(parts))}"
        for phase, parts in wants.memory.phases.items()
        if phase != wants.memory.worst and parts
    )


def add_parts(table: Table, parts: Sequence[Part]) -> None:
    for part in parts:
        table.add_row(part.name, mib(part.bytes), plain_text(part.note))


def mib(count: int) -> str:
    return f"{count / MIB:,.0f}"


def show_seconds(console: Console, config: PPORun, seconds: Seconds) -> None:
    """An iteration by phase, and the run."""
    iterations, count = config.train.iterations, evaluations(config)
    table = make_table("Seconds, as measured here just now")
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold", style="dim")
    limit = config.sampling.max_new_tokens
    length = f"responses of {seconds.length:.1f} tokens, {limit} at most"
    how = (
        "the trial's were cut: the rest is taken to reach the limit"
        if seconds.was_cut
        else ("the trial's own; they change as the model learns")
    )
    by = "; by the decode loop: vLLM is not tried" if config.sampling.engine == "vllm" else ""
    table.add_row("generate", f"{seconds.generate:.1f}", f"{length}: {how}{by}")
    scored = f"rewards {seconds.rewards:.1f}, reference {seconds.reference:.1f}"
    table.add_row("score", f"{seconds.score:.1f}", scored)
    table.add_row("prepare", f"{seconds.prepare:.1f}", "log-probabilities and values before it")
    table.add_row("update", f"{seconds.update:.1f}", f"{config.steps_per_iteration} steps")
    table.add_row("an iteration", f"{seconds.iteration:.1f}", "", style="bold")
    table.add_row("an evaluation", f"{seconds.evaluation:.1f}", f"{config.eval.samples} responses")
    everything = seconds.run(iterations, count)
    made_of = f"start {seconds.start:.0f}, {iterations} iterations, {count} evaluations"
    table.add_row(
        "the run", f"{everything:,.0f}", f"{made_of}: {in_words(everything)}", style="bold"
    )
    console.print(table)


def in_words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def make_table(title: str) -> Table:
    return Table(
        title=f"\n{title}", title_justify="left", title_style="bold", box=None, show_header=False
    )


def make_console() -> Console:
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:  # a pipe has no width to fold lines to
        console.width = 200
    return console
