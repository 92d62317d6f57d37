"""report.html: what it says of a run, and that nothing of a run is markup in it."""

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from compared import content, feature, known
from hostile import TEXTS
from reported import CONFIG, written_run

from rlalign.files import encodable
from rlalign.report.page.document import STATIC, document
from rlalign.report.page.embedded import script_json
from rlalign.report.page.record import read_run


def page_of(*folders: Path, most: int = 5000) -> str:
    return document([read_run(folder, folder.name, most) for folder in folders], most)


def samples_in(page: str) -> dict[str, Any]:
    packed = re.search(r'id="packed">([^<]*)</script>', page)
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def charts_in(page: str) -> dict[str, Any]:
    return json.loads(re.search(r'id="charts">([^<]*)</script>', page)[1])


def text_of(page: str, section: str) -> str:
    """A section's words, as a reader sees them."""
    part = page.split(f'<section id="{section}">')[1].split("</section>")[0]
    return re.sub(r"[ \n]+", " ", re.sub(r"<[^>]*>", " ", part)).strip()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    warned = {"name": "duplicates", "began": 2, "ended": None, "text": "half repeat"}
    return written_run(tmp_path_factory.mktemp("runs") / "one", warnings=[warned])


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return page_of(run)


# -- what it says


def test_the_target_is_said_in_words_and_as_a_formula(page: str) -> None:
    asked = text_of(page, "asked")
    assert "the one whose score is 0.1 higher is to come e ≈ 2.7 times as often" in asked
    assert "rain lexical.contains words: [&quot;rain&quot;] 2 7.4 times as often" in asked
    assert "calm lexical.pattern pattern: &quot;calm&quot; 0 only measured" in asked
    assert (
        "P T (y|x) ∝ a(y|x) · exp( 20·rain(x, y) )" in asked
        and "20\u00a0=\u00a0weight\u00a02" in asked
    )


def test_before_and_after_are_the_first_and_last_evaluation(run: Path, page: str) -> None:
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    ends = [
        [r["score"] for r in rows if r["split"] == "eval" and r["iteration"] == step]
        for step in (0, 4)
    ]
    before, after = (sum(scores) / len(scores) for scores in ends)
    found = re.search(r"score (\S+) \S+ … \S+ (\S+) \S+ … \S+ (\S+) ", text_of(page, "outcome"))
    shown = [float(number) for number in found.groups()]
    assert shown == pytest.approx([before, after, after - before], abs=0.051)
    assert "Before is the reference, after the policy at iteration 4: 8 responses" in text_of(
        page, "outcome"
    )


def test_warnings_command_versions_and_configuration_stand_on_it(run: Path, page: str) -> None:
    assert "duplicates from iteration 2 : half repeat" in text_of(page, "warnings")
    again = text_of(page, "again")
    assert "python launch/ppo.py &#x27;--run.name=a b&#x27;" in again
    assert f"rlalign ppo --config {run}/config.yaml --run.name=again" in again
    assert "torch 2.13.0" in again and "train.seed 7" in again and "max_new_tokens: 24" in again


def test_how_to_run_it_again_is_said_where_it_is_known(tmp_path: Path) -> None:
    def again(name: str, **about: Any) -> str:
        return text_of(page_of(written_run(tmp_path / name, **about)), "again")

    settings = "config.yaml --run.name=again --run.resume=never"
    assert re.search(rf"The same settings again ?rlalign dpg --config \S+/{settings}",
                     again("one", method="dpg", world_size=1))  # fmt: skip
    assert re.search(rf"after the launcher, for 4 processes ?--config \S+/{settings}",
                     again("four", world_size=4))  # fmt: skip
    python = "came from Python, so config.yaml alone does not run it again"
    assert python in again("model", config={k: v for k, v in CONFIG.items() if k != "model"})
    assert python in again("rewards", config=CONFIG | {"rewards": {}})
    assert python not in again("whole")


def test_a_run_without_warnings_says_that_this_proves_nothing(tmp_path: Path) -> None:
    quiet = page_of(written_run(tmp_path / "quiet"))
    assert "proves nothing" in text_of(quiet, "warnings")


def test_what_eval_measured_stands_beside_it(tmp_path: Path) -> None:
    folder = written_run(tmp_path / "run")
    features = {"rain": feature("weight", known(0.5), known(0.2), known(0.75))}
    measured = content(0.5, features=features)
    (folder / "eval.json").write_text(json.dumps(measured))
    shown = text_of(page_of(folder), "outcome")
    assert re.search(r"rain .* 0\.75 ± 0\.10", shown.split("ends by itself")[0])
    assert "KL(π‖P_T), nats 3.00 ± 0.10 0.50 ± 0.10" in shown
    assert "distinct-2 0.500 0.400" in shown.split("As rlalign eval measured it")[1]
    (folder / "eval.json").write_text("{}")
    assert "format &#x27;no number&#x27;" in page_of(folder)  # said, and the rest is shown


def test_the_charts_hold_training_evaluations_and_intervals(page: str) -> None:
    charts = charts_in(page)
    score = next(panel for panel in charts["curves"] if panel["key"] == "score")["runs"][0]
    assert [point[0] for point in score["train"]] == [1, 2, 3, 4]
    low, high = score["train"][0][2:]
    assert high - low == pytest.approx(2 * 1.96 * 1.0 / 8**0.5, rel=1e-3)  # 8 samples, spread 1
    assert [point[0] for point in score["held"]] == [0, 4]
    assert {panel["title"] for panel in charts["frontiers"]} == {"score", "rain", "calm"}
    rain = next(panel for panel in charts["histograms"] if panel["title"] == "rain")
    assert [sum(series["shares"]) for series in rain["series"]] == pytest.approx([1.0, 1.0])
    assert (
        len(next(p for p in charts["frontiers"] if p["title"] == "score")["runs"][0]["ends"]) == 2
    )


def test_a_response_stands_beside_the_references_with_its_spans(run: Path, page: str) -> None:
    data = samples_in(page)
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    last = [r for r in rows if r["split"] == "eval" and r["iteration"] == 4]
    first = [r for r in rows if r["split"] == "eval" and r["iteration"] == 0]
    shown = data["rows"][: len(last)]
    assert [row["response"] for row in shown] == [row["response"] for row in last]
    beside = [data["refs"][row["reference"]]["response"] for row in shown]
    assert beside == [row["response"] for row in first]
    spans = [row["spans"].get("0") for row in shown]
    assert spans == [row.get("spans", {}).get("rain") for row in last] and any(spans)
    training = data["rows"][len(last) :]
    assert len(training) == 32 and {row["reference"] for row in training} == {None}


def test_several_runs_share_a_page_and_show_where_their_settings_differ(tmp_path: Path) -> None:
    dearer = CONFIG | {"kl": {"coef": 0.5, "target": None}}
    one, two = written_run(tmp_path / "one"), written_run(tmp_path / "two", config=dearer)
    page = page_of(one, two)
    again = text_of(page, "again")
    assert "kl.coef 0.1 0.5" in again and "sampling.temperature 1.0" not in again
    assert len(charts_in(page)["curves"][0]["runs"]) == 2
    assert {row["run"] for row in samples_in(page)["rows"]} == {0, 1}
    assert "the one whose score is 0.5 higher" in text_of(page, "asked")


# -- that it needs nothing, and is small


def test_the_page_holds_all_that_it_needs(page: str) -> None:
    bare = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", page, flags=re.S)
    leads = re.findall(r"\b(?:src|href|srcset|action|data)=[\"']?([^\"'\s>]*)", bare)
    assert len(leads) == 8 and all(address.startswith("#") for address in leads)
    rules = page.split("Content-Security-Policy")[1].split('">')[0]
    assert "default-src 'none'" in rules and "unsafe" not in rules and "http" not in rules


def test_every_script_and_style_is_named_by_its_hash(page: str) -> None:
    rules = page.split("Content-Security-Policy")[1].split('">')[0]
    inline = re.findall(r"<(script|style)>(.*?)</\1>", page, flags=re.S)
    assert len(inline) == 5
    for kind, text in inline:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in rules.split(f"{kind}-src")[1].split(";")[0]


def test_the_page_is_small_without_its_samples(tmp_path: Path) -> None:
    folders = [written_run(tmp_path / str(i), iterations=200, responses=2) for i in range(20)]
    page = page_of(*folders, most=0)
    without = re.sub(r'id="packed">[^<]*', "", page)
    assert len(without.encode()) < 3_000_000


# -- that no text of a run is markup


def test_no_text_of_a_run_ends_a_script_or_becomes_an_element(tmp_path: Path) -> None:
    for name, text in TEXTS.items():
        named = encodable(text)[:60]  # no file holds half a pair of surrogates
        config = CONFIG | {"model": {"name": named}}
        config["rewards"] = {**CONFIG["rewards"], named: {"kind": named, "weight": 1.0}}
        warned = [{"name": text, "began": text, "text": text}]
        told = {"method": text, "status": text, "message": text, "command": [text]}
        told |= {"versions": {text: text}, "target": {"formula": text}, "warnings": warned}
        folder = written_run(tmp_path / name, [text], responses=2, config=config, **told)
        page = page_of(folder)
        bare = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", page, flags=re.S)
        elements = set(re.findall(r"<(\w+)", bare))
        assert elements <= {
            "html", "head", "meta", "title", "body", "header", "h1", "h2", "nav", "a", "main", "p",
            "section", "div", "table", "thead", "tbody", "tr", "th", "td", "small", "code", "pre",
            "b", "ul", "li", "span", "dl", "dt", "dd", "details", "summary", "button", "label",
            "input", "select", "option", "svg", "g", "line", "circle", "sub", "noscript", "i", "h3",
        }, name  # fmt: skip
        assert len(re.findall(r"<script\b", page)) == 6, name
        assert not re.search(r"[\x00-\x08\x1b\x7f\u202a-\u202e\u2066-\u2069]", bare), name


def test_embedded_json_cannot_end_its_script() -> None:
    value = {"a": "</script><!--<script>&\u2028"}
    text = script_json(value)
    assert not re.search(r"[<>&\u2028]", text) and json.loads(text) == value


def test_our_scripts_make_no_markup_of_strings() -> None:
    for file in ("report.js", "samples.js"):
        source = (STATIC / file).read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", source)


def test_a_reward_that_is_named_score_is_not_taken_for_the_score(tmp_path: Path) -> None:
    run = written_run(tmp_path / "a")
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        row["rewards"]["score"] = 77.0
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = (run / "config.yaml").read_text().replace("  calm:", "  score:", 1)
    (run / "config.yaml").write_text(config)
    page = page_of(run)
    tile = re.search(r"Score(?:<[^>]*>|\s)*([-\d.]+)", page)
    assert tile is not None and float(tile[1]) < 20
    assert page.count(">score</th>") == 3  # what was asked, the score, the reward
