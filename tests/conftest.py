"""One thread, so that numbers do not depend on the machine; no reward outlives its file."""

from collections.abc import Iterator

import pytest
import torch

from rewards import registry

torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def registry_of_the_file() -> Iterator[None]:
    """What the tests of a file register is gone after them, whatever runs next."""
    specs, files = dict(registry._specs), dict(registry._files)
    yield
    registry._specs.clear()
    registry._specs.update(specs)
    registry._files.clear()
    registry._files.update(files)
