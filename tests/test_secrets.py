"""Secrets stand in no file of a run: not those of the environment, the command or the settings."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import pytest
from test_reward_model import language_model, pairs_file, sunny_rows
from tracked_rows import offline

from rlalign import reward_model
from rlalign.cli import main
from rlalign.config import from_mapping, read_file
from rlalign.methods import METHODS
from rlalign.redact import HIDDEN, redact_mapping, redact_text, redacted_yaml

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {
    "MY_SERVICE_TOKEN": 'canary/environment+1"',
    "FAR_AUTH": "Bearer canary-header-2",
    "DB_PASSWORD": "canary password 3",
}
SETTING, URL, MESSAGE, NESTED = (
    "canary-setting-4", "canary-url-5", "canary-message-6", "canary-nested-7"
)  # fmt: skip
REWARD = f"""
import os
from rewards import reward

@reward("mine.scored")
def scored(completions: list[str], *, service_key: str, auth: str = "x") -> list[float]:
    assert service_key == {SETTING!r}
    return [float(len(text)) / 100 for text in completions]

@reward("mine.failing")
def failing(completions: list[str]) -> list[float]:
    if len(completions) < 8:  # not at the trial before the run
        return [0.0] * len(completions)
    raise ValueError(f"{{os.environ['MY_SERVICE_TOKEN']}} api_key={MESSAGE}")
"""


class Echo(BaseHTTPRequestHandler):
    """Repeats the request's secrets, in an error or in place of the first reward."""

    def do_POST(self) -> None:
        repeated = f"bad {self.headers['Authorization']} at {self.path}"
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["completions"]
        rewards = [repeated if i == 0 and len(texts) > 5 else 0.5 for i in range(len(texts))]
        said = json.dumps({"rewards": rewards}).encode()
        if "refuse" in self.path:
            said = repeated.encode()
        self.send_response(400 if "refuse" in self.path else 200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory):
    """A folder with a configuration whose runs meet every secret."""
    folder = tmp_path_factory.mktemp("secrets")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    far = f"http://127.0.0.1:{server.server_port}/score?key={URL}&n=1"
    (folder / "mine.py").write_text(REWARD)
    (folder / "prompts.jsonl").write_text('{"prompt": "Alice"}\n{"prompt": "The Queen"}\n')
    prompts = str(folder / "prompts.jsonl")
    own = {"kind": "mine.scored", "service_key": SETTING, "auth": NESTED}
    settings = {
        "model": {"name": "glass-tiny", "dtype": "float32"},
        "prompts": {"path": prompts, "eval_path": prompts},
        "sampling": {"max_new_tokens": 4},
        "reward_files": [str(folder / "mine.py")],
        "rewards": {
            "own": own,
            "both": {"kind": "combine.all", "parts": {"a": own}, "weight": 0},
            "far": {"kind": "remote.http", "url": far, "headers": {"Authorization": "FAR_AUTH"},
                    "on_error": "value", "error_value": 0.0, "batch_size": 64},
        },
        "train": {"iterations": 1, "samples": 8, "threads": 1},
        "ppo": {"minibatches": 2},
        "eval": {"every": 1, "samples": 8, "target_samples": 8, "samples_per_prompt": 4},
        "trackers": ["wandb", "tensorboard"],
        "run": {"dir": str(folder)},
    }  # fmt: skip
    (folder / "a.yaml").write_text(json.dumps(settings))
    yield folder
    server.shutdown()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def forms(secret: str) -> list[bytes]:
    """A secret as files may hold it."""
    shown = {secret, json.dumps(secret)[1:-1], quote(secret, safe=""), quote(secret)}
    encoded = {base64.b64encode(secret.encode()).decode().rstrip("=")}
    return [form.encode() for form in shown | encoded]


def leaks(folder: Path) -> list[tuple[str, str]]:
    """Which file holds which secret."""
    secrets = [*ENVIRONMENT.values(), SETTING, URL, MESSAGE, NESTED, "canary"]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 2
    return [
        (str(path.relative_to(folder)), secret)
        for path in files
        for secret in secrets
        if any(form in path.read_bytes() for form in forms(secret))
    ]


def launched(place: Path, *argv: str, code: int = 0) -> str:
    """What a command of its own process wrote on stderr."""
    program = "import sys; from rlalign.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, *argv], cwd=ROOT, capture_output=True, text=True,
        env=offline(
            **ENVIRONMENT, WANDB_MODE="offline", TRACKIO_DIR=str(place / "ppo" / "trackio")
        ), timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stderr


def test_no_file_of_a_run_holds_a_secret(place: Path) -> None:
    argument = f"--rewards.own.service_key={SETTING}"
    trackers = "--trackers=[wandb,tensorboard,trackio]"
    launched(place, "ppo", f"--config={place / 'a.yaml'}", "--run.name=ppo", argument, trackers)
    run = place / "ppo"
    if find_spec("trackio"):
        assert b"rewards.own.service_key" in (run / "trackio" / "rlalign.db").read_bytes()
    assert list(run.glob("wandb/offline-run-*/*.wandb")) and list(run.glob("tensorboard/*"))
    assert (run / "model" / "README.md").is_file()
    assert leaks(run) == []
    command = json.loads((run / "run.json").read_text())["command"]
    assert f"--rewards.own.service_key={HIDDEN}" in command
    saved = read_file(run / "config.yaml")["rewards"]
    assert saved["own"]["service_key"] == saved["both"]["parts"]["a"]["service_key"] == HIDDEN
    assert saved["far"]["headers"] == {"Authorization": "FAR_AUTH"}  # a name, no secret


def test_no_file_of_trls_run_holds_a_secret(
    place: Path, environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    argument = f"--rewards.own.service_key={SETTING}"
    monkeypatch.setattr(sys, "argv", ["rlalign", "grpo", argument])
    argv = ["grpo", f"--config={place / 'a.yaml'}", "--run.name=grpo", "--trackers=tensorboard"]
    assert main([*argv, argument]) == 0
    assert list(place.glob("grpo/tensorboard/*"))
    assert leaks(place / "grpo") == []


def test_a_run_that_fails_leaves_no_secret(
    place: Path, environment: None, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["ppo", f"--config={place / 'a.yaml'}", "--run.name=failed", "--trackers=tensorboard"]
    assert main([*argv, "--rewards.failing={kind: mine.failing}"]) == 5
    assert MESSAGE in capsys.readouterr().err  # a user's own reward on their own terminal
    assert leaks(place / "failed") == []
    assert HIDDEN in json.loads((place / "failed" / "run.json").read_text())["message"]


def test_a_server_that_repeats_secrets_has_them_hidden_at_once(
    place: Path, environment: None, capsys: pytest.CaptureFixture[str]
) -> None:
    far = read_file(place / "a.yaml")["rewards"]["far"]["url"].replace("score", "refuse")
    argv = ["ppo", f"--config={place / 'a.yaml'}", "--run.name=far", f"--rewards.far.url={far}"]
    assert main(argv) == 5
    said = capsys.readouterr().err
    assert "bad [hidden] at /refuse?key=[hidden]&n=1" in said and "canary" not in said


def test_no_file_of_a_reward_models_run_holds_a_secret(
    tmp_path: Path, environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["reward_model.py", "--hub_token=canary-argument-8"])
    name, pairs = language_model(tmp_path / "lm"), tmp_path / f"{ENVIRONMENT['FAR_AUTH']}.jsonl"
    run = [f"--run.dir={tmp_path}", "--run.name=run", "--train.epochs=1", "--train.batch_size=4"]
    train = ["--train.threads=1", "--model.lora=null", "--pairs.eval_fraction=0.5"]
    given = [f"--model.name={name}", f"--pairs.path={pairs_file(pairs, sunny_rows(12))}"]
    assert reward_model.main([*given, *run, *train]) == 0
    assert leaks(tmp_path / "run") == []


def test_a_measured_run_has_no_secret_and_asks_for_what_was_not_kept(
    place: Path, environment: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = f"--config={place / 'a.yaml'}"
    if not (place / "ppo").is_dir():
        launched(place, "ppo", config, "--run.name=ppo")
    assert main(["eval", str(place / "ppo"), config]) == 0
    assert leaks(place / "ppo") == []
    assert main(["eval", str(place / "ppo"), "--trust"]) == 2
    assert "rewards.own.service_key=[hidden] in" in capsys.readouterr().err


@pytest.mark.parametrize("text", [
    "http://h/score?key=canary&n=1", "https://h/x?a=1&sig=canary", "https://h/?X-Amz-Signature=canary#a",
    "GET /?access_token=canary", "postgres://me:canary@h/db",
])  # fmt: skip
def test_a_secret_in_a_url_is_hidden(text: str) -> None:
    assert "canary" not in redact_text(text) and HIDDEN in redact_text(text)


def test_a_secret_of_the_environment_is_hidden_in_every_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret = 'a "very/secret+ü'  # its JSON, its URL and its base64 are three other strings
    monkeypatch.setenv("MY_TOKEN", secret)
    for form in forms(secret):
        assert redact_text(f"<{form.decode()}>").rstrip("=") == f"<{HIDDEN}>"
    monkeypatch.setenv("MY_TOKEN", "short")
    assert redact_text("a short text") == "a short text"


def test_secrets_are_hidden_at_any_depth_and_names_of_variables_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAR_KEY", "long enough to be one")
    given = {"a": {"b": [{"auth": "x", "n": 3}], "X-Api-Key": "FAR_KEY"}, "url": "h?key=x"}
    hidden = {"a": {"b": [{"auth": HIDDEN, "n": 3}], "X-Api-Key": "FAR_KEY"}}
    assert redact_mapping(given) == {**hidden, "url": f"h?key={HIDDEN}"}


def test_a_configuration_without_secrets_is_saved_as_it_is(tmp_path: Path) -> None:
    settings = {"rewards": {"a": {"kind": "lexical.contains", "words": ["key: value", "token"]}}}
    config = from_mapping(METHODS["ppo"].run_model, settings)
    (tmp_path / "a.yaml").write_text(redacted_yaml(config))
    assert from_mapping(METHODS["ppo"].run_model, tmp_path / "a.yaml") == config
    assert os.environ.get("HOME", "x") not in redacted_yaml(config)
