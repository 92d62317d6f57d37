"""The judge of the reward-model experiment: what the preferences come from, and what holds out.

A reward file: `reward_files: [experiments/judge.py]` registers the kind `experiment.judge`. The
labels of `experiments/data/preferences.jsonl` are its opinions, made noisy; a reward model sees
those and nothing else. So the judge can say what an optimised reward model is worth.
"""

from rewards import RewardSet, parse_entries, reward

# On samples of SmolLM2 (28 tokens) the weighted parts have standard deviations of 0.8 (cheerful,
# vivid), 0.6 (brief) and 0.3 (clean, fresh): no part decides alone, and repetition, rare in
# ordinary text, costs most where a policy has gone astray.
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

    Unbounded in general; on SmolLM2's own continuations its standard deviation is about 1.4.
    """

    def __init__(self) -> None:
        self._parts: RewardSet | None = None

    def load(self) -> None:
        self._parts = RewardSet(parse_entries(PARTS))

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        if self._parts is None:
            self.load()
        return [float(score) for score in self._parts(prompts, completions).score]
