"""What the bridge does under a TRL that lacks it: asking a vLLM server how it was started."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from rlalign import trl_bridge


class Server(BaseHTTPRequestHandler):
    """Answers as vLLM does in its development mode, or as without it."""

    is_open = True

    def do_GET(self):
        parts = urlsplit(self.path)
        if parts.path != "/server_info" or not self.is_open:
            self.send_error(404)
            return
        assert parse_qs(parts.query) == {"config_format": ["json"]}
        body = json.dumps({"vllm_config": {"model_config": {"logprobs_mode": "raw_logprobs"}}})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def generation():
    """TRL's handle on a server as it was before 1.16: a session and an address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    session = requests.Session()
    session.trust_env = False  # no proxy stands before this machine
    address = f"http://127.0.0.1:{server.server_port}"
    client = SimpleNamespace(base_url=address, session=session)
    accelerator = SimpleNamespace(is_main_process=True)
    yield SimpleNamespace(mode="server", accelerator=accelerator, vllm_client=client)
    server.shutdown()
    server.server_close()


def test_a_server_is_asked_without_trls_help(generation):
    assert trl_bridge.vllm_logprobs_mode(generation) == "raw_logprobs"


def test_a_server_that_tells_nothing_is_named_with_the_fix(generation, monkeypatch):
    monkeypatch.setattr(Server, "is_open", False)
    with pytest.raises(RuntimeError, match="VLLM_SERVER_DEV_MODE=1"):
        trl_bridge.vllm_logprobs_mode(generation)


def test_trls_own_answer_comes_first(generation):
    info = {"model_config": {"logprobs_mode": "processed_logprobs"}}
    generation.vllm_client.get_server_info = lambda: info
    assert trl_bridge.vllm_logprobs_mode(generation) == "processed_logprobs"
