"""The part of MLflow's REST interface that a run uses, as a real HTTP server that can be down or hang."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Kept:
    """What the server was told."""

    experiments: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, str, float, int]] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)


@contextmanager
def serving(port: int, kept: Kept) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: dict[str, Any]) -> None:
            status, found = answer(urlsplit(self.path).path.removeprefix("/api/2.0/mlflow/"), body, kept)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def answer(path: str, body: dict[str, Any], kept: Kept) -> tuple[int, dict[str, Any]]:
    if path == "experiments/get-by-name":
        if not kept.experiments:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"}
        return 200, {"experiment": {"experiment_id": "1", "name": kept.experiments[0]}}
    if path == "experiments/create":
        kept.experiments.append(body["name"])
        return 200, {"experiment_id": "1"}
    if path == "runs/create":
        kept.runs.append(f"run{len(kept.runs)}")
        return 200, {"run": run(kept.runs[-1])}
    if path == "runs/get":
        return 200, {"run": run(kept.runs[-1])}
    if path == "runs/update":
        kept.statuses.append(body["status"])
        return 200, {"run_info": run(body["run_id"])["info"]}
    if path == "runs/log-batch":
        kept.params |= {one["key"]: one["value"] for one in body.get("params", [])}
        kept.metrics += [
            (body["run_id"], one["key"], one["value"], int(one.get("step", 0)))
            for one in body.get("metrics", [])
        ]
        return 200, {}
    return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": path}


def run(run_id: str) -> dict[str, Any]:
    info = {"run_id": run_id, "run_uuid": run_id, "experiment_id": "1", "status": "RUNNING"}
    return {"info": info | {"artifact_uri": "", "lifecycle_stage": "active"}, "data": {}}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@contextmanager
def hanging() -> Iterator[int]:
    """Port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
