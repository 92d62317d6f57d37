"""`rlalign push` against a stand-in for the hub: what goes there, who is asked, what is refused."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from tried_run import trained

from rlalign.cli import main
from rlalign.problems import ConfigError
from rlalign.trying import push as pushing
from rlalign.trying.export import Wish
from rlalign.trying.push import Upload

TOKEN = "hf_canarycanarycanary1"


class Hub:
    """Notes what huggingface_hub is asked to do; `fails` raises in place of an answer."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.uploaded: dict[str, bytes] = {}
        self.exists, self.is_private = False, False
        self.fails: dict[str, Exception] = {}

    def __call__(self, **_: Any) -> "Hub":
        return self

    def _noted(self, name: str, **given: Any) -> None:
        self.calls.append((name, given))
        if name in self.fails:
            raise self.fails[name]

    def repo_exists(self, repo_id: str) -> bool:
        self._noted("repo_exists", repo_id=repo_id)
        return self.exists

    def repo_info(self, repo_id: str) -> Any:
        self._noted("repo_info", repo_id=repo_id)
        return type("Info", (), {"private": self.is_private})

    def create_repo(self, repo_id: str, **given: Any) -> None:
        self._noted("create_repo", repo_id=repo_id, **given)

    def upload_folder(self, *, folder_path: Path, **given: Any) -> Any:
        self._noted("upload_folder", **given)
        self.uploaded = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}
        return type("Info", (), {"commit_url": "https://hub/me/model/commit/1"})

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("push"), eval={"every": 1, "samples": 2})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(pushing, "HfApi", made)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    return made


def answer(text: str) -> Callable[[str], str]:
    return lambda question: text


def pushed(run: Path, said: str = "y", repo: str = "me/model", **upload: Any) -> int:
    return pushing.main(Wish(str(run)), Upload(repo, **upload), answer(said))


def test_what_is_shown_is_what_is_uploaded(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pushed(run, private=True) == 0
    assert hub.names == ["repo_exists", "create_repo", "upload_folder"]
    assert hub.calls[1][1] == {"repo_id": "me/model", "private": True, "exist_ok": True}
    assert {"model.safetensors", "README.md", "config.json"} < hub.uploaded.keys()
    assert b"library_name: transformers" in hub.uploaded["README.md"]
    out = capsys.readouterr().out
    assert "me/model (new, private)" in out and "commit/1" in out
    assert all(f"  {name} " in out for name in hub.uploaded)
    assert TOKEN not in out


@pytest.mark.parametrize("said", ["", "n", "no", "yikes"])
def test_without_a_yes_nothing_is_made_or_sent(run: Path, hub: Hub, said: str) -> None:
    assert pushed(run, said) == 0
    assert hub.names == ["repo_exists"]


def test_yes_in_advance_asks_nobody(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    hub.exists = True
    assert main(["push", str(run), "me/model", "--yes"]) == 0
    assert hub.names == ["repo_exists", "upload_folder"]  # and what exists is not made anew


def test_private_is_not_taken_for_what_is_public_already(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.exists = True
    assert pushed(run, yes=True, private=True) == 2
    assert "--private: me/model is there already and public" in capsys.readouterr().err
    assert hub.names == ["repo_exists", "repo_info"]
    hub.is_private = True
    assert pushed(run, yes=True, private=True) == 0


def test_an_earlier_models_files_do_not_stay_beside_the_new_ones(run: Path, hub: Hub) -> None:
    hub.exists = True
    assert pushed(run) == 0
    (deleted,) = [given["delete_patterns"] for name, given in hub.calls if "folder" in name]
    assert {"adapter_config.json", "config.json", "*.safetensors"} <= set(deleted)


def test_a_folders_name_within_an_address_is_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path("/data"))
    (tmp_path / "README.md").write_text("see https://x.org/data/a and some/data/b, not /database")
    pushing.check_private(tmp_path)
    (tmp_path / "README.md").write_text("prompts of /data/mine.jsonl")
    with pytest.raises(ConfigError, match="a path of this machine"):
        pushing.check_private(tmp_path)


def test_nobody_to_ask_is_said_before_anything_is_loaded(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    assert main(["push", str(run), "me/model"]) == 2
    assert "add --yes" in capsys.readouterr().err and not hub.calls


@pytest.mark.parametrize("repo", ["model", "me/a b", "a/b/c", "-x/y", "", "me/..", "\x1b[31m/x"])
def test_names_that_the_hub_does_not_have_are_refused(run: Path, hub: Hub, repo: str) -> None:
    assert pushed(run, repo=repo) == 2
    assert not hub.calls


def test_without_a_login_it_says_how(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pushing, "get_token", lambda: None)
    assert pushed(run) == 2
    assert "hf auth login" in capsys.readouterr().err and not hub.calls


def refused(code: int) -> HfHubHTTPError:
    response = httpx.Response(code, request=httpx.Request("POST", "https://hub/api"))
    return HfHubHTTPError(f"{code} for {TOKEN}", response=response)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ("repo_exists", ConnectionError("no route"), "cannot be reached (no route)"),
        ("repo_exists", OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE is set"),
        ("create_repo", refused(401), "does not know the login"),
        ("create_repo", refused(403), "may not write to me/model"),
        ("upload_folder", refused(500), "the hub refused me/model (500)"),
    ],
)
def test_what_the_hub_answers_is_told_in_words_and_without_the_token(
    run: Path, hub: Hub, call: str, error: Exception, words: str,
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    hub.fails[call] = error
    caplog.set_level(logging.DEBUG)
    assert pushed(run) == 4
    told = capsys.readouterr()
    assert words in told.err.splitlines()[-1]
    assert TOKEN not in told.out + told.err + caplog.text
    assert "upload_folder" not in hub.names or call == "upload_folder"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("see /home/somebody/secret/plan.txt", "a path of this machine"),
        (f"token {TOKEN}", "a secret"),
        ("api_key: canary-12345678", "a secret"),
        ("said hunter-2-environment", "a secret"),
    ],
)
def test_a_card_with_secrets_or_private_paths_stays_here(
    run: Path, hub: Hub, line: str, what: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "hunter-2-environment")
    card = run / "model/README.md"
    before = card.read_text()
    try:
        card.write_text(before.replace("## Rewards", f"{line}\n\n## Rewards"))
        assert pushed(run, yes=True) == 2
    finally:
        card.write_text(before)
    told = capsys.readouterr().err
    assert "README.md, line " in told and what in told
    assert line not in told and "upload_folder" not in hub.names


def test_an_adapter_whose_base_lies_here_is_not_pushed(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), "me/model", "--yes", "--adapter"]) == 2
    assert "push --merged" in capsys.readouterr().err and not hub.calls
