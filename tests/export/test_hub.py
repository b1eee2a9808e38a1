"""Uploading, against a stand-in of the hub's API on the loopback."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import exported
import pytest
import yaml

from drope.commands import main
from drope.errors import DropeError, InputError
from drope.export import export
from drope.export.hub import push

ROWS = [{"task": "single", "dataset": "drope", "config": "256 tokens", "metric": "success", "value": 0.75}]


class Hub(ThreadingHTTPServer):
    """Takes repositories and commits, and keeps what it is given."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.created: list[dict] = []
        self.refuse = False
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def _answer(self, value: dict, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.server.refuse:
            return self._answer({"error": "You are not allowed here"}, 403)
        self._answer({"sha": "0" * 40, "id": "org/name", "siblings": []})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.refuse:
            self._answer({"error": "You are not allowed here"}, 403)
        elif self.path.endswith("/repos/create"):
            self.server.created.append(json.loads(body))
            self._answer({"url": f"{self.server.url}/org/name", "name": "org/name", "id": "org/name"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self._answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self._answer({"commitUrl": f"{self.server.url}/org/name/commit/abc", "commitOid": "abc", "success": True})
        else:
            self._answer({})

    def log_message(self, *_args) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub.constants as constants

    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
    yield server
    server.shutdown()
    server.server_close()


def test_everything_arrives_with_a_card_that_hubs_read(hub, tmp_path):
    folder = export(exported.write(tmp_path / "m"), tmp_path / "out", "transformers", evaluation=ROWS)
    done = push(folder, "org/name", private=True, endpoint=hub.url)
    assert done["url"].endswith("/commit/abc")
    assert hub.created[0]["name"] == "name"
    assert hub.created[0]["visibility" if "visibility" in hub.created[0] else "private"] in (True, "private")
    assert {name: len(content) for name, content in hub.files.items()} == done["files"]
    assert hub.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()

    from huggingface_hub import ModelCard

    card = ModelCard(hub.files["README.md"].decode())
    assert card.data.base_model == "org/base"
    result = card.data.eval_results[0]
    assert (result.metric_type, result.metric_value, result.dataset_config) == ("success", 0.75, "256 tokens")
    assert "1M tokens" in hub.files["README.md"].decode()


def test_a_refusal_is_told(hub, tmp_path):
    folder = export(exported.write(tmp_path / "m"), tmp_path / "out", "transformers")
    hub.refuse = True
    with pytest.raises(DropeError, match="org/name could not be uploaded"):
        push(folder, "org/name", endpoint=hub.url)


def test_a_dry_run_needs_no_network(tmp_path, capsys):
    folder = exported.write(tmp_path / "m")
    results = {"schema": 1, "model": "m", "context": 64, "measurements": [
        {"task": "single", "method": "drope", "length": 128, "metric": "success", "value": 0.5, "low": 0.4, "high": 0.6,
         "n": 10, "details": {}}]}  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(results))
    command = ["export", str(folder), "--engine", "transformers", "--out", str(tmp_path / "out"), "--json"]
    command += ["--push-to-hub", "org/name", "--dry-run", "--results", str(tmp_path / "results.json")]
    assert main(command) == 0
    pushed = json.loads(capsys.readouterr().out)["hub"]
    assert pushed["url"] is None
    assert "model.safetensors" in pushed["files"]
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="owner/name"):
        push(tmp_path, "name")
    with pytest.raises(InputError, match=r"drope\.json"):
        push(tmp_path, "org/name")
