"""Make experiments/data/preferences.jsonl: pairs of SmolLM2's continuations, labelled with noise.

    python experiments/data/make_preferences.py          # minutes on two cores; no network

SmolLM2-135M-Instruct continues each of the 270 openings four times (two disjoint pairs); the judge
of `experiments/judge.py` scores them, and a noisy reader of its scores prefers one of each pair:
the first with probability sigmoid(difference / NOISE) (Bradley and Terry 1952). Every draw comes
from SEED.
"""

import json
import math
import random
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))

from judge import Judge  # noqa: E402

from rlalign import generation, models, prompts  # noqa: E402
from rlalign.settings.sections import ModelSection, PromptsSection  # noqa: E402

OUT = ROOT / "experiments" / "data" / "preferences.jsonl"
KEPT = ROOT / "runs" / "preferences" / "samples.json"  # so that labels can be drawn anew
SEED, TOKENS, NOISE, BATCH = 0, 28, 0.5, 54
SAMPLES = 4  # a prompt, two disjoint pairs


def main() -> None:
    if not KEPT.is_file():
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        KEPT.write_text(json.dumps(continuations()), encoding="utf-8")
    samples = json.loads(KEPT.read_text(encoding="utf-8"))
    rows = pairs(samples, random.Random(SEED))
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    agreed = sum(row["judge_chosen"] > row["judge_rejected"] for row in rows) / len(rows)
    scores = torch.tensor([row[f"judge_{side}"] for row in rows for side in ("chosen", "rejected")])
    print(
        f"{len(rows)} pairs in {OUT.relative_to(ROOT)} ({OUT.stat().st_size / 1e3:.0f} kB); "
        f"the labels agree with the judge in {agreed:.3f}; "
        f"its scores: mean {scores.mean():.2f}, sd {scores.std():.2f}"
    )


def continuations() -> list[tuple[int, str, list[str]]]:
    """(id, prompt, SAMPLES continuations) of each opening, drawn at temperature 1."""
    section = ModelSection(dtype="float32")
    tokenizer = models.load_tokenizer(section)
    openings = prompts.load_prompts(PromptsSection(), tokenizer, None)
    policy = models.build_policy(section, 1.0, torch.device("cpu"))
    engine = generation.DecodeEngine(tokenizer, max_new_tokens=TOKENS)
    engine.sync(policy)
    found = []
    for start in range(0, len(openings), BATCH):
        rows = range(start, min(start + BATCH, len(openings)))
        generator = torch.Generator().manual_seed(1000 * SEED + start)
        texts = engine.generate(openings.batch(rows), SAMPLES, generator).texts
        for i, row in enumerate(rows):
            own = list(texts[i * SAMPLES : (i + 1) * SAMPLES])
            found.append((openings.columns["id"][row], openings.texts[row], own))
        print(f"{len(found)} of {len(openings)} openings continued", flush=True)
    return found


def pairs(samples: list[tuple[int, str, list[str]]], noise: random.Random) -> list[dict]:
    """Two pairs a prompt, each labelled once; pairs of equal texts are left out."""
    judge, rows = Judge(), []
    judge.load()
    for number, prompt, texts in samples:
        scores = judge([prompt] * len(texts), texts)
        for pair in ((0, 1), (2, 3)):
            a, b = sorted(pair, key=lambda i: texts[i])  # which is first must not matter
            prefers_a = 1 / (1 + math.exp((scores[b] - scores[a]) / NOISE))
            first, second = (a, b) if noise.random() < prefers_a else (b, a)
            if texts[a].strip() == texts[b].strip():
                continue
            rows.append(
                {
                    "prompt": prompt,
                    "chosen": texts[first],
                    "rejected": texts[second],
                    "judge_chosen": round(scores[first], 3),
                    "judge_rejected": round(scores[second], 3),
                    "id": number,
                }
            )
    return rows


if __name__ == "__main__":
    main()
