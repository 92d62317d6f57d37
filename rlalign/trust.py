"""What the configuration in a run's folder may do: it is data, until the user trusts the run."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlalign.config import ConfigError, from_mapping, read_file, to_flat
from rlalign.problems import dotted, shown
from rlalign.redact import HIDDEN
from rlalign.settings.sections import RunConfig

# By these a kind of reward says where texts are sent, and which secrets with them.
SENDS = ("url", "base_url")
SECRETS = ("headers", "api_key_env")
REWARDS = ("rewards", "reward_files")


def settings_of(run: str, file: Path, is_trusted: bool, command: str = "eval") -> dict[str, Any]:
    """The settings in a run's `config.yaml`; ConfigError where they would run code or send texts.

    A configuration that the user names by `--config` is theirs and needs no such look.
    """
    settings = read_file(file)
    found = powers(settings)
    if found and not is_trusted:
        raise ConfigError(
            f"{file} would {'; '.join(found)}; if you trust whoever made this run, add --trust, as "
            f"in `rlalign {command} {run} --trust`; else name settings of your own by --config FILE"
        )
    return settings


def powers(settings: Mapping[str, Any]) -> list[str]:
    """What settings do beyond computing, in words: code that they run, servers that they ask."""
    found = []
    if settings.get("reward_files"):
        found.append(f"run reward_files={shown(settings['reward_files'])}")
    for path, mapping in _mappings(settings):
        if mapping.get("trust_remote_code") not in (False, None):
            name = dotted([*path, "trust_remote_code"])
            found.append(f"run code that comes with a model ({name})")
    # Walked apart: an alias is met once, and the place of its anchor may be one that nobody reads.
    for path, mapping in _mappings(settings.get("rewards"), ("rewards",)):
        secrets = [f"{key}={shown(mapping[key])}" for key in SECRETS if mapping.get(key)]
        for key in SENDS:
            if key in mapping:
                to = f"{dotted([*path, key])}={shown(mapping[key])}"
                found.append(" with ".join([f"send texts to {to}", *secrets]))
    return found


def changed_settings(config: RunConfig, file: Path) -> list[str]:
    """Settings that differ from those in a run's `config.yaml`; none where there is no such file.

    A run's name and length may change when it goes on, so those do not count. The file is compared
    and not obeyed: no reward file that it names is run.
    """
    if not file.is_file():
        return []
    try:
        given = read_file(file)
        rest = {key: value for key, value in given.items() if key not in REWARDS}
        begun = from_mapping(type(config), rest, rewards_given=True)
        saved = {key: given[key] for key in REWARDS if key in given}
        before = to_flat(begun.model_copy(update=saved))
    except ValueError:
        before = {}
    now = to_flat(config)
    return sorted(
        key
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key)
        and not key.startswith(("run.", "train.iterations"))
        and HIDDEN not in str(before.get(key))
    )


def check_whole(config: RunConfig, file: Path) -> None:
    """ConfigError where a setting is a secret that the run kept out of its `config.yaml`."""
    for key, value in to_flat(config).items():
        if HIDDEN in str(value):
            raise ConfigError(
                f"{key}={value} in {file}: a secret is not kept; give it anew, --{key}=VALUE, or "
                "name settings of your own by --config FILE"
            )


def _mappings(
    value: Any, path: tuple[str | int, ...] = (), seen: set[int] | None = None
) -> Iterator[tuple[tuple[str | int, ...], Mapping[str, Any]]]:
    """Every mapping in a value, with the way to it; one that several aliases name comes once."""
    seen = set() if seen is None else seen
    if not isinstance(value, Mapping | list) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        yield path, value
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, item in items:
        yield from _mappings(item, (*path, key if isinstance(key, int) else str(key)), seen)
