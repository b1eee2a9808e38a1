"""A server with OpenAI's completions, in vLLM's way of naming tokens, against transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import exported
import pytest

from drope.errors import InputError
from drope.export import export, verify
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


FORWARD = '''#!{python}
"""In place of the Python that has vLLM: serves what another server answers."""
import http.server, sys, urllib.request
asked = dict(zip(sys.argv, sys.argv[1:]))
assert asked["-m"].startswith("vllm."), sys.argv
assert asked["--dtype"] == "float32", sys.argv
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        n = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(n).replace(b'"drope"', b'"served"') if n else None
        answer = urllib.request.urlopen("{url}" + self.path.removeprefix("/v1"), body).read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    do_POST = do_GET
http.server.HTTPServer((asked["--host"], int(asked["--port"])), Handler).serve_forever()
'''


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("rotating", [False, True])
def test_vllm_is_started_from_its_own_environment_and_stopped(rotating, tmp_path, monkeypatch):
    folder = exported.write(tmp_path / "m", beta=1.3)
    model = load(folder).model
    server = Server(restore(model) if rotating else model)
    python = script(tmp_path / "python", FORWARD.format(python=sys.executable, url=server.url))
    started = []
    popen = subprocess.Popen

    def start(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    try:
        rows = verify(folder, ["vllm"], vllm=python, tokens=2)
    finally:
        server.shutdown()
        server.server_close()
    assert [row.engine for row in rows] == ["vllm"] * 4
    assert [row.passed for row in rows] == [not rotating] * 4, rows
    assert started[0].poll() is not None, "it still runs"


def test_vllm_that_does_not_start_says_why(tmp_path):
    folder = exported.write(tmp_path / "m")
    python = script(tmp_path / "python", "#!/bin/sh\necho 'ValueError: not enough memory'\necho bye\nexit 1\n")
    rows = verify(folder, ["vllm"], vllm=python)
    assert not any(row.passed for row in rows)
    assert rows[0].problem == "vLLM does not start: ValueError: not enough memory"
    with pytest.raises(InputError, match="--vllm"):
        verify(folder, ["vllm"], vllm=str(tmp_path / "none"))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_vllm_that_is_not_installed_is_asked_for_by_its_python(tmp_path):
    with pytest.raises(InputError, match="--vllm"):
        verify(exported.write(tmp_path / "m"), ["vllm"])


@pytest.mark.engines
@pytest.mark.skipif(not os.environ.get("DROPE_VLLM"), reason="DROPE_VLLM does not name the Python that has vLLM")
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_real_vllm_passes_and_its_rotation_is_caught(family, tmp_path):
    folder = exported.write(tmp_path / "m", family, beta=1.3)
    out = export(folder, tmp_path / "vllm", "vllm")
    rows = verify(out, ["vllm"], vllm=os.environ["DROPE_VLLM"])
    assert all(row.passed for row in rows), rows
    config = json.loads((out / "config.json").read_text())
    rope = {"rope_type": "default", "rope_theta": config["rope_parameters"]["rope_theta"]}
    (out / "config.json").write_text(json.dumps(config | {"rope_parameters": rope, "rope_scaling": None}))
    rows = verify(out, ["vllm"], vllm=os.environ["DROPE_VLLM"], reference=folder)
    assert rows
    assert not any(row.passed for row in rows), rows
