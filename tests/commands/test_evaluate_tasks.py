"""`drope evaluate` beyond needles: tasks by name, before and after, a server."""

from __future__ import annotations

import json
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from drope.commands import main
from drope.commands.measuring import Measuring, split_tasks
from drope.evaluation.tasks import RULER


def test_names_and_groups():
    ours, others = split_tasks(("ruler", "multi-key", "longbench_repobench-p", "short"))
    assert ours == ("ruler", "multi_key", "longbench_repobench-p")
    assert others == ("arc_easy", "arc_challenge", "hellaswag", "openbookqa", "piqa", "winogrande", "lambada_openai")
    assert split_tasks(("none",)) == ((), ())
    config = Measuring(tasks=("ruler",)).config(512, 0)
    assert (tuple(config.tasks), config.documents) == (RULER, 16)
    pytest.importorskip("lm_eval")
    config = Measuring(tasks=("short",)).config(512, 0)
    assert (config.tasks, config.documents) == ((), 0)  # nobody waits for perplexity who asks for these alone


def test_before_and_after(tiny, tmp_path, capsys):
    pytest.importorskip("lm_eval")
    folder = tmp_path / "tasks"
    folder.mkdir()
    questions = [{"query": f"{i}?", "choices": ["yes", "no"], "gold": i % 2} for i in range(6)]
    (folder / "piqa.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    arguments = ["evaluate", tiny, "--tasks", "short", "--task-data", str(folder), "--methods", "nope",
                 "--against", tiny, "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "Before (rope) and after (nope), ± one standard error" in shown
    [row] = [line.split() for line in shown.splitlines() if line.split()[:2] == ["piqa", "acc"]]
    assert row[-1] == "6"
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {m["method"] for m in saved["measurements"]} == {"rope", "nope"}


def test_a_server(tiny, tmp_path, capsys):
    pytest.importorskip("openai")

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args) -> None:
            pass

        def do_GET(self) -> None:
            self.answer({"object": "list", "data": [{"id": "served", "object": "model", "max_model_len": 256}]})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            choice = {"index": 0, "text": " 7", "finish_reason": "stop", "logprobs": None}
            self.answer({"id": "x", "object": "text_completion", "created": 0, "model": "served", "choices": [choice]})

        def answer(self, value: dict) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        base = ["evaluate", tiny, "--base-url", f"http://127.0.0.1:{http.server_port}/v1", "--tasks", "single",
                "--trials", "2", "--depths", "0", "1", "--out", str(tmp_path / "out")]  # fmt: skip
        assert main([*base, "--lengths", "2x", "--documents", "0"]) == 0
        saved = json.loads((tmp_path / "out" / "results.json").read_text())
        assert {(m["length"], m["details"]["server"]) for m in saved["measurements"]} == {(256, True)}
        assert main([*base, "--lengths", "512", "--documents", "0"]) == 2
        assert "up to 256 tokens" in capsys.readouterr().err
        assert main([*base, "--lengths", "2x"]) == 2
        assert "Servers do not score given text" in capsys.readouterr().err
        assert main([*base, "--lengths", "2x", "--documents", "0", "--methods", "yarn"]) == 2
    finally:
        http.shutdown()
        http.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_an_end_loses_no_finished_sample(tiny, process, tmp_path, end):
    """A process of its own is ended amid its samples; the same command keeps every line and adds what is missing."""
    out = tmp_path / "out"
    command = ["evaluate", tiny, "--tasks", "multi_key", "--lengths", "512", "--trials", "200", "--methods", "rope",
               "--documents", "0", "--batch-tokens-eval", "1024", "--out", out]  # fmt: skip

    def logged() -> list[str]:
        return [line for log in (out / "samples").glob("*.jsonl") for line in log.read_text().splitlines()]

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # else a background job's child would ignore it
    first = process(*command)
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 600
    while len(logged()) < 4 and time.monotonic() < deadline:
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.send_signal(end)
    _, said = first.communicate(timeout=300)
    kept = logged()
    assert 4 <= len(kept) < 200
    if end == signal.SIGINT:
        assert first.returncode == 130
        assert "the same command goes on from there" in " ".join(said.split())
    assert main([str(c) for c in command]) == 0
    whole = logged()
    torn = 0 if end == signal.SIGINT else 1  # a kill may fall into the writing of a line
    assert whole[: len(kept) - torn] == kept[: len(kept) - torn]
    indices = sorted(json.loads(line)["index"] for line in whole if line.endswith("}"))
    assert indices == list(range(200))
    [row] = json.loads((out / "results.json").read_text())["measurements"][:1]
    assert row["n"] == 200
