"""A stand-in for vLLM beneath TRL's own VLLMGeneration, whose code runs as it is.

It has what TRL touches of vLLM: `LLM`, `SamplingParams`, and the client of a server. Each holds a
model of its own, which draws, and knows of the policy only what was sent to it. As vLLM does, it
takes a second EOS from the model's generation_config, and one `seed` for every prompt alike.
"""

import math
import os
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import oracle
import torch
from trl.generation import vllm_generation

from rlalign.generation import DecodeEngine
from rlalign.policy import Policy
from rlalign.types import PromptBatch


@dataclass
class SamplingParams:
    """vLLM's names; its defaults."""

    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int = 16
    logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False


class Served:
    """The model in vLLM: its weights are those on the disk until others are sent."""

    def __init__(self) -> None:
        self.lm = oracle.language_model(seed=99)
        self.received: dict[str, torch.Tensor] = {}
        self.pushes = 0
        self.asked: list[SamplingParams] = []
        self.prompts: list[list[int]] = []
        self.asleep = False

    def load_weights(self, pairs) -> None:
        own = dict(self.lm.named_parameters())
        for name, value in pairs:
            self.received[name] = value.clone()
            with torch.no_grad():
                own[name].copy_(value)

    def lose_weights(self) -> None:
        with torch.no_grad():
            for p in self.lm.parameters():
                p.fill_(math.nan)

    def draw(self, prompts: list[list[int]], params: SamplingParams) -> list[Any]:
        """vLLM's CompletionOutputs, `n` to a prompt in a row."""
        self.asked.append(params)
        self.prompts = prompts
        rows = [row for row in prompts for _ in range(params.n)]
        policy = Policy(self.lm, temperature=params.temperature, reference="none")
        engine = DecodeEngine(
            oracle.tokenizer(), max_new_tokens=params.max_tokens, stop=params.stop or ()
        )
        engine.sync(policy)
        if params.seed is None:  # the process's global generator, as a colocated vLLM
            seeds, batches = [int(torch.randint(2**62, ()))], [rows]
        else:
            seeds, batches = [params.seed] * len(rows), [[row] for row in rows]
        outputs = []
        for seed, batch in zip(seeds, batches, strict=True):
            generator = torch.Generator().manual_seed(seed)
            drawn = engine.generate(padded(batch), 1, generator)
            for ids, mask, logprobs in zip(
                drawn.response_ids, drawn.response_mask, drawn.logprobs, strict=True
            ):
                outputs.append(completion(ids[mask].tolist(), logprobs[mask].tolist()))
        return [self._ended(output, params) for output in outputs]

    def _ended(self, output: Any, params: SamplingParams) -> Any:
        if not params.ignore_eos:
            extra = self.lm.generation_config.eos_token_id
            for i, token in enumerate(output.token_ids):
                if token in (extra if isinstance(extra, list) else []):
                    return completion(output.token_ids[: i + 1], output.plain[: i + 1])
        else:
            assert params.stop_token_ids == [oracle.EOS]
        return output


def padded(rows: list[list[int]]) -> PromptBatch:
    width = max(map(len, rows))
    ids = torch.tensor([[oracle.EOS] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return PromptBatch(ids, mask, [""] * len(rows), {})


def completion(ids: list[int], logprobs: list[float]) -> Any:
    """A CompletionOutput with, at each token, a likelier one of another id in the first rank."""
    entries = [
        {
            (token + 1) % 6: SimpleNamespace(logprob=value / 2, rank=1),
            token: SimpleNamespace(logprob=value, rank=2),
        }
        for token, value in zip(ids, logprobs, strict=True)
    ]
    return SimpleNamespace(token_ids=ids, logprobs=entries, plain=logprobs)


class LLM:
    def __init__(self, served: Served, **arguments: Any) -> None:
        self.served, self.arguments = served, arguments
        runner = SimpleNamespace(model=served)
        worker = SimpleNamespace(model_runner=runner)
        executor = SimpleNamespace(driver_worker=worker)
        self.llm_engine = SimpleNamespace(model_executor=executor)

    def reset_prefix_cache(self) -> None:
        self.served.pushes += 1  # TRL's last act of a push

    def wake_up(self, tags: list[str]) -> None:
        self.served.asleep = False

    def sleep(self, level: int) -> None:
        self.served.asleep = True
        self.served.lose_weights()

    def generate(self, prompts: Any, sampling_params: Any, use_tqdm: bool) -> list[Any]:
        rows = [prompt["prompt_token_ids"] for prompt in prompts]
        assert sampling_params.n == 1 and not self.served.asleep
        outputs = self.served.draw(rows, sampling_params)
        return [
            SimpleNamespace(prompt_token_ids=row, outputs=[output])
            for row, output in zip(rows, outputs, strict=True)
        ]


@dataclass
class Client:
    """TRL's client of a server, without the server."""

    served: Served
    base_url: str
    group_port: int
    connection_timeout: float
    logprobs_mode: str = "processed_logprobs"
    calls: list[str] = field(default_factory=list)

    def init_communicator(self, device: Any) -> None:
        self.calls.append("init_communicator")

    def get_server_info(self) -> dict[str, Any]:
        return {"model_config": {"logprobs_mode": self.logprobs_mode}}

    def update_named_params(self, metadata: Any, named_params: Any) -> None:
        sent = list(named_params)
        assert [name for name, *_ in metadata] == [name for name, _ in sent]
        self.served.load_weights(sent)

    def reset_prefix_cache(self) -> None:
        self.served.pushes += 1

    def generate(
        self, prompts: Any, features: Any, generation_kwargs: Any, structured_outputs_regex: Any,
        **sampling: Any,
    ) -> dict[str, Any]:  # fmt: skip
        outputs = self.served.draw(prompts, SamplingParams(**sampling, **generation_kwargs))
        logprobs, ids = vllm_generation.extract_logprobs([SimpleNamespace(outputs=outputs)])
        return {
            "prompt_ids": prompts,
            "completion_ids": [output.token_ids for output in outputs],
            "logprobs": logprobs,
            "logprob_token_ids": ids,
        }


def install(monkeypatch: Any, logprobs_mode: str = "processed_logprobs") -> Served:
    """Put the stand-in beneath TRL; what is served, and by what it was started."""
    served = Served()

    def start(**arguments: Any) -> LLM:
        served.llm = LLM(served, **arguments)
        return served.llm

    def connect(**arguments: Any) -> Client:
        served.client = Client(served, logprobs_mode=logprobs_mode, **arguments)
        return served.client

    monkeypatch.setattr(os, "environ", os.environ.copy())  # TRL sets RANK and its like for good
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", start, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SamplingParams, raising=False)
    monkeypatch.setattr(vllm_generation, "VLLMClient", connect)
    monkeypatch.setattr(vllm_generation, "empty_cache", lambda: None)
    return served
