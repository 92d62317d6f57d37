"""`rlalign init`: a small folder in which everything works already."""

import shlex
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from rlalign.new_folder import new_folder, whole_folder
from rlalign.report.visible import escape_markdown
from rlalign.terminal import printable

# What is written, by its name among the templates. Those that are Python end in .in, so that
# nothing takes them for modules of this package.
TEMPLATES: Mapping[str, str] = {
    "my_rewards.py": "my_rewards.py.in",
    "test_my_rewards.py": "test_my_rewards.py.in",
    "prompts.jsonl": "prompts.jsonl",
    "config.yaml": "config.yaml",
    "sweep.yaml": "sweep.yaml",
    "README.md": "README.md",
    ".gitignore": "gitignore",
}
ABOUT: Mapping[str, str] = {
    "my_rewards.py": "the reward: what a response is worth",
    "test_my_rewards.py": "its test",
    "prompts.jsonl": "what the model is asked to continue",
    "config.yaml": "the model, the rewards' weights, how long",
    "sweep.yaml": "the same for several settings at once",
    "README.md": "what each command does",
}
NEXT = (
    "rlalign rewards test my_rewards.py",
    "rlalign doctor --config config.yaml",
    "rlalign ppo --config config.yaml --run.name=first",
    "rlalign sample runs/first --trust",
)


def init(name: str) -> Path:
    """Write the project into a folder that is not there yet, or empty; ConfigError otherwise."""
    path = new_folder(name)
    title = path.absolute().name
    with whole_folder(path) as folder:
        for file, template in TEMPLATES.items():
            text = template_text(template).replace("{project}", escape_markdown(title))
            (folder / file).write_text(text, encoding="utf-8")
    return path


def template_text(name: str) -> str:
    return (files("rlalign.project") / "template" / name).read_text(encoding="utf-8")


def told(path: Path) -> str:
    """What is there now, and what to type."""
    files = [f"  {name:<20} {about}" for name, about in ABOUT.items()]
    into = [] if path.absolute() == Path.cwd() else [f"cd {shlex.quote(str(path))}"]
    lines = [f"  {line}" for line in (*into, *NEXT)]
    return printable("\n".join([f"made {path}", *files, "", "next", *lines]))
