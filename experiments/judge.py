"""The judge of the reward-model experiment: what the preferences come from, and what holds out.

A reward file: `reward_files: [experiments/judge.py]` registers the kind `experiment.judge`. The
labels of `experiments/data/preferences.jsonl` are its opinions, made noisy; a reward model sees
those and nothing else. So the judge can say what an optimised reward model is worth.
"""

from rewards import RewardSet, parse_entries, reward

# Each weight is about one over the part's standard deviation on SmolLM2's samples (24 tokens),
# halved where the part should count less, so that no single part decides.
PARTS = {
    "cheerful": {"kind": "style.sentiment", "backend": "vader", "weight": 4.0},
    "vivid": {
        "kind": "topic.similarity",
        "topic": ["colours and light in a landscape", "sounds, smells and textures"],
        "weight": 10.0,
    },
    "brief": {"kind": "structure.word_count", "min": 8, "max": 14, "slack": 10, "weight": 2.0},
    "clean": {"kind": "structure.ends_cleanly", "weight": 1.0},
    "fresh": {"kind": "structure.repetition", "n": 2, "weight": 10.0},
}


@reward("experiment.judge", example={})
class Judge:
    """Weighted sum of cheer, vividness, brevity, a clean end and a penalty on repeated word pairs.

    Unbounded in general; on SmolLM2's own continuations its standard deviation is about 2.
    """

    def __init__(self) -> None:
        self._parts: RewardSet | None = None

    def load(self) -> None:
        self._parts = RewardSet(parse_entries(PARTS))

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        if self._parts is None:
            self.load()
        return [float(score) for score in self._parts(prompts, completions).score]
