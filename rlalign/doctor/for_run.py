"""What `rlalign doctor` says of one configuration: what it lacks, its memory, its seconds."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

import rlalign.ppo  # noqa: F401  all that a run imports, so that its memory can be measured
from rewards.compose import RewardSet, parse_entries
from rlalign.algorithms.ppo import PPO
from rlalign.config import load_config
from rlalign.doctor.checks import Finding, exit_code
from rlalign.doctor.demand import Demand, demand
from rlalign.doctor.estimate import Part, total
from rlalign.doctor.probe_time import Seconds, evaluations, probe
from rlalign.doctor.showing import make_table, show_facts, show_findings
from rlalign.exits import run_safely
from rlalign.generation import check_engine
from rlalign.runs import check_run
from rlalign.session import check_samples
from rlalign.settings.method_sections import AnyRun, PPORun
from rlalign.startup import QUICKSTART, quiet_libraries, say
from rlalign.terminal import plain_text

MIB = 2**20


def report(
    console: Console,
    argv: Sequence[str],
    is_probing: bool,
    processes: int,
    of_machine: Sequence[Finding],
) -> dict[str, Any]:
    """Print what the run takes, and return it, with the exit code that it would end with."""
    content: dict[str, Any] = {"exit_code": 0}
    quiet_libraries()
    failed = run_safely(lambda: examine(console, argv, is_probing, processes, of_machine, content))
    content["exit_code"] = failed or content["exit_code"]
    return content


def examine(
    console: Console,
    argv: Sequence[str],
    is_probing: bool,
    processes: int,
    of_machine: Sequence[Finding],
    content: dict[str, Any],
) -> None:
    """As `report`; what is known when it fails stands in `content`."""
    config = read(argv, processes)
    wants = demand(config, processes)
    code = exit_code([*of_machine, *wants.findings])
    content |= as_content(wants) | {"exit_code": code}
    if wants.findings:
        console.print()
    show_findings(console, wants.findings)
    show_facts(console, "This run, in each process", wants.facts)
    show_memory(console, wants)
    if not is_probing:
        console.print("\nSeconds were not measured (--no-probe).", style="dim")
    elif code or wants.work is None:
        console.print("\nSeconds were not measured: see above what is missing.", style="dim")
    else:
        say("trying the model on some prompts, for about a minute")
        seconds = probe(config, processes)
        content["seconds"] = asdict(seconds) | {
            "iteration": seconds.iteration,
            "run": seconds.run(config.train.iterations, evaluations(config)),
        }
        show_seconds(console, config, seconds)


def as_content(wants: Demand) -> dict[str, Any]:
    """The demand as plain values."""
    memory = None
    if wants.memory is not None:
        memory = asdict(wants.memory) | {"worst": wants.memory.worst, "peak": wants.memory.peak}
    return {
        "findings": [asdict(finding) for finding in wants.findings],
        "facts": dict(wants.facts),
        "device": wants.device.type,
        "memory": memory,
        "host": [asdict(part) for part in wants.host],
    }


def read(argv: Sequence[str], processes: int) -> PPORun:
    """The configuration, after the checks that a run makes before it loads anything."""
    config = load_config(AnyRun, argv, default=QUICKSTART)
    PPO(config)
    check_samples(config, processes)
    check_run(config.run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_engine(config, device, processes)
    RewardSet(parse_entries(config.rewards)).close()
    return config


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
