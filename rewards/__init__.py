"""What a completion is worth: rewards by name, and everything that is needed to add one."""

from rewards import (
    combine,
    conformance,
    judge,
    lexical,
    preference,
    remote,
    structure,
    style,
    topic,
    trl,
)
from rewards.compose import RewardEntry, RewardOutput, RewardSet, parse_entries
from rewards.contract import Failure, RewardConfigError, RewardError, Score, Span
from rewards.entries import entries_json_schema
from rewards.registry import (
    check_params,
    describe,
    from_function,
    get,
    json_schema,
    kinds,
    load_file,
    reward,
    trl_reward,
)
from rewards.waiting import alive

__all__ = [
    "Failure",
    "RewardConfigError",
    "RewardEntry",
    "RewardError",
    "RewardOutput",
    "RewardSet",
    "Score",
    "Span",
    "alive",
    "check_params",
    "combine",
    "conformance",
    "describe",
    "entries_json_schema",
    "from_function",
    "get",
    "json_schema",
    "judge",
    "kinds",
    "lexical",
    "load_file",
    "parse_entries",
    "preference",
    "remote",
    "reward",
    "structure",
    "style",
    "topic",
    "trl",
    "trl_reward",
]
