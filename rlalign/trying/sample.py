"""`rlalign sample`: what a trained model writes, beside its reference, with the scores."""

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rlalign.columns import parsed_columns
from rlalign.config import ConfigError
from rlalign.exits import run_safely
from rlalign.measure import configuration
from rlalign.report.visible import visible
from rlalign.session import Session
from rlalign.startup import quiet_libraries
from rlalign.trained import load_trained, settings_for
from rlalign.trying import shown
from rlalign.trying.asked import FIRST, check_text, for_trying, found, rows_of
from rlalign.trying.drawing import Pair, Trial
from rlalign.trying.talking import talk


@dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    run: str
    prompts: Sequence[str] = ()
    file: str | None = None
    samples: int = 1
    seed: int | None = None
    columns: str = "{}"
    as_json: bool = False
    interactive: bool = False
    trust: bool = False
    settings: Sequence[str] = field(default_factory=tuple)  # --section.key=value

    @property
    def talks(self) -> bool:
        return self.interactive or not (self.prompts or self.file)


def main(asked: Asked) -> int:
    """Sample as asked; the exit code of `rlalign.exits`."""
    quiet_libraries()
    logging.getLogger("rlalign").setLevel(logging.WARNING)
    try:
        code = run_safely(lambda: sample(asked))
        sys.stdout.flush()
    except BrokenPipeError:  # its reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def sample(asked: Asked) -> None:
    """Draw and print, or talk with whoever types prompts."""
    check(asked)
    columns = parsed_columns(asked.columns)
    has_config = any(a.lstrip("-").partition("=")[0] == "config" for a in asked.settings)
    source = found(asked.run, has_config)
    folder = Path(asked.run).expanduser()
    config = for_trying(configuration(folder, asked.settings, asked.trust, "sample"), asked.seed)
    prompts = [check_text(prompt) for prompt in asked.prompts]
    rows = rows_of([FIRST] if asked.talks else prompts, asked.file, columns, config)
    of = f"--prompts {asked.file}" if asked.file is not None and not prompts else "--prompt"
    with Session(settings_for(source, config), prompts=rows, source=of) as session:
        load_trained(session, source, asked.trust)
        trial, console = Trial(session, folder), shown.console()
        if asked.talks:
            about = header(trial, asked.run, shown.has_colour(console))
            talk(trial, console, about, asked.samples, columns)
            return
        pairs = trial.pairs(rows, asked.samples)
        if asked.as_json:
            for each in pairs:
                print(shown.as_lines(each), flush=True)
            return
        shown.put(console, header(trial, asked.run, shown.has_colour(console)))
        show_all(console, pairs, asked.samples)


def check(asked: Asked) -> None:
    """Refuse, before anything is loaded, what cannot be meant."""
    given = [name for name, value in (("--prompt", asked.prompts), ("--prompts", asked.file))
             if value]  # fmt: skip
    if asked.interactive and given:
        raise ConfigError(f"--interactive and {given[0]}: prompts are typed; give one of the two")
    if asked.interactive and asked.as_json:
        raise ConfigError("--interactive and --json: one is for people, the other for scripts")
    if asked.talks and not asked.interactive and (asked.as_json or not sys.stdin.isatty()):
        raise ConfigError(
            "no prompt is given; say --prompt TEXT, --prompts FILE, or --interactive to type them"
        )


def header(trial: Trial, run: str, coloured: bool) -> Text:
    """Who is compared, and how both sample."""
    config = trial.session.config
    sampling = config.sampling
    weights = trial.target.weights(trial.beta)
    terms = []
    for entry in trial.session.reward_set.entries:
        weight = weights.get(entry.name, entry.weight_at(None))
        if weight:
            terms.append(visible(entry.name) if weight == 1 else
                         f"{weight:.3g}·{visible(entry.name)}")  # fmt: skip
    line = (
        f"{visible(run)} beside {visible(config.model.name)}, temperature "
        f"{sampling.temperature:g}, at most {sampling.max_new_tokens} tokens, seed "
        f"{config.train.seed}"
    )
    if terms:
        line += "\nscore = " + " + ".join(terms).replace("+ -", "- ")
    about = Text(line, style="dim")
    if terms and coloured:
        about.append("   (").append("green", style="not dim green").append(" earns, ")
        about.append("red", style="not dim red").append(" costs)")
    return about


def show_all(console: Console, pairs: Iterable[Pair], samples: int) -> None:
    """Each pair as it comes, and the means of all where there are several."""
    seen: list[Pair] = []
    for each in pairs:
        what = shown.pair(each, console, samples=samples, with_prompt=each.number == 0)
        shown.put(console, what)
        seen.append(each)
    if len(seen) > 1:
        shown.put(console, Text())
        shown.put(console, shown.means(seen))
