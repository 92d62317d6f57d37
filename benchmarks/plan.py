"""Which jobs make each table, and how long one is likely to take."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.models import SHAPES
from benchmarks.settings import GRPO, LEARNING, OURS, PPO, Job, Setting

TABLES = ("systems", "score", "ablation", "growth")
# Shares of the minutes by whose end each table must be through; what one leaves the next has.
UNTIL = {"systems": 0.5, "score": 0.75, "ablation": 0.88, "growth": 1.0}

TARGET = 1.0  # different words a response of the race's 16 tokens; SmolLM2 starts at about 0.2
RACE_LENGTH = 16  # so that three systems get there within minutes on two cores
CUT_OFF = 5  # times our own seconds, after which another system is stopped


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    model: str = "smollm2-135m"
    threads: int = 2
    dtypes: Sequence[str] = ("float32",)
    iterations: int = 3  # the first is not counted
    full: bool = False
    quick: bool = False
    systems: Sequence[str] = (OURS, PPO, GRPO)
    techniques: Sequence[str] = ()
    has_bfloat16: bool = False

    def setting(self, **changes: Any) -> Setting:
        base = Setting(
            model=self.model,
            threads=self.threads,
            dtype=self.dtypes[0],
            iterations=self.iterations,
        )
        if self.quick:
            base = base.of(samples=8, response_length=8, generations=4)
            changes = {k: v for k, v in changes.items() if k not in ("response_length", "samples")}
        return base.of(**changes)


def jobs(table: str, options: Options) -> list[Job]:
    return {"systems": systems, "score": score, "ablation": ablation, "growth": growth}[table](
        options
    )


def systems(options: Options) -> list[Job]:
    """Every system under the same settings; ours before and after the others, so noise shows."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("LoRA, full length", {}),
        ("LoRA, mixed lengths", {"regime": "mixed", "response_length": 64}),
        ("full fine-tune, full length", {"lora": None}),
    ]
    if options.full:
        mixed = {"lora": None, "regime": "mixed", "response_length": 64}
        kinds.append(("full fine-tune, mixed lengths", mixed))
    if options.quick:
        kinds = kinds[:1]
    order = [s for s in (OURS, PPO, GRPO) if s in options.systems]
    if OURS in order and len(order) > 1 and not options.quick:
        order.append(OURS)
    found = []
    for round_ in range(2 if options.full else 1):
        for name, changes in kinds:
            # The first setting in every precision; the others, by default, in the fastest.
            in_all = options.full or name == kinds[0][0]
            for dtype in options.dtypes if in_all else options.dtypes[-1:]:
                seen: dict[str, int] = {}
                for system in order:
                    repeat = round_ * order.count(system) + seen.get(system, 0)
                    seen[system] = seen.get(system, 0) + 1
                    has_floors = system == OURS and repeat == 0
                    setting = options.setting(
                        system=system, dtype=dtype, floors=has_floors, **changes
                    )
                    found.append(Job("systems", f"{name}, {dtype}", setting, repeat))
    return found


def score(options: Options) -> list[Job]:
    """The same start and the same target; ours first, because its time is the others' measure."""
    if options.quick:
        options = replace(options, systems=options.systems[:1])
    found = []
    target = 0.01 if options.quick else TARGET
    for seed in range(3 if options.full else 1):
        for system in [s for s in (OURS, PPO, GRPO) if s in options.systems]:
            setting = options.setting(
                system=system, seed=seed, target=target, iterations=200,
                response_length=RACE_LENGTH, dtype=options.dtypes[-1], **LEARNING[system],
            )  # fmt: skip
            found.append(Job("score", f"seed {seed}", setting))
    return found


def ablation(options: Options) -> list[Job]:
    from benchmarks.ablation import TECHNIQUES

    found = []
    some = ["compaction", "response_logits"] if options.quick else list(TECHNIQUES)
    for name in options.techniques or some:
        technique = TECHNIQUES[name]
        if technique.needs_bfloat16 and not options.has_bfloat16 and not options.techniques:
            continue
        rounds = options.iterations + (3 if options.full else 0)
        size = {} if options.full or technique.phase == "generation" else {"samples": 16}
        setting = options.setting(
            technique=name, iterations=rounds, epochs=1, dtype=options.dtypes[-1],
            **(size | technique.setting),
        )  # fmt: skip
        found.append(Job("ablation", name, setting))
    return found


GROWTH = {
    "prompt_length": (8, 64, 256),
    "response_length": (16, 32, 128),
    "samples": (16, 32, 64),
    "model": tuple(SHAPES),
    "processes": (1, 2),
}


def growth(options: Options) -> list[Job]:
    """One thing grows at a time, from a small base that is measured once."""
    model = "llama-135m" if options.full else "llama-35m"
    base = options.setting(model=model, prompt_length=8, iterations=3 if options.full else 2)
    axes = GROWTH
    if not options.full:
        axes = GROWTH | {"model": ("llama-10m", "llama-35m", "llama-135m")}
    if options.quick:
        base = base.of(model="llama-10m")
        axes = {"processes": (2,)}
    found: dict[Setting, Job] = {}
    for axis, values in axes.items():
        for value in values:
            setting = base.of(**{axis: value})
            found.setdefault(setting, Job("growth", f"{axis}={value}", setting))
    return list(found.values())


# -- how long --------------------------------------------------------------------------------------

WEIGHTS = {"smollm2-135m": 106e6, "glass-tiny": 0.8e6, "llama-10m": 2e6, "llama-35m": 13e6,
           "llama-135m": 106e6, "llama-360m": 315e6}  # fmt: skip
HEADS = {"llama-10m": 8e6, "llama-35m": 19e6, "llama-360m": 47e6, "glass-tiny": 0.1e6}
HEAD = 28e6
RACE_ITERATIONS = 15  # of ours, as a guess
START = 25.0  # seconds before the first iteration


# Seconds over those of the FLOP at the float32 rate. Rough: every row that ends corrects its own.
SLOWER = {
    (OURS, "float32"): 1.3,
    (PPO, "float32"): 1.7,
    (GRPO, "float32"): 1.8,
    (OURS, "bfloat16"): 0.5,
    (PPO, "bfloat16"): 0.9,
    (GRPO, "bfloat16"): 1.0,
}


@dataclass
class Clockwork:
    """Guesses seconds from FLOP, and learns from each job how wrong it was."""

    flop_s: float  # of one large product in float32
    slower: dict[tuple[str, str], float] = field(default_factory=lambda: dict(SLOWER))

    def guess(self, job: Job) -> float:
        """Seconds that the job is likely to take; one that has a time to end by takes it whole."""
        if job.setting.seconds is not None:
            return START + job.setting.seconds
        kind = (job.setting.system, job.setting.dtype)
        return START + self.slower[kind] * work(job.setting) / self.flop_s

    def learn(self, job: Job, took: float) -> None:
        if job.setting.target is not None or job.setting.technique is not None:
            return  # these do another amount of work than whole iterations
        measured = max(took - START, 1.0) * self.flop_s / work(job.setting)
        kind = (job.setting.system, job.setting.dtype)
        self.slower[kind] = (self.slower[kind] + measured) / 2


def work(setting: Setting) -> float:
    """FLOP of all iterations; see floors for the parts of one."""
    weights = WEIGHTS.get(setting.model, 300e6) + HEADS.get(setting.model, HEAD)
    answers = setting.samples * setting.response_length
    tokens = answers + setting.samples * setting.prompt_length
    update = (4 if setting.lora else 6) * setting.epochs
    iterations = setting.iterations if setting.target is None else RACE_ITERATIONS
    if setting.technique is not None:
        from benchmarks.ablation import TECHNIQUES

        learning = 0 if TECHNIQUES[setting.technique].phase == "generation" else 4 + update
        return 2 * iterations * weights * (2 + learning) * tokens
    return iterations * weights * (2 * answers + (4 + update) * tokens)


def with_cut_off(job: Job, own_seconds: float | None, room: float) -> Job:
    """Another system's race ends at a multiple of our seconds, or at the end of the time there is.

    Where there is no time even for ours twice over, the job is left as long as it would be.
    """
    if job.table != "score" or job.setting.system == OURS or own_seconds is None:
        return job
    seconds = CUT_OFF * own_seconds
    if 2 * own_seconds <= room - START < seconds:
        seconds = room - START
    return replace(job, setting=job.setting.of(seconds=seconds))


def left(jobs: Iterable[Job], clockwork: Clockwork) -> float:
    """Seconds that jobs still need, as far as it is known."""
    return sum(clockwork.guess(job) for job in jobs)
