"""How long an iteration takes, by a short trial of the real model on the run's own prompts."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rewards.trl_style import Logged, context
from rlalign.algorithms.ppo import PPO
from rlalign.generation import decode_engine, sample_inverse_cdf
from rlalign.policy import micro_batches
from rlalign.scoring import sampled_ids, score_given
from rlalign.session import Session
from rlalign.settings.method_sections import PPORun
from rlalign.trainer import Trainer
from rlalign.types import Norm, Rollout

WRITING = 20.0  # seconds after which the trial's responses are cut
REPEATS, ENOUGH = 3, 4.0  # times that a pass is timed, and seconds after which no more
SLOW = 15.0  # seconds of a first pass that stands for the others


@dataclass(frozen=True)
class Seconds:
    """Seconds of one process, by phase of an iteration, and of an evaluation."""

    start: float  # building the session: models loaded, rewards tried
    generate: float
    rewards: float
    reference: float
    prepare: float
    update: float
    evaluation: float
    length: float  # tokens of a response that these hold for
    was_cut: bool  # the trial's responses did not end in time: the rest is taken as the limit

    @property
    def score(self) -> float:
        return self.rewards + self.reference

    @property
    def iteration(self) -> float:
        return self.generate + self.score + self.prepare + self.update

    def run(self, iterations: int, evaluations: int) -> float:
        """Seconds of a whole run, without its plots and checkpoints."""
        return self.start + iterations * self.iteration + evaluations * self.evaluation


def evaluations(config: PPORun) -> int:
    """How often a run evaluates: before, on the way and at its end."""
    every, iterations = config.eval.every, config.train.iterations
    return 1 + -(-iterations // every) if every else 0


class Stopwatch:
    """Draws as a run does and notes when; ends every response once the time is over."""

    def __init__(self, eos_id: int, limit: float) -> None:
        self.eos_id, self.limit = eos_id, limit
        self.times: list[float] = []  # at which each step's logits were there
        self.was_cut = False

    def __call__(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        self.times.append(time.perf_counter())
        ids, logprobs = sample_inverse_cdf(logits, uniform)
        if self.times[-1] - self.times[0] >= self.limit:
            self.was_cut = True
            ids = torch.full_like(ids, self.eos_id)
        return ids, logprobs


def probe(config: PPORun, processes: int = 1) -> Seconds:
    """Seconds by phase for one of `processes`, each with its share of the cores.

    The model is loaded, stepped at a learning rate of 0, and let go; the rewards are asked as at a
    run's start and once more. Processes are assumed not to wait for each other.
    """
    begun = time.perf_counter()
    with Session(config) as session:
        trainer = Trainer(session, PPO(config))
        start = time.perf_counter() - begun
        torch.set_num_threads(max(torch.get_num_threads() // processes, 1))
        per_prompt = config.sampling.samples_per_prompt
        share = config.train.samples // processes  # responses of this process
        wanted = max((config.sampling.batch_size or share) // per_prompt, 1)
        rollout, written, was_cut = write(session, min(wanted, share // per_prompt))
        factor = share / len(rollout)
        rewards = factor * ask_rewards(session, rollout)
        reference, prepare, update = passes(trainer, rollout, share)
        more = -(-config.eval.samples // processes) / share
        return Seconds(
            start=start,
            generate=factor * written,
            rewards=rewards,
            reference=reference,
            prepare=prepare,
            update=update,
            # Without the entropy, a pass of the policy costs what one of the reference does.
            evaluation=more * (factor * written + rewards + 2 * reference),
            length=float(rollout.response_mask.sum(1).float().mean()),
            was_cut=was_cut,
        )


def write(session: Session, prompts: int) -> tuple[Rollout, float, bool]:
    """Responses to the first prompts of a run, the seconds that they take, whether they were cut.

    Cut ones are filled up to the limit, so that later passes have their whole length.
    """
    sampling = session.config.sampling
    engine = decode_engine(sampling, session.tokenizer)  # vLLM would have to start first
    engine.sync(session.policy)
    batch = session.prompt_batch(0)
    batch = batch.rows(torch.arange(min(prompts, len(batch)), device=batch.prompt_ids.device))
    n, eos_id = sampling.samples_per_prompt, int(session.tokenizer.eos_token_id)

    def attempt(limit: float) -> tuple[Rollout, float, Stopwatch]:
        watch, begun = Stopwatch(eos_id, limit), time.perf_counter()
        rollout = engine.generate(batch, n, session.generator("doctor", 0), watch)
        return rollout, time.perf_counter() - begun, watch

    attempt(0.0)  # the first step of a model also fetches its weights
    rollout, seconds, watch = attempt(WRITING)
    if not watch.was_cut:
        return rollout, seconds, False
    steps = len(watch.times)
    later = watch.times[steps // 2 :]  # steps grow slower with the cache
    each = (later[-1] - later[0]) / max(len(later) - 1, 1)
    missing = sampling.max_new_tokens - steps
    return lengthened(rollout, steps, sampling.max_new_tokens), seconds + missing * each, True


def lengthened(rollout: Rollout, steps: int, limit: int) -> Rollout:
    """The rollout, what was cut at step `steps` repeated up to `limit` tokens."""
    places = torch.arange(limit, device=rollout.response_ids.device)
    length = rollout.response_mask.sum(1)  # (B,)
    length = torch.where(length >= steps, limit, length)
    mask = places < length.unsqueeze(1)  # (B, limit)
    times = -(-limit // steps)
    return replace(
        rollout,
        response_ids=rollout.response_ids[:, places % max(steps - 1, 1)],  # less the EOS that cut
        response_mask=mask,
        action_mask=mask,
        logprobs=None,
        texts=[
            text * times if n == limit else text
            for text, n in zip(rollout.texts, length.tolist(), strict=True)
        ],
    )


def ask_rewards(session: Session, rollout: Rollout) -> float:
    """Seconds of the rewards of a rollout: asked once, since some cost money."""
    prompts = rollout.prompts
    handed = context(sampled_ids(rollout), prompts.messages, session.trainer_state(0), Logged())
    begun = time.perf_counter()
    session.reward_set(list(prompts.texts), list(rollout.texts), {**prompts.columns, **handed}, 0)
    return time.perf_counter() - begun


def passes(trainer: Trainer, rollout: Rollout, share: int) -> tuple[float, float, float]:
    """Seconds of an iteration's reference, preparation and update, from one micro-batch of each."""
    session, config = trainer.session, trainer.session.config
    policy, budget, lengths = session.policy, session.budget, rollout.lengths
    every = float(lengths.sum()) * share / len(rollout)  # tokens of an iteration

    rows = micro_batches(lengths, budget)[0]
    part = rollout.rows(rows)
    scores = [0.0] * len(rows)
    tokens = float(lengths[rows].sum())
    reference = seconds_of(lambda: score_given(part, scores, policy, budget)) * every / tokens
    scored = score_given(part, scores, policy, budget)
    prepare = 0.0  # the sampler notes what a pass would give, except in lower precision
    if not policy.is_exact or config.sampling.engine == "vllm":
        prepare = seconds_of(lambda: trainer.objective.prepare(policy, scored)) * every / tokens

    minibatch = max(share // config.minibatches, 1)
    rows = micro_batches(lengths[:minibatch], budget)[0]
    part = rollout.rows(rows)
    tokens = float(lengths[rows].sum())
    scored = score_given(part, [0.0] * len(rows), policy, budget)
    batch, _ = trainer.objective.prepare(policy, scored)
    norm = Norm(tokens=float(part.action_mask.sum()), sequences=len(rows))

    def there_and_back() -> None:
        loss = trainer.objective.loss(policy, batch, norm).loss
        torch.autograd.backward(loss)

    def step() -> None:
        parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        trainer.optimizer.step()  # at the learning rate with which it was made, 0

    passing = (
        seconds_of(there_and_back)
        * every
        * config.steps_per_iteration
        / (config.minibatches * tokens)
    )
    return reference, prepare, passing + config.steps_per_iteration * seconds_of(step)


def seconds_of(job: Callable[[], object]) -> float:
    """Mean seconds of a job once it is warm; fewer repeats where it takes long."""
    first = timed(job)  # it also allocates, and fetches weights
    spent = [] if first < SLOW else [first]
    while not spent or (len(spent) < REPEATS and sum(spent) < ENOUGH):
        spent.append(timed(job))
    return sum(spent) / len(spent)


def timed(job: Callable[[], object]) -> float:
    begun = time.perf_counter()
    job()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun
