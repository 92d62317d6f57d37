"""What is to be tried: which run or model, on which prompts, with which columns of the data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.compose import parse_entries
from rlalign.checkpoints.folder import newest_sound
from rlalign.columns import check_columns
from rlalign.config import ConfigError
from rlalign.measure import source_of
from rlalign.nearby import run_hint
from rlalign.prompts import Row, is_utf8, read_rows
from rlalign.settings.sections import RunConfig
from rlalign.startup import say
from rlalign.trained import is_checkpoint

NO_RUN = "; a model of the hub needs --config FILE, which says what it is compared with"
FIRST = "Once upon a time"  # what the rewards are tried on while no prompt is known yet


def found(run_or_model: str, has_config: bool) -> str:
    """What holds the weights of a run, a checkpoint or a model; of an unfinished run its last.

    ConfigError where a run is named that is not there.
    """
    try:
        folder = Path(run_or_model).expanduser()
        exists = folder.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, NUL
        raise ConfigError(f"{run_or_model!r} is no path of a run: {error}") from error
    if exists and not folder.is_dir():
        raise ConfigError(f"{run_or_model} is a file; name a run's folder, such as runs/NAME")
    if not exists and not has_config:
        hint = run_hint(run_or_model) or NO_RUN
        raise ConfigError(f"{run_or_model}: there is no such run here{hint}")
    source = source_of(run_or_model)
    holds_a_model = any((Path(source) / name).is_file() for name in ("config.json",
                        "adapter_config.json")) or is_checkpoint(Path(source))  # fmt: skip
    if not exists or holds_a_model:
        return source
    newest = newest_sound(folder / "checkpoints") if (folder / "checkpoints").is_dir() else None
    if newest is None:
        raise ConfigError(
            f"{run_or_model} holds neither a model nor a checkpoint; is it the folder of a run "
            "that has saved something?"
        )
    say(f"{run_or_model} has no model/ yet: its checkpoint {newest.name} is taken")
    return str(newest)


def rows_of(
    prompts: Sequence[str], file: str | None, columns: dict[str, Any], config: RunConfig
) -> list[Row]:
    """A row of data for each prompt, `columns` standing in for what its own file leaves out."""
    column = config.prompts.column
    rows: list[Row] = [{column: prompt} for prompt in prompts]
    if file is not None:
        rows += read_prompts(file, column, config.prompts.split)
    present = set().union(*(row.keys() for row in rows))
    check_columns(columns, parse_entries(config.rewards), present - {column})
    for number, row in enumerate(rows, 1):
        if column not in row:
            raise ConfigError(
                f"row {number} of --prompts {file} has no column {column!r}, which the run's "
                f"prompts are in; its columns are: {', '.join(sorted(row)) or 'none'} "
                "(--prompts.column=NAME takes another)"
            )
    return [{**columns, **row} for row in rows]


def read_prompts(file: str, column: str, split: str) -> Sequence[Row]:
    """The rows of a file of prompts; a .txt file holds one a line."""
    if Path(file).suffix != ".txt":
        return read_rows(file, split, "--prompts")
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompts {file} is not UTF-8 text; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"--prompts {file} cannot be read: {reason}") from error
    return [{column: line} for line in text.split("\n") if line.strip()]


def for_trying(config: RunConfig, seed: int | None) -> RunConfig:
    """The settings under which a session needs no prompts but those that are tried."""
    given = config.model_dump()
    given["prompts"] |= {"eval_path": None, "eval_fraction": 0.0}
    given["eval"] |= {"every": 0}
    if config.sampling.engine == "vllm":  # as in evaluations: the decode loop draws
        given["sampling"] |= {"engine": "decode"}
    if seed is not None:
        given["train"] |= {"seed": seed}
    return type(config).model_validate(given)


def check_text(prompt: str) -> str:
    """A prompt from a command line or a terminal, which may hold bytes that are no text."""
    if not is_utf8(prompt):
        raise ConfigError(f"the prompt {prompt!r} is not UTF-8 text")
    return prompt
