"""`docs/rewards.md`, written from the registry: `rlalign rewards list --markdown`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from rewards import registry
from rewards.spec import RewardSpec

FAMILIES = {
    "lexical": "which words a response holds",
    "structure": "what form it has",
    "style": "how it is written",
    "topic": "what it is about",
    "model": "what a network says that was trained on preferences",
    "combine": "several rewards as one",
}


@dataclass(frozen=True)
class Notes:
    """What the code of a reward does not say."""

    cost: str  # a class that the page explains
    fooled: str  # how the value rises without what was meant
    trick: str  # a text that does it under the example's settings
    value: float | None  # what the trick earns there; None where the model is one of yours


NOTES = {
    "combine.all": Notes(
        "its parts",
        "What fools every part at once: the product closes the way of trading one part for "
        "another, not the parts' own gaps. Where one part is 0, the others give no direction.",
        "rain nine plain words that hold nothing else here",
        1.0,
    ),
    "combine.min": Notes(
        "its parts",
        "What fools the worst part: the others count for nothing until it is above them, so "
        "parts on different scales are one part. Give all of them bounds of 0 to 1.",
        "rain nine plain words that hold nothing else here",
        1.0,
    ),
    "lexical.contains": Notes(
        "words",
        "The word is enough, wherever it stands: a list of the words, a negation, another sense. "
        "One occurrence pays in full, so the policy learns one fixed phrase and puts it early. "
        "`rains` is not `rain`: list the forms that you mean.",
        "she outer space",
        1.0,
    ),
    "lexical.excludes": Notes(
        "words",
        "A synonym, another form or a misspelling is free, and so is saying nothing: an empty "
        "response has full marks. With `count` every further word is a risk, so responses may "
        "shrink.",
        "Extremely nice, v3ry nice.",
        1.0,
    ),
    "lexical.word_rate": Notes(
        "words",
        "Repetition is the optimum: a response of the one word has rate 1. Short responses are the "
        "second way there, as every other word dilutes. It needs a bound (`clip`, such as "
        "`clip: [0, 0.2]`), `structure.repetition` and a least length beside it.",
        "rain rain rain",
        1.0,
    ),
    "lexical.pattern": Notes(
        "words",
        "Whatever the pattern allows by accident: with `\\w*` the longest nonsense, with `count` "
        "the same match over and over. The credit lands on the last action: which words earned "
        "it has to be found out.",
        "moonmoonmoon",
        1.0,
    ),
    "lexical.diversity": Notes(
        "words",
        "Short responses: two words are one pair, and it differs from all others. So are lists of "
        "rare words. It looks within one response only: every response may be the same.",
        "zebra quartz lamp onion",
        1.0,
    ),
    "model.preference": Notes(
        "your model",
        "It knows texts like those of its pairs and guesses about others: praise, length, lists "
        "and set phrases that stood in chosen texts, repeated. Optimised hard, its value goes on "
        "rising while the text gets worse; [reward-model.md](reward-model.md) measures it. "
        "Keep a judge of another make beside it, a `kl.coef` that holds, and a `clip`.",
        "",
        None,
    ),
    "structure.word_count": Notes(
        "words",
        "It counts; any filler does. Without `slack` there is no slope to climb: a policy that "
        "never falls into the range sees nothing but 0.",
        "la la la la",
        1.0,
    ),
    "structure.sentences": Notes(
        "words",
        "Punctuation makes the sentence: one-word sentences count. Dialogue, lists and lines "
        "without a full stop are counted wrong, and rules about abbreviations are English.",
        "x.",
        1.0,
    ),
    "structure.ends_cleanly": Notes(
        "words",
        "Only the last character counts: a full stop anywhere, then the end of the text. Ending "
        "at once is the surest way; put a least length beside it.",
        "and then the.",
        1.0,
    ),
    "structure.json_schema": Notes(
        "words",
        "The emptiest JSON that the schema accepts. State types, `minLength`, `enum` and "
        "`additionalProperties: false`, or they are not asked for. `partial` pays for any JSON at "
        "all, a bare number too. A small model that never writes JSON sees nothing but 0.",
        '{"name": null}',
        1.0,
    ),
    "structure.format": Notes(
        "words",
        "The shortest text that matches. There is no credit for coming close, so a pattern that "
        "the model never hits by chance teaches nothing.",
        "x x x.",
        1.0,
    ),
    "structure.repetition": Notes(
        "words",
        "Nothing repeats in a response of fewer than n words, and a phrase that is varied in one "
        "word is new. It looks within one response only: every response may be the same.",
        "rain rain rain",
        0.0,
    ),
    "style.sentiment": Notes(
        "small model",
        "Both backends add words up: praise in a row beats a happy story, and negation, irony "
        "and quotation are misread. The classifier learnt from film reviews and takes their "
        "vocabulary for mood. Measure with the other backend at weight 0.",
        "An excellent, wonderful, perfect waste of time.",
        0.77,
    ),
    "style.classifier": Notes(
        "your model",
        "Whatever the model takes for its label off its training data: long, polite or list-like "
        "answers for many reward models, single strong words for sentiment models. A raw `logit` "
        "has no ceiling, so the search for such texts never ends: give it a `clip`.",
        "",
        None,
    ),
    "style.readability": Notes(
        "words",
        "Short words and short sentences, with or without meaning; at 1 it is satisfied. "
        "Syllables come from hyphenation, which finds a single one in nonsense without vowels.",
        "Zxq brr tk.",
        1.0,
    ),
    "topic.classifier": Notes(
        "embedding",
        "It only has to be nearer to this label than to the others: with few labels almost "
        "anything is, and a low `temperature` makes it sure. The label itself is the best text.",
        "sports",
        1.0,
    ),
    "topic.similarity": Notes(
        "embedding",
        "The words of the topic, best alone: naming it beats writing about it, and denying it "
        "counts as well. Put a `clip` at what a good text reaches (`clip: [0, 0.4]`) and "
        "`structure.repetition` beside it.",
        "There is no outer space in this text.",
        0.72,
    ),
}

INTRODUCTION = """\
# Rewards

This page is generated from the registry: `rlalign rewards list --markdown > docs/rewards.md`.

A reward is a number for each response. An entry of a configuration's `rewards` names its kind, its
weight and its parameters, and adds `weight * clip(scale * value)` to the score; what an entry takes
beside the parameters below is in [configuration.md](configuration.md#rewards).

## A reward in five minutes

[README.md](../README.md#write-your-own-reward) takes a reward of your own from an empty file to a
run, and [CONTRIBUTING.md](../CONTRIBUTING.md#adding-a-reward) a built-in one. The tools on the way:

```bash
rlalign rewards show topic.similarity
rlalign rewards test my_rewards.py
rlalign rewards probe --config my_run.yaml "Where is it?" "Here."
rlalign rewards bench my.questions --reward_files my_rewards.py
```

- `test` runs every reward of a file, with its `example`, through the checks of the contract: it can
  be loaded; one value a sample (`length`), finite, within its bounds; the same when called again
  (`determinism`), in another order and alone (`order`); credit of spans that stands whatever the
  text goes on with (`causal`); and it copes with an empty text, emoji and 10,000 characters. The
  exit code is 5 where one fails. There is no deadline: a reward that hangs, hangs the test.
- `probe` scores texts of yours. Where a reward returns spans it shows them in the text, green where
  they earn and red where they cost, or as a list where there is no colour (`NO_COLOR`, a pipe).
  `--columns '{"opening": "Once"}'` gives the columns that a reward reads.
- `bench` measures texts a second, loading time and memory, each reward in a process of its own. It
  fetches nothing: what has no model at hand is listed as skipped.

## Rewards in a package

A package of yours adds rewards to every configuration on the machine through an entry point in the
group `rlalign.rewards`, whose value is the module that holds the `@reward` functions:

```toml
[project.entry-points."rlalign.rewards"]
example = "example_rewards"
```

`tests/example_plugin/` is such a package, complete. Its kinds are listed, shown, tested and named
like the built-in ones. A plug-in that cannot be imported, or that defines a kind which is there
already, is left out as a whole, with a warning that names both places.

## When rewards are hacked

PPO finds the cheapest text that scores, and cheap is what the reference model finds likely. Where
something else than you meant meets a reward, it will be found, sooner with a large weight, a small
`kl.coef` and many iterations. Each reward below says how it is fooled, with a text that does it.
The signs:

- **The samples grow alike.** `eval/distinct2` falls, the same phrase stands at the same place in
  many responses. Read `samples.jsonl` before the curves.
- **`kl/ref` rises faster than the score**, or goes on rising after the score has levelled off.
- **`length` runs** to 1 or to `sampling.max_new_tokens`: some reward pays for length, not the one
  that you had in mind.
- **A judge disagrees.** The score rises and another measure of the same thing does not.

What helps, with what it costs:

- **A judge**: a second reward for the same thing, of another make, with `weight: 0`. It is measured
  and never optimised, so it stays honest. `style.sentiment` has two backends for this.
- **A ceiling**: `clip: [0, 0.4]` in the entry stops paying where a good text already is. Above it
  there is no slope, so put it where you would stop reading for more.
- **Opponents**: a reward that the trick loses under. Rates and topics go with
  `structure.repetition` and a least `structure.word_count`; endings and exclusions, which like
  silence, with a least length; lists of words with `style.readability` or a classifier of yours.
- **A higher `kl.coef`**: every trick costs KL. It costs the honest part of the reward, too.
- **Held-out prompts**: `rlalign eval` scores prompts that were never trained on. It shows
  over-fitting to prompts, not a hacked reward: a trick works on every prompt.

None of these proves that a reward is sound. What the policy does is what the rewards, literally
read, ask for.

## What they cost

| class | what it does | order of magnitude on one CPU core |
|---|---|---|
| words | string operations, no model | thousands of texts a second or more, a few MB |
| small model | a word list, or a linear classifier | thousands of texts a second, 200 MB |
| embedding | a sentence encoder of 22 million weights | tens of texts a second, 500 MB |
| its parts | what they do | their sum |
| your model | a forward pass of the model that you name | see `bench` |

Memory counts the libraries that a run without the reward would not have imported.
`rlalign rewards bench` says what it is on your machine, for texts of about 24 words.
"""


def rewards_page() -> str:
    """The page of the kinds that come with the project, a section for each family."""
    parts = [INTRODUCTION]
    for family, about in FAMILIES.items():
        parts.append(f"## {family}: {about}\n")
        parts += [_section(kind) for kind in built_in() if kind.startswith(f"{family}.")]
    return "\n".join(parts)


def built_in() -> list[str]:
    """The kinds that come with the project, without those of plug-ins and files."""
    return [k for k in registry.kinds() if registry.get(k).target.__module__ in _MODULES]


_MODULES = {f"rewards.{family}" for family in FAMILIES} | {"rewards.preference"}


def _section(kind: str) -> str:
    spec, notes = registry.get(kind), NOTES[kind]
    described = registry.describe(kind)
    reads = ", ".join(f"`{name}`" for name in described.data) or "what its parts read"
    bounds = f"{spec.bounds[0]:g} to {spec.bounds[1]:g}" if spec.bounds else "none in general"
    example = {name: value for name, value in (spec.example or {}).items() if name != "data"}
    entry = yaml.safe_dump(
        {"kind": kind, **example}, default_flow_style=True, sort_keys=False, width=10_000
    )
    facts = [
        f"### {kind}\n\n{spec.doc}\n",
        f"- Bounds: {bounds}. Reads: {reads}. Cost: {notes.cost}.",
        f"- Example: `{entry.strip()}`",
        f"- Fooled by: {notes.fooled}{_trick(notes)}",
    ]
    return "\n".join(facts) + "\n" + "".join(_parameters(spec))


def _trick(notes: Notes) -> str:
    if notes.value is None:
        return ""
    return f" `{notes.trick}` gets {notes.value:.2f} under the example's settings."


def _parameters(spec: RewardSpec) -> Iterator[str]:
    described = registry.describe(spec.kind).parameters
    if described:
        yield "\n| parameter | type | default | meaning |\n|---|---|---|---|\n"
    for one in described:
        defaults = spec.signature.defaults
        default = f"`{json.dumps(defaults[one.name])}`" if one.name in defaults else "required"
        cells = (f"`{one.name}`", f"`{one.type}`", default, one.doc)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
