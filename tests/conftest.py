"""One thread, so that numbers do not depend on the machine; no reward outlives its test."""

from collections.abc import Iterator

import pytest
import torch

from rewards import registry

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """What a test registers is gone after it."""
    specs, files = dict(registry._specs), dict(registry._files)
    yield
    registry._specs.clear()
    registry._specs.update(specs)
    registry._files.clear()
    registry._files.update(files)
