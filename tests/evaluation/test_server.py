"""A real server on loopback: the standard library's, with canned answers or a tiny model behind it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from drope.errors import DropeError, InputError
from drope.evaluation import Entry, EvaluationConfig, compare
from drope.evaluation.needles import run_trials
from drope.evaluation.tasks import get_task
from drope.evaluation.trials import Trials
from drope.positions import get

pytest.importorskip("openai")
from drope.evaluation.server import Server


class Service:
    """What a test sets: `reply(body) -> (status, text)`; and what it sees."""

    def __init__(self) -> None:
        self.reply: Callable[[dict], tuple[int, str]] = lambda body: (200, " none")
        self.seen: list[dict] = []
        self.models: list[dict] = [{"id": "tiny", "object": "model", "max_model_len": 900}]
        self.busy = self.most = 0
        self.lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args) -> None:
                pass

            def send(self, status: int, value: dict) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self.send(200, {"object": "list", "data": service.models})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with service.lock:
                    service.seen.append(body)
                    service.busy += 1
                    service.most = max(service.most, service.busy)
                try:
                    status, text = service.reply(body)
                finally:
                    with service.lock:
                        service.busy -= 1
                if status == 200:
                    choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
                    self.send(
                        200,
                        {"id": "x", "object": "text_completion", "created": 0, "model": "tiny", "choices": [choice]},
                    )
                else:
                    self.send(status, {"error": {"message": text, "type": "x"}})

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.stop()


@pytest.fixture
def trials(tokenizer, sentences) -> list:
    return list(Trials(tokenizer, sentences).batch(get_task("multi_key"), 300, 12))


def test_same_as_in_process(service, trials, model, tokenizer, tmp_path):
    """A tiny model behind the server gives the records that it gives in process."""
    from drope.evaluation.needles import answer

    lock, by_prompt = threading.Lock(), {t.prompt: t for t in trials}

    def reply(body: dict) -> tuple[int, str]:
        with lock:
            return 200, answer(model, tokenizer, [by_prompt[body["prompt"]]])[0]

    service.reply = reply
    here = run_trials(model, tokenizer, trials, tmp_path / "here.jsonl")
    there = Server(service.url).run_trials(trials, tmp_path / "there.jsonl")
    assert there == here
    assert len(service.seen) == 12
    assert {b["max_tokens"] for b in service.seen} == {t.max_new_tokens for t in trials}
    assert all(b["temperature"] == 0 and b["model"] == "tiny" for b in service.seen)


def test_concurrency(service, trials, tmp_path):
    gate = threading.Barrier(4)  # answers nobody until four ask at once

    def reply(body: dict) -> tuple[int, str]:
        gate.wait(timeout=20)
        return 200, " x"

    service.reply = reply
    Server(service.url, concurrency=4).run_trials(trials, tmp_path / "log.jsonl")
    assert service.most == 4


def test_passing_failures_are_tried_again(service, trials, tmp_path):
    failures = iter([500, 503, 429, 200, 500] + [200] * 99)
    lock = threading.Lock()

    def reply(body: dict) -> tuple[int, str]:
        with lock:
            return next(failures), " fine"

    service.reply = reply
    records = Server(service.url, concurrency=2, retries=4).run_trials(trials[:4], tmp_path / "log.jsonl")
    assert [r["output"] for r in records] == [" fine"] * 4
    assert len(service.seen) == 8


def test_a_server_that_dies_loses_nothing(service, trials, tmp_path):
    log, left = tmp_path / "log.jsonl", iter(range(5))

    def reply(body: dict) -> tuple[int, str]:
        return (200, " x") if next(left, None) is not None else (500, "dead")

    service.reply = reply
    with pytest.raises(DropeError, match=r"No answer from .* at the first try.*5 of 12 samples are finished and kept"):
        Server(service.url, concurrency=1, retries=0).run_trials(trials, log)
    assert len(log.read_text().splitlines()) == 5
    service.reply = lambda body: (200, " y")
    service.seen.clear()
    records = Server(service.url, concurrency=3).run_trials(trials, log)
    assert len(service.seen) == 7
    assert sorted(r["output"] for r in records) == [" x"] * 5 + [" y"] * 7


def test_interruption_loses_nothing(service, trials, tmp_path, monkeypatch):
    """Ctrl-C while requests are on their way: what had come is on disk, and what had not begun never begins."""
    from drope.evaluation import server as module

    log, kept = tmp_path / "log.jsonl", []

    def interrupted(path, new):
        kept.append(new)
        if len(kept) == 4:  # after this record is on disk
            append(path, new)
            raise KeyboardInterrupt
        append(path, new)

    append = module.append
    service.reply = lambda body: (200, " x")
    monkeypatch.setattr(module, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Server(service.url, concurrency=1).run_trials(trials, log)
    assert len(log.read_text().splitlines()) == 4
    assert len(service.seen) <= 5
    monkeypatch.setattr(module, "append", append)
    service.seen.clear()
    assert len(Server(service.url).run_trials(trials, log)) == 12
    assert len(service.seen) == 8


def test_time_out(service, trials, tmp_path):
    def reply(body: dict) -> tuple[int, str]:
        time.sleep(1.5)
        return 200, " late"

    service.reply = reply
    start = time.monotonic()
    with pytest.raises(DropeError, match="APITimeoutError"):
        Server(service.url, timeout=0.2, retries=0, concurrency=1).run_trials(trials[:1], tmp_path / "log.jsonl")
    assert time.monotonic() - start < 1.4


def test_refusals_are_said(service, trials, tmp_path):
    service.reply = lambda body: (400, "This model's maximum context length is 64 tokens")
    with pytest.raises(InputError, match=r"maximum context length is 64 tokens.*0 of 12 samples"):
        Server(service.url).run_trials(trials, tmp_path / "log.jsonl")
    with pytest.raises(InputError, match="up to 900 tokens"):
        Server(service.url).check([300, 901])
    with pytest.raises(InputError, match="allowed: tiny"):
        Server(service.url, name="huge")
    service.models = [{"id": "a", "object": "model"}, {"id": "b", "object": "model"}]
    with pytest.raises(InputError, match="allowed: a, b"):
        Server(service.url)
    assert Server(service.url, name="b").max_length is None
    with pytest.raises(InputError, match="an address such as"):
        Server("localhost:8000")
    with pytest.raises(DropeError, match="No answer from"):
        Server("http://127.0.0.1:9/v1", retries=0)


def test_compare(service, tokenizer, tmp_path):
    service.reply = lambda body: (200, " 1234567")
    entry = Entry(Server(service.url), tokenizer, [get("drope")])
    config = EvaluationConfig(tasks=("single", "vt"), lengths=(850, 900), trials=2, depths=(0.0, 1.0), documents=0)
    results = compare({"served": entry}, config, tmp_path, context=300)
    assert {(m.task, m.length) for m in results.measurements} == {(t, n) for t in ("single", "vt") for n in (850, 900)}
    assert all(m.details["server"] and m.method == "drope" for m in results.measurements)
    asked = len(service.seen)
    assert compare({"served": entry}, config, tmp_path, context=300).measurements == results.measurements
    assert len(service.seen) == asked
    with pytest.raises(InputError, match="up to 900 tokens"):
        compare(
            {"served": entry}, EvaluationConfig(tasks=("single",), lengths=(1000,), documents=0), tmp_path, context=300
        )
