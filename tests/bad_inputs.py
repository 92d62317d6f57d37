"""The cases of tests/bad_inputs.yaml: how one is run, and docs/bad-input.md, which shows them all.

After a change: python tests/bad_inputs.py > docs/bad-input.md
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SOURCE = Path(__file__).with_suffix(".yaml")
REPEATED = re.compile(r"«(.+?) x (\d+)»", re.S)


def change(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of policy.safetensors is flipped": lambda step: change(step / "policy.safetensors"),
    "policy.safetensors is cut to 1,000 bytes": lambda step: os.truncate(
        step / "policy.safetensors", 1000
    ),
    "optimizer.safetensors is missing": lambda step: (step / "optimizer.safetensors").unlink(),
    "manifest.json is changed": lambda step: change(step / "manifest.json"),
}


@dataclass(frozen=True)
class Case:
    message: str  # without `rlalign: `; DIRECTORY stands for the working directory
    code: int = 2
    given: Sequence[str] = ()  # arguments
    command: str = "ppo --config=run.yaml"
    files: dict[str, str] = field(default_factory=dict)
    latin1: bool = False  # files are written in latin-1, so that they can be any bytes
    damage: str | None = None  # one of DAMAGES, to the checkpoint of the finished run

    @property
    def arguments(self) -> list[str]:
        return [*self.command.split(), *map(expanded, self.given)]

    def prepare(self, folder: Path) -> None:
        """Write what the case needs into the folder of the finished run."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(expanded(content).encode("latin-1" if self.latin1 else "utf-8"))
        if self.damage is not None:
            DAMAGES[self.damage](folder / "runs/done/checkpoints/step-000001")


def expanded(text: str) -> str:
    """«[ x 3» as [[[."""
    return REPEATED.sub(lambda match: match[1] * int(match[2]), text)


def load() -> tuple[str, dict[str, str], dict[str, list[Case]]]:
    """The page's opening, the files that every case finds, and the cases by their heading."""
    content: dict[str, Any] = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))
    cases = {title: [Case(**case) for case in each] for title, each in content["cases"].items()}
    return content["opening"], content["files"], cases


def page() -> str:
    opening, files, cases = load()
    parts = [opening.replace("RUN.YAML\n", files["run.yaml"])]
    for title, rows in cases.items():
        body = "\n".join(_row(case) for case in rows)
        parts.append(f"## {title}\n\n| given | said | code |\n| --- | --- | --- |\n{body}\n")
    return "\n".join(parts)


def _row(case: Case) -> str:
    given = [f"{_code(name)}: {_code(content)}" for name, content in case.files.items()]
    if case.damage is not None:
        given.append(f"in the checkpoint {case.damage}")
    command = [] if case.command == "ppo --config=run.yaml" else [f"rlalign {case.command}"]
    typed = " ".join([*command, *case.given])
    if typed:
        given.append(_code(typed))
    said = "<br>".join(map(_code, case.message.splitlines()))
    return f"| {'<br>'.join(given)} | {said} | {case.code} |"


def _code(text: str) -> str:
    """Text as Markdown's code, within the cell of a table."""
    shown = text.replace("\n", "⏎")
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown).replace("|", "\\|")
    fence = "``" if "`" in shown else "`"
    padded = f" {shown} " if fence == "``" or not shown.strip() else shown
    return f"{fence}{padded}{fence}"


if __name__ == "__main__":
    print(page(), end="")
