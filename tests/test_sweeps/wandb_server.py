"""A stand-in for W&B's server, as far as sweeps go: it hands out a grid's points to agents."""

import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

KEY = "a" * 40  # of the only account


class Server:
    """What was asked of it, and the sweep that was made."""

    def __init__(self, knows_account: bool, refuses: bool) -> None:
        self.knows_account, self.refuses = knows_account, refuses
        self.asked: list[str] = []
        self.sweep: dict[str, Any] = {}
        self.project: str | None = None
        self._points: list[dict[str, Any]] = []

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        name = re.search(r"(?:query|mutation)\s+(\w+)", query)[1]
        self.asked.append(name)
        return getattr(self, f"_{name}")(given)

    def _Viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        me = {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}"}
        return {"viewer": me | {"teams": {"edges": []}} if self.knows_account else None}

    def _UpsertSweep(self, given: dict[str, Any]) -> dict[str, Any]:
        if self.refuses:
            raise ValueError("parameters: 'x' has no distribution")
        self.sweep, self.project = yaml.safe_load(given["config"]), given["projectName"]
        spec = self.sweep["parameters"].items()
        values = [[(n, v) for v in each.get("values", [each.get("value")])] for n, each in spec]
        self._points = [dict(point) for point in itertools.product(*values)]
        project = {"id": "p", "name": self.project, "entity": {"id": "e", "name": "me"}}
        made = {"sweep": {"name": "made", "project": project}, "configValidationWarnings": []}
        return {"upsertSweep": made}

    def _SweepWithRuns(self, given: dict[str, Any]) -> dict[str, Any]:
        about = {"id": "s", "config": yaml.safe_dump(self.sweep), "runs": {"edges": []}}
        return {"project": {"sweep": about}}

    def _CreateAgent(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": "agent"}}}

    def _Heartbeat(self, given: dict[str, Any]) -> dict[str, Any]:
        commands = []
        if not json.loads(given["runState"]):  # none of its runs is going on
            commands = [self._next()] if self._points else [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}

    def _next(self) -> dict[str, Any]:
        args = {name: {"value": value} for name, value in self._points.pop(0).items()}
        run = f"run{len(self._points)}"
        return {"type": "run", "run_id": run, "program": self.sweep["program"], "args": args}


@contextmanager
def wandb_server(
    knows_account: bool = True, refuses: bool = False
) -> Iterator[tuple[Server, dict[str, str]]]:
    """The server, running, and the environment that leads W&B's client to it."""
    server = Server(knows_account, refuses)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send({})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"] or 0))
            if self.path != "/graphql":  # telemetry
                self._send({})
                return
            asked = json.loads(body)
            try:
                self._send({"data": server.answer(asked["query"], asked.get("variables") or {})})
            except ValueError as error:
                self._send({"errors": [{"message": str(error)}]}, status=400)

        def _send(self, content: dict[str, Any], status: int = 200) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *about: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{http.server_address[1]}"
    try:
        yield server, {"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY}
    finally:
        http.shutdown()
        http.server_close()
