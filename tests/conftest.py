"""Numbers do not depend on the machine: one thread, float32. No reward outlives its test."""

from collections.abc import Iterator

import pytest
import torch

from rewards import registry

torch.set_num_threads(1)
# `auto` is float32 also on a processor with bfloat16 units. Here, not in a fixture: those of a
# module train before those of a test are set up.
torch.cpu.get_capabilities = dict  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """What a test registers is gone after it."""
    specs, files = dict(registry._specs), dict(registry._files)
    yield
    registry._specs.clear()
    registry._specs.update(specs)
    registry._files.clear()
    registry._files.update(files)
