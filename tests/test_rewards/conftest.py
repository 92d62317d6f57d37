import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rewards import classifiers

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "the", "moon", "user", "answer"]


@pytest.fixture(scope="session")
def classifier_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with three labels, random but fixed, as a directory for `from_pretrained`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        id2label={0: "NEGATIVE", 1: "neutral", 2: "Positive"},
        label2id={"NEGATIVE": 0, "neutral": 1, "Positive": 2},
        initializer_range=0.5,
    )
    directory = tmp_path_factory.mktemp("classifier")
    BertForSequenceClassification(config).save_pretrained(directory)
    fast.save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True)
def cpu() -> Iterator[None]:
    yield
    classifiers.set_device("cpu")


class StubServer:
    """A local HTTP server; `answer(n, body)` says what request n (from 1) gets.

    JSON for a 200, or (status, headers, body); an iterator of bytes in place of all or of the body
    is sent piece by piece; None hangs up without a word. It keeps what was sent, and the most
    requests that it had at a time.
    """

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.headers: list[Mapping[str, str]] = []
        self.paths: list[str] = []
        self.times: list[float] = []  # of time.monotonic, when each request had arrived
        self.peak = 0
        self.closing = threading.Event()
        self.answer: Callable[[int, Any], Any] = lambda n, body: None
        self._now, self._lock = 0, threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def requests(self) -> int:
        return len(self.bodies)

    def hold(self, seconds: float) -> None:
        """Sleep, but not beyond the test."""
        self.closing.wait(seconds)

    def gather(self, size: int) -> None:
        """Wait until `size` requests were here at a time, and then for more that shouldn't come."""
        until = time.monotonic() + 5
        while self.peak < size and time.monotonic() < until:
            self.hold(0.01)
        self.hold(0.1)

    def close(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub._lock:
                    stub.bodies.append(body)
                    stub.headers.append(dict(self.headers))
                    stub.paths.append(self.path)
                    stub.times.append(time.monotonic())
                    number = len(stub.bodies)
                    stub._now += 1
                    stub.peak = max(stub.peak, stub._now)
                try:
                    answer = stub.answer(number, body)
                finally:
                    with stub._lock:
                        stub._now -= 1
                with suppress(OSError):  # a client that has given up is no error here
                    self._send(answer)

            def _send(self, answer: Any) -> None:
                if answer is None:
                    return
                if isinstance(answer, Iterator):
                    self._send_pieces(answer)
                    return
                if not isinstance(answer, tuple):
                    answer = (200, {}, json.dumps(answer).encode())
                status, headers, content = answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self._send_pieces([content] if isinstance(content, bytes) else content)

            def _send_pieces(self, pieces: Iterable[bytes]) -> None:
                for piece in pieces:
                    self.wfile.write(piece)
                    self.wfile.flush()

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    stub = StubServer()
    yield stub
    stub.close()
