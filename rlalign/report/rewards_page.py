"""`docs/rewards.md`, written from the registry: `rlalign rewards list --markdown`."""

import json
from collections.abc import Iterator

import yaml

from rewards import registry
from rewards.spec import RewardSpec
from rlalign.report.rewards_notes import FAMILIES, NOTES, Notes

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
  (`determinism`), in another order and alone (`order`), from the same state, which survives being
  saved (`state`), where it keeps one; credit of spans that stands whatever the
  text goes on with (`causal`); and it copes with an empty text, emoji and 10,000 characters. The
  exit code is 5 where one fails. There is no deadline: a reward that hangs, hangs the test.
- `probe` scores texts of yours. Where a reward returns spans it shows them in the text, green where
  they earn and red where they cost, or as a list where there is no colour (`NO_COLOR`, a pipe).
  `--columns '{"opening": "Once"}'` gives the columns that a reward reads.
- `bench` measures texts a second, loading time and memory, each reward in a process of its own. It
  fetches nothing: what has no model at hand is listed as skipped.

## A classifier from your own examples

`rlalign rewards train` makes one from texts with labels; `topic.trained` and `style.trained` below
open it. [classifiers.md](classifiers.md) shows it from the file to the run.

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

## Credit for words

A reward may say which words earned it: `Score(1.0, [Span(start, end, 1.0)])`. What a span earns is
paid at the token that fixes the character at its `end`, the rest at the last token; the sum is the
score. The lists below say which kinds do so. PPO then need not find out which of forty tokens were
meant; the optimum stays the same, as long as credit depends on nothing behind `text[: end + 1]`.

- A sum of hits pays each where it is decided: `rain` at the space that rules out `rainbow`.
- What is no sum, as a rate over the final length, pays differences: `telescope([(start, end, value
  of the text up to here), ...])`. Shares of the final value would look ahead, and another optimum
  would be learnt; `rlalign rewards test` tries other endings and names the character.
- A model's opinion, a format, an ending and a combination are paid at the last token.
- `score.credit: last` pays everything there: the same target, to compare with.

## Rewards in a run that can be repeated

The same configuration gives the same numbers twice, and a resumed run those of an unbroken one.

- **Equal samples** of a batch are computed once; values are not kept from one batch to the next,
  where a resumed run would have scored other texts. `@reward(..., cache=False)` has each computed.
- **Random numbers.** The global generators of Python, numpy and torch are a reward's own while it
  is imported, built, loaded, called or awaited: the run's are not moved. In a run they are seeded
  for each call by `train.seed`, the iteration, the rank and the entry's name, in a worker too. By
  hand, `RewardSet(entries, seed=1)` seeds what is drawn while loading and `rewards(..., seed=2)`
  that of a call; without a seed the streams go on. A reward that calls others hands them one:
  `seed=random.getrandbits(63)`. Nobody can seed `os.urandom`, `default_rng()` without a seed, the
  clock, a server, threads of a reward's own, async tasks in the order of their answers, or torch
  where an isolated reward first imports it within a call (import it at the head of the file).
- **State.** A class whose values depend on what it has seen has `state_dict()`, which returns JSON
  (dicts with strings as keys, lists, strings, finite numbers, true, false, null), and
  `load_state_dict(state)`. `RewardSet.state_dict()` gathers them by entry, each process its own.
  Probes and evaluations leave no trace in it. Equal samples are each shown to such a reward. Keep
  it small: an isolated reward's is sent back after every call. `rlalign rewards test` takes it to
  a second reward (`state`). Without the two methods, what a class remembers is lost at a resume.

    ```python
    @reward("my.novelty")  # 1 for a text that no call before held, else 0
    class Novelty:
        def __init__(self) -> None:
            self.seen: set[str] = set()

        def __call__(self, completions: list[str]) -> list[float]:
            values = [float(text not in self.seen) for text in completions]
            self.seen.update(completions)
            return values

        def state_dict(self) -> dict:
            return {"seen": sorted(self.seen)}

        def load_state_dict(self, state: dict) -> None:
            self.seen = set(state["seen"])
    ```

- **Switches of the process.** What a reward changes is put back after each call, with one warning:
  the working directory, signal handlers and the alarm, numpy's handling of errors, torch's threads,
  default dtype and device, deterministic algorithms, recording of gradients, float32 precision and
  cuDNN's algorithms. Not put back: environment variables, `sys.path`, patched modules, torch's
  threads between operations and `set_flush_denormal`. What a reward changes in the middle of a call
  is seen by the reference, which a GPU computes at the same time. `isolate: true` keeps all of it
  in another process.

## Rewards that hang or crash

Under `isolate: true` a reward runs in a worker process. A call that takes longer than `deadline`
(30 seconds), crashes or fills its pipe ends the worker at once, with every process that it started
(those that cleared their environment excepted), and a new one starts. The batch's samples are then
tried one by one. Those that hang fail, under `on_error`; together they may cost five deadlines of a
batch, and then the run ends and names the first, whatever `on_error` says. `on_error: skip` and
`value` forgive a fifth of the samples of a batch, on each process.

A reward that hangs in this process, without `isolate`, cannot be stopped by it.

## When rewards are hacked

PPO finds the cheapest text that scores. Each reward below says how it is fooled, with a text that
does it; [reward-hacking.md](reward-hacking.md) says how a run shows it, which warnings it gives,
and what to do.

## What they cost

| class | what it does | order of magnitude on one CPU core |
|---|---|---|
| words | string operations, no model | thousands of texts a second or more, a few MB |
| small model | a word list, or a linear classifier | thousands of texts a second, 200 MB |
| mathematics | parsing and comparing with sympy | some hundred texts a second, 160 MB |
| embedding | a sentence encoder of 22 million weights | tens of texts a second, 500 MB |
| its method | `tfidf` is a small model, `embedding` an embedding, `encoder` your model | theirs |
| its parts | what they do | their sum |
| your model | a forward pass of the model that you name | see `bench` |
| a server | requests over HTTP, several at a time | what the server and the network give |

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
    return [k for k in registry.kinds() if registry.get(k).target.__module__.startswith("rewards.")]


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
        f"- Credit: {'behind the words that earn it' if notes.spans else 'at the last token'}.",
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
