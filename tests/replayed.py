"""Static caches as on a GPU, without one: steps replayed by a stand-in for a CUDA graph."""

from rlalign.generation.caches import StaticBuffers


class Replayed:
    """Stands for a CUDA graph: it reads and writes the same tensors every time."""

    def __init__(self, buffers, rows: int) -> None:
        self.buffers, self.rows = buffers, rows
        self.state = buffers._forward(rows, buffers.length)

    def replay(self) -> None:
        again = self.buffers._forward(self.rows, self.buffers.length)
        for kept, x in zip(self.state, again, strict=True):
            if x is not None:
                kept.copy_(x)


def replay_steps(monkeypatch) -> list[int]:
    """Decode as on a GPU, graphs replaced; the numbers of rows that were captured."""
    captured = []

    def capture(buffers, rows):
        captured.append(rows)
        graph = Replayed(buffers, rows)
        return graph, graph.state

    monkeypatch.setattr(StaticBuffers, "_captured", capture)
    make = StaticBuffers.__init__

    def made(buffers, *given):
        make(buffers, *given)
        buffers.replays = True

    monkeypatch.setattr(StaticBuffers, "__init__", made)
    return captured
