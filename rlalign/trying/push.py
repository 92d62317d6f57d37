"""`rlalign push`: an exported model to the hub, once its owner has seen what goes there."""

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of whichever client it uses
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from rewards import embedded
from rewards.classifiers import first_line
from rlalign.config import ConfigError
from rlalign.exits import run_safely
from rlalign.problems import HubError
from rlalign.redact import HIDDEN, redact_text
from rlalign.startup import quiet_libraries
from rlalign.terminal import printable
from rlalign.trying.export import Wish, export

# What is read by people, or says where a model came from; a tokenizer's vocabulary is neither.
READ = ("README.md", "config.json", "adapter_config.json", "generation_config.json",
        "tokenizer_config.json", "chat_template.jinja")  # fmt: skip
# Files of an earlier model, which the new one may not have.
OF_A_MODEL = ["*.safetensors", "*.safetensors.index.json", "adapter_config.json", "config.json"]
HOME = re.compile(r"(?:/home/|/root/|/Users/|[A-Za-z]:\\+Users\\+)[^\s\"'`|]*")
ANSWERS = ("y", "yes")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Upload:
    """Where it goes, and whether it is asked first."""

    repo: str
    private: bool = False
    yes: bool = False


def main(wish: Wish, upload: Upload, ask: Callable[[str], str] = input) -> int:
    """Export, show, ask, upload; the exit code of `rlalign.exits`."""
    quiet_libraries()
    return run_safely(lambda: push(wish, upload, ask))


def push(wish: Wish, upload: Upload, ask: Callable[[str], str]) -> None:
    """ConfigError where something must not or cannot be uploaded, HubError where the hub fails."""
    check(upload)
    with tempfile.TemporaryDirectory(prefix="rlalign-push-") as place:
        folder = export(wish, Path(place) / "model").folder
        if wish.as_adapter:
            check_base_is_public(folder)
        check_private(folder)
        api = HfApi(library_name="rlalign")
        exists = asked_hub(lambda: api.repo_exists(upload.repo), upload)
        if exists and upload.private:
            check_is_private(api, upload)
        print(printable("\n".join(announced(folder, upload, exists))), flush=True)
        if not upload.yes and not agreed(ask):
            print("nothing was uploaded")
            return

        def sent() -> str:
            if not exists:
                api.create_repo(upload.repo, private=upload.private, exist_ok=True)
            done = api.upload_folder(
                repo_id=upload.repo,
                folder_path=folder,
                commit_message="Upload by rlalign",
                delete_patterns=OF_A_MODEL,  # or an adapter would lie beside whole weights
            )
            return str(done.commit_url)

        print(printable(f"uploaded  {asked_hub(sent, upload)}"))


def check_is_private(api: HfApi, upload: Upload) -> None:
    """Refuse `--private` where everybody would see it: a repository stays as it is."""
    if not asked_hub(lambda: api.repo_info(upload.repo), upload).private:
        raise ConfigError(
            f"--private: {upload.repo} is there already and public; make it private in its "
            "settings on the hub, name a new one, or leave --private out"
        )


def check(upload: Upload) -> None:
    """Refuse, before anything is loaded, a wrong name, no login, and nobody to ask."""
    try:
        validate_repo_id(upload.repo)
    except HFValidationError as error:
        raise ConfigError(
            f"{upload.repo!r} is no name on the hub ({first_line(error)}); write USER/NAME"
        ) from error
    if "/" not in upload.repo:
        raise ConfigError(
            f"{upload.repo!r} names no owner; write USER/NAME, as in my-name/{upload.repo}"
        )
    if not upload.yes and not sys.stdin.isatty():
        raise ConfigError(
            "push asks before it uploads, and there is nobody to ask; add --yes to upload anyway"
        )
    if get_token() is None:
        raise ConfigError("no login to the hub is found; say `hf auth login` first, once a machine")


def announced(folder: Path, upload: Upload, exists: bool) -> Iterator[str]:
    """What would go where, file by file, and the beginning of the card."""
    kind = "private" if upload.private else "PUBLIC"
    yield f"to        {upload.repo} " + (
        "(exists: a commit replaces the model in it; it stays public or private as it is)"
        if exists
        else f"(new, {kind})"
    )
    for file in sorted(folder.iterdir()):
        yield f"  {file.name:<28} {file.stat().st_size / 1e6:10.3f} MB"
    card = (folder / "README.md").read_text(encoding="utf-8")
    yield "the model card shows the rewards, their settings and sample texts; it begins"
    yield from (f"  | {line}" for line in card.splitlines()[:14])


def agreed(ask: Callable[[str], str]) -> bool:
    try:
        return ask("upload this? [y/N] ").strip().lower() in ANSWERS
    except EOFError:
        print()
        return False


def check_base_is_public(folder: Path) -> None:
    """Refuse an adapter of which nobody else could load the base."""
    text = (folder / "adapter_config.json").read_text(encoding="utf-8")
    base = str(json.loads(text).get("base_model_name_or_path") or "")
    is_local = base.startswith((".", "/", "~")) or embedded.is_embedded(base)
    if not base or is_local or Path(base).exists():
        raise ConfigError(
            "--adapter: the adapter's base is not on the hub but on this machine, so nobody could "
            "load it; push --merged, the whole model"
        )


def check_private(folder: Path) -> None:
    """Refuse files that hold a secret or a path of this machine, naming each line but not it."""
    found = []
    places = [
        re.compile(rf"(?<![\w.-]){re.escape(place)}(?![\w-])")  # not within an address
        for place in {str(Path.home()), str(Path.cwd())} - {"/"}
    ]
    for name in READ:
        file = folder / name
        if not file.is_file():
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if redact_text(line).count(HIDDEN) > line.count(HIDDEN):
                found.append(f"{name}, line {number}: a secret")
            elif HOME.search(line) or any(own.search(line) for own in places):
                found.append(f"{name}, line {number}: a path of this machine")
    if found:
        raise ConfigError(
            f"nothing is uploaded: {'; '.join(found)}. `rlalign export` writes the same files for "
            "you to mend and to upload by `hf upload`"
        )


def asked_hub(call: Callable[[], Answer], upload: Upload) -> Answer:
    """What a call of the hub returns; HubError in words where it fails. No token is ever shown."""
    try:
        return call()
    except OfflineModeIsEnabled as error:
        raise HubError("HF_HUB_OFFLINE is set, so the hub is not asked; unset it") from error
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else None
        raise HubError(refusal(code, first_line(error), upload)) from error
    except (HTTPError, OSError) as error:
        reason = first_line(error) or type(error).__name__
        raise HubError(
            f"the hub cannot be reached ({redact_text(reason)}); nothing more is uploaded: try "
            "again where there is a network, or export a folder and carry it"
        ) from error


def refusal(code: int | None, reason: str, upload: Upload) -> str:
    if code == 401:
        return "the hub does not know the login (401); say `hf auth login` anew"
    if code == 403:
        return (
            f"the login may not write to {upload.repo} (403); take a token with the role write, or "
            "a name of your own"
        )
    return f"the hub refused {upload.repo} ({code}): {redact_text(reason)}"
