"""One policy, many controls: train the topics of topics.yaml, measure each, draw and tabulate.

    pip install empath==0.89              # the judge's word lists
    python experiments/topics.py          # or with settings: --train.iterations=60 ...
    python experiments/topics.py FOLDER   # a run of topics.yaml, to make there or made before

The run is kept in FOLDER (runs/topics) and goes on where it stopped; what was measured lies there
as topics-reference.jsonl and topics-policy.jsonl, with the table topics.md and the picture
topics.png.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rewards import classifiers
from rlalign.algorithms.ppo import PPORun
from rlalign.config import load_config, to_flat
from rlalign.evaluate import evaluate
from rlalign.files import write_atomically
from rlalign.metrics import distinct_n, mean_and_se
from rlalign.report.plots import BLUE, DPI, GRID, INK
from rlalign.session import Session
from rlalign.trained import load_trained, settings_for

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "experiments" / "topics.yaml"
SAMPLES = 384  # 4 responses to each evaluation prompt, 48 a topic

# The judge: Empath's categories (Fast, Chen, Bernstein 2016, learnt from fiction) that make up a
# topic. No reward saw them. The last two topics are never trained on.
FIELDS = {
    "the sea": ("ocean", "sailing", "ship"),
    "cooking": ("cooking", "eating", "restaurant"),
    "music": ("music", "musical"),
    "football": ("sports", "competing"),
    "war": ("war", "military", "weapon"),
    "medicine": ("medical_emergency", "health", "healing"),
    "farming": ("farming", "plant"),
    "computers": ("computer", "programming", "technology", "internet"),
}
TOPICS = tuple(FIELDS)
TRAINED, HELD_OUT = TOPICS[:6], TOPICS[6:]
NONE = "none"
Rows = Sequence[Mapping[str, Any]]


def main() -> int:
    given, overrides = sys.argv[1:], sys.argv[1:]
    run = ROOT / "runs" / "topics"
    if given and not given[0].startswith("-") and "=" not in given[0]:
        run, overrides = Path(given[0]).absolute(), given[1:]
    judge = Judge(empath())  # before the long work: it may have to be installed
    train(run, overrides)
    before, after = measured(run)
    written = [[judge(row["response"]) for row in rows] for rows in (before, after)]
    lines = table(before, after, *written)
    (run / "topics.md").write_text(lines + "\n", encoding="utf-8")
    print(lines)
    draw(run / "topics.png", before, after, *written)
    print(f"\npicture      {run / 'topics.png'}")
    return 0


# -- the run ---------------------------------------------------------------------------------------


def train(run: Path, overrides: Sequence[str]) -> None:
    """The run of topics.yaml, unless it is there; one that was made otherwise is refused."""
    if (run / "config.yaml").is_file():
        now = to_flat(load_config(PPORun, overrides, CONFIG))
        made = to_flat(load_config(PPORun, [], run / "config.yaml"))
        changed = [key for key in sorted(now.keys() | made.keys()) if now.get(key) != made.get(key)]
        if changed := [key for key in changed if not key.startswith("run.")]:
            sys.exit(f"{run} was made with another {', '.join(changed)}; remove it to train anew")
    if not (run / "model").is_dir():
        place = [f"--run.dir={run.parent}", f"--run.name={run.name}", "--run.resume=auto"]
        settings = [f"--config={CONFIG}", *place, *overrides]
        subprocess.run([sys.executable, "launch/ppo.py", *settings], cwd=ROOT, check=True)


def measured(run: Path) -> tuple[Rows, Rows]:
    """Responses of the reference and of the policy to the evaluation prompts, sampled alike."""
    files = [run / f"topics-{name}.jsonl" for name in ("reference", "policy")]
    if not all(file.is_file() for file in files):
        config = load_config(PPORun, [f"--eval.samples={SAMPLES}"], run / "config.yaml")
        model = str(run / "model")
        with Session(settings_for(model, config)) as session:
            load_trained(session, model)
            for file, of_reference in zip(files, (True, False), strict=True):
                if not file.is_file():
                    found = evaluate(session, config.kl.coef, of_reference=of_reference)
                    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows]
                    write_atomically(file, "".join(lines))
    before, after = (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for file in files
    )
    return before, after


def topic_of(row: Mapping[str, Any]) -> str:
    return str(row["columns"]["topic"])


# -- the judge -------------------------------------------------------------------------------------


class Judge:
    """The topic whose word lists have the most words of a text; `none` without one, or at a tie.

    A word in the lists of several topics counts for none of them, and neither do the topics' own
    names: repeating "the sea" from the prompt is no writing about it.
    """

    def __init__(self, lists: Mapping[str, Sequence[str]]) -> None:
        """`lists` holds the words of each of Empath's categories."""
        fields = {topic: set().union(*(lists[c] for c in FIELDS[topic])) for topic in TOPICS}
        names = {singular(word) for topic in TOPICS for word in topic.split()}
        self._topic_of: dict[str, str] = {}
        for topic, words in fields.items():
            others = set().union(*(fields[other] for other in TOPICS if other != topic))
            self._topic_of |= dict.fromkeys(words - others - names, topic)

    def __call__(self, text: str) -> str:
        counts = dict.fromkeys(TOPICS, 0)
        for word in re.findall(r"[a-z]+", text.casefold()):
            topic = self._topic_of.get(word) or self._topic_of.get(singular(word))
            if topic is not None:
                counts[topic] += 1
        most = max(counts.values())
        best = [topic for topic, count in counts.items() if count == most]
        return best[0] if len(best) == 1 else NONE


def empath() -> Mapping[str, Sequence[str]]:
    try:
        from empath import Empath
    except ModuleNotFoundError:
        sys.exit("the judge needs Empath's word lists: pip install empath==0.89")
    lists: Mapping[str, Sequence[str]] = Empath().cats
    return lists


def singular(word: str) -> str:
    """Without a plural's s; Empath lists the singular."""
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


# -- the table -------------------------------------------------------------------------------------


def table(before: Rows, after: Rows, was: Sequence[str], now: Sequence[str]) -> str:
    """A line a topic and one for all trained and all held-out ones, before → after."""
    nearest = [nearest_topic([row["response"] for row in rows]) for rows in (before, after)]

    def line(label: str, topics: Sequence[str]) -> str:
        cells = [label]
        for written in ((was, now), nearest):
            pairs = zip((before, after), written, strict=True)
            cells.append(change([hits(rows, found, topics) for rows, found in pairs]))
        strayed = zip((before, after), (was, now), strict=True)
        cells.append(change([strays(rows, found, topics) for rows, found in strayed]))
        for name in ("topic", "words"):
            cells.append(change([rewards_of(rows, name, topics) for rows in (before, after)]))
        kl = mean_and_se([row["kl"] for row in after if topic_of(row) in topics])[0]
        pairs2 = [distinct_n(responses(rows, topics), 2) for rows in (before, after)]
        cells += [f"{kl:.1f}", f"{pairs2[0]:.2f} → {pairs2[1]:.2f}"]
        return "| " + " | ".join(cells) + " |"

    heads = ["topic asked", "written, by Empath", "nearest, by the reward's model"]
    heads += ["another topic, by Empath", "cosine", "a keyword", "KL, nats", "distinct-2"]
    return "\n".join(
        [
            "| " + " | ".join(heads) + " |",
            "|---" * len(heads) + "|",
            *(line(topic, [topic]) for topic in TRAINED),
            line("**the six trained**", TRAINED),
            *(line(f"{topic}, never trained", [topic]) for topic in HELD_OUT),
            line("**the two held out**", HELD_OUT),
        ]
    )


def change(values: Sequence[Sequence[float]]) -> str:
    """Means with their standard errors, before → after."""
    (a, a_se), (b, b_se) = (mean_and_se(v) for v in values)
    return f"{a:.2f} ± {a_se:.2f} → {b:.2f} ± {b_se:.2f}"


def hits(rows: Rows, written: Sequence[str], topics: Sequence[str]) -> list[float]:
    """1 for each response to these topics that is on the topic asked for, else 0."""
    pairs = zip(rows, written, strict=True)
    return [float(topic_of(row) == found) for row, found in pairs if topic_of(row) in topics]


def strays(rows: Rows, written: Sequence[str], topics: Sequence[str]) -> list[float]:
    """1 for each response to these topics that is on another of the eight, else 0."""
    pairs = zip(rows, written, strict=True)
    return [
        float(found not in (NONE, topic_of(row))) for row, found in pairs if topic_of(row) in topics
    ]


def rewards_of(rows: Rows, name: str, topics: Sequence[str]) -> list[float]:
    return [row["rewards"][name] for row in rows if topic_of(row) in topics]


def responses(rows: Rows, topics: Sequence[str]) -> list[str]:
    return [row["response"] for row in rows if topic_of(row) in topics]


def nearest_topic(texts: Sequence[str]) -> list[str]:
    """By cosine under the model that the reward uses: no independent judge."""
    embedder = classifiers.embedder("all-minilm-l6-v2")
    cosines = embedder.encode(texts) @ embedder.encode(TOPICS).T  # (B, topics)
    return [TOPICS[i] for i in cosines.argmax(axis=1)]


# -- the picture -----------------------------------------------------------------------------------


def draw(path: Path, before: Rows, after: Rows, was: Sequence[str], now: Sequence[str]) -> None:
    """Each topic's rate before and after, above who was asked for what and wrote what."""
    figure = Figure(figsize=(9, 8), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[0.8, 1])
    draw_rates(above.subplots(), before, after, was, now)
    left, right = below.subplots(1, 2, sharey=True)
    draw_confusion(left, "Before", before, was)
    draw_confusion(right, "After", after, now)
    left.set_ylabel("topic asked for", color=INK)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DPI, facecolor="white")


def draw_rates(ax: Axes, before: Rows, after: Rows, was: Sequence[str], now: Sequence[str]) -> None:
    place = np.arange(len(TOPICS)) + 0.5 * np.array([t in HELD_OUT for t in TOPICS])
    sides = (("before", before, was, "#b8c4cc", -0.2), ("after", after, now, BLUE, 0.2))
    for label, rows, written, color, shift in sides:
        means, errors = zip(*(mean_and_se(hits(rows, written, [t])) for t in TOPICS), strict=True)
        ax.bar(place + shift, means, 0.38, color=color, label=label)
        ax.errorbar(place + shift, means, yerr=errors, fmt="none", ecolor=INK, lw=1, capsize=2)
        for x, mean, error in zip(place + shift, means, errors, strict=True):
            ax.text(
                x, mean + error + 0.02, f"{mean:.0%}", ha="center", va="bottom", fontsize=9,
                color=INK,
            )  # fmt: skip
    ax.axvline(len(TRAINED) - 0.25, color="#999999", lw=1, ls=":")
    ax.set_xticks(place, TOPICS)
    ax.set_title(
        "Responses on the topic that their prompt names (left: trained as one policy; "
        "right: never trained)",
        loc="left", fontsize=11, color=INK,
    )  # fmt: skip
    ax.set_ylabel("share of responses, ±1 s.e.", color=INK)
    ax.set_ylim(0, 1.18)
    ax.set_yticks(np.arange(0, 1.01, 0.2))
    ax.grid(axis="y", color=GRID, lw=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK, length=0)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color("#999999")
    ax.legend(frameon=False, fontsize=9, loc="upper left", ncols=2)


def draw_confusion(ax: Axes, title: str, rows: Rows, written: Sequence[str]) -> None:
    """Shares of each row: topics asked for by topics written."""
    shares = confusion(rows, written)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, j in np.ndindex(shares.shape):
        if shares[i, j] >= 0.005:
            ax.text(
                j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", fontsize=9,
                color="white" if shares[i, j] > 0.55 else INK,
            )  # fmt: skip
    ax.axhline(len(TRAINED) - 0.5, color="#999999", lw=1, ls=":")
    ax.set_xticks(range(len(TOPICS) + 1), [*TOPICS, NONE], rotation=45, ha="right")
    ax.set_yticks(range(len(TOPICS)), TOPICS)
    ax.set_xlabel("topic written, by Empath's word lists", color=INK)
    ax.set_title(f"{title}, % of each row", loc="left", fontsize=11, color=INK)
    ax.tick_params(colors=INK, length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def confusion(rows: Rows, written: Sequence[str]) -> np.ndarray:
    """(topics asked, topics written and none): each row sums to 1."""
    columns = [*TOPICS, NONE]
    counts = np.zeros((len(TOPICS), len(columns)))
    for row, found in zip(rows, written, strict=True):
        counts[TOPICS.index(topic_of(row)), columns.index(found)] += 1
    shares: np.ndarray = counts / counts.sum(axis=1, keepdims=True)
    return shares


if __name__ == "__main__":
    sys.exit(main())
