"""A server with OpenAI's completions, in vLLM's way of naming tokens, against transformers."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import exported
import pytest

from drope.export import verify
from drope.export.runners import TransformersRunner
from drope.models import load, restore


class Server(ThreadingHTTPServer):
    """Serves a model that transformers runs."""

    def __init__(self, model):
        super().__init__(("127.0.0.1", 0), Handler)
        self.runner = TransformersRunner(None, model)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def _answer(self, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "served"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["model"] == "served"
        ids, tokens, tops = list(asked["prompt"]), [], []
        for _ in range(asked["max_tokens"]):
            found = self.server.runner.steps(ids, 1, False)[0].logprobs
            best = sorted(found, key=found.__getitem__, reverse=True)[: asked["logprobs"]]
            tokens.append(f"token_id:{best[0]}")
            tops.append({f"token_id:{i}": found[i] for i in best})
            ids.append(best[0])
        self._answer({"choices": [{"logprobs": {"tokens": tokens, "top_logprobs": tops}}]})

    def log_message(self, *_args) -> None:
        pass


@pytest.mark.parametrize("rotating", [False, True])
def test_a_server_passes_and_one_that_rotates_is_caught(rotating, tmp_path):
    folder = exported.write(tmp_path / "m", beta=1.3)
    model = load(folder).model
    server = Server(restore(model) if rotating else model)
    try:
        rows = verify(folder, base_url=server.url, tokens=2)
    finally:
        server.shutdown()
        server.server_close()
    assert len(rows) == 4
    assert all(row.engine == server.url for row in rows)
    assert [row.passed for row in rows] == [not rotating] * 4, rows
