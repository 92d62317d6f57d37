"""What docs/rewards.md says of each built-in reward beyond what its code says."""

from dataclasses import dataclass

FAMILIES = {
    "lexical": "which words a response holds",
    "structure": "what form it has",
    "style": "how it is written",
    "topic": "what it is about",
    "model": "what a network says that was trained on preferences",
    "combine": "several rewards as one",
    "remote": "what a server says",
    "judge": "what a chat model says",
    "trl": "what comes with TRL",
}


@dataclass(frozen=True)
class Notes:
    """What the code of a reward does not say."""

    cost: str  # a class that the page explains
    fooled: str  # how the value rises without what was meant
    trick: str  # a text that does it under the example's settings
    value: float | None  # what the trick earns there; None where the model is one of yours
    spans: bool = False  # whether it says which words earned it


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
        spans=True,
    ),
    "lexical.excludes": Notes(
        "words",
        "A synonym, another form or a misspelling is free, and so is saying nothing: an empty "
        "response has full marks. With `count` every further word is a risk, so responses may "
        "shrink.",
        "Extremely nice, v3ry nice.",
        1.0,
        spans=True,
    ),
    "lexical.word_rate": Notes(
        "words",
        "Repetition is the optimum: a response of the one word has rate 1. Short responses are the "
        "second way there, as every other word dilutes. It needs a bound (`clip`, such as "
        "`clip: [0, 0.2]`), `structure.repetition` and a least length beside it.",
        "rain rain rain",
        1.0,
        spans=True,
    ),
    "lexical.pattern": Notes(
        "words",
        "Whatever the pattern allows by accident: with `\\w*` the longest nonsense, with `count` "
        "the same match over and over.",
        "moonmoonmoon",
        1.0,
        spans=True,
    ),
    "lexical.diversity": Notes(
        "words",
        "Short responses: two words are one pair, and it differs from all others. So are lists of "
        "rare words. It looks within one response only: every response may be the same.",
        "zebra quartz lamp onion",
        1.0,
        spans=True,
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
        spans=True,
    ),
    "structure.sentences": Notes(
        "words",
        "Punctuation makes the sentence: one-word sentences count. Dialogue, lists and lines "
        "without a full stop are counted wrong, and rules about abbreviations are English.",
        "x.",
        1.0,
        spans=True,
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
        spans=True,
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
    "style.trained": Notes(
        "its method",
        "Whatever parts the labels in your examples, which need not be what you mean: under TF-IDF "
        "single endings and punctuation marks, strewn into any text. Texts unlike the examples get "
        "an answer too, and a sure one. Put texts of the model that you train among the examples.",
        "It is requested that the of the upon the.",
        1.0,
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
    "topic.trained": Notes(
        "its method",
        "It only has to be more like this label's examples than the others': texts unlike any of "
        "them get an answer too. Lists of the topic's words do best. An own label for everything "
        "else helps, and so do texts of the model that you train.",
        "planets planets planets",
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
    "remote.http": Notes(
        "a server",
        "Whatever fools what the server computes. A server that changes while a run goes on moves "
        "the target under it: pin its version.",
        "",
        None,
    ),
    "judge.openai": Notes(
        "a server",
        "Text that talks to the judge, however it is fenced in, and what judges like in general: "
        "length, lists, confident words. Keep a reward of another make beside it with weight 0.",
        "",
        None,
    ),
    "trl.accuracy_reward": Notes(
        "mathematics",
        "A guess is as good as a proof: where answers are few or small, guessing pays. Several "
        "boxed answers are read as one of them.",
        r"No reasons: \boxed{\frac{1}{3}}",
        None,
    ),
    "trl.get_cosine_scaled_reward": Notes(
        "mathematics",
        "A long wrong answer costs less than a short one: where the answers are out of reach, "
        "filling the response up is the optimum.",
        "",
        None,
    ),
    "trl.get_repetition_penalty_reward": Notes(
        "words",
        "Fewer tokens than an n-gram cost nothing, so the shortest response is safe, and so is one "
        "that repeats with small changes.",
        "",
        None,
    ),
    "trl.get_soft_overlong_punishment": Notes(
        "words",
        "It asks for nothing but an end: an empty response has full marks.",
        "",
        None,
    ),
    "trl.reasoning_accuracy_reward": Notes(
        "mathematics",
        "The reasoning may be empty or wrong: only what stands behind the delimiter counts.",
        "",
        None,
    ),
    "trl.think_format_reward": Notes(
        "words",
        "The tags are all that it reads: a block with nothing in it has full marks.",
        "<think></think>",
        1.0,
    ),
}
