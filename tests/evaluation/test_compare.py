"""Many methods on the same trials: pairing, cache, names, temperature."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
import torch

from drope.errors import InputError
from drope.evaluation import Entry, EvaluationConfig, compare, evaluate
from drope.evaluation.paired import mcnemar, mcnemar_rows
from drope.evaluation.run import weights_key
from drope.models import drop, is_position_free, set_logit_scale
from drope.models.logit_scale import logit_scale
from drope.positions import get
from drope.results import Results

CONFIG = EvaluationConfig(
    tasks=("single", "multi_key"), lengths=(220, 300), trials=3, depths=(0.0, 1.0), max_new_tokens=8, documents=2,
    perplexity_bins=4, sliding_window=False,
)  # fmt: skip


@dataclass
class Constant:
    value: float

    def beta(self, length: int) -> float:
        return self.value


@pytest.fixture
def passes(model):
    """Counts forward passes of the model."""
    count: list[int] = []
    model.register_forward_pre_hook(lambda m, a: count.append(1))
    return count


def test_results(model, tokenizer, tmp_path, passes):
    probe = torch.arange(2, 60)[None]
    before = model(input_ids=probe).logits.detach()
    model.train()
    methods = [get("rope"), get("yarn"), get("nope")]
    results = compare({"tiny": Entry(model, tokenizer, methods)}, CONFIG, tmp_path / "out", reference="rope")

    assert results == Results.load(tmp_path / "out" / "results.json")
    assert results.context == 256
    for task, n in (("single", 4), ("multi_key", 3)):  # single: two depths, equally many
        for length in (220, 300):
            for name in ("rope", "yarn", "nope"):
                total, *depths = results.select(task=task, length=length, method=name)
                assert (total.n, total.metric, len(depths)) == (n, "success", 2 if task == "single" else len(depths))
                assert all("depth" in m.details for m in depths)
                log = tmp_path / "out" / "samples" / total.details["samples"]
                records = [json.loads(line) for line in log.read_text().splitlines()]
                assert len(records) == n
                assert total.value == sum(r["hit"] for r in records) / n
    assert {(m.method, m.metric) for m in results.select(task="perplexity", length=300)} == {
        (name, metric) for name in ("rope", "yarn", "nope") for metric in ("loss", "perplexity")
    }
    values = {m.method: m.value for m in results.measurements if m.metric == "perplexity"}
    assert len(set(values.values())) == 3  # the methods did act
    assert {r["method"] for r in results.meta["paired"]} == {"yarn", "nope"}

    assert model.training
    model.eval()
    assert torch.equal(model(input_ids=probe).logits, before)

    passes.clear()
    again = compare({"tiny": Entry(model, tokenizer, methods)}, CONFIG, tmp_path / "out", reference="rope")
    assert again.measurements == results.measurements
    assert not passes  # all of it was on disk
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 3] += 1
    compare({"tiny": Entry(model, tokenizer, methods)}, CONFIG, tmp_path / "out", reference="rope")
    assert passes  # other weights, other samples


def test_same_trials_for_every_method(model, tokenizer, tmp_path):
    results = compare({"m": (model, tokenizer, [get("rope"), get("pi")])}, CONFIG, tmp_path)
    seen: dict[tuple[str, int], set] = {}
    for m in results.measurements:
        if "samples" in m.details and "depth" not in m.details:
            rows = [json.loads(line) for line in (tmp_path / "samples" / m.details["samples"]).read_text().splitlines()]
            seen.setdefault((m.task, m.length), set()).add(tuple(sorted((r["index"], r["digest"]) for r in rows)))
    assert len(seen) == 4
    assert all(len(s) == 1 for s in seen.values())


def test_more_trials_keep_the_earlier(model, tokenizer, tmp_path, passes):
    config = EvaluationConfig(tasks=("multi_key",), lengths=(220,), trials=2, max_new_tokens=8, documents=0)
    evaluate(model, tokenizer, config, method=get("rope"), samples_dir=tmp_path)
    [log] = tmp_path.glob("*.jsonl")
    first = log.read_text()
    config.trials = 4
    total, *_ = evaluate(model, tokenizer, config, method=get("rope"), samples_dir=tmp_path)
    assert total.n == 4
    assert log.read_text().startswith(first)


def test_temperature_reaches_position_free_methods_only(model, tokenizer, tmp_path):
    entry = Entry(model, tokenizer, [get("rope"), get("drope")], temperature=Constant(1.7))
    config = EvaluationConfig(tasks=(), lengths=(300,), documents=2, perplexity_bins=2, sliding_window=False)
    results = compare({"m": entry}, config, tmp_path)
    values = {m.method: m.value for m in results.measurements if m.metric == "perplexity"}
    betas = {m.method: m.details.get("beta") for m in results.measurements}
    assert betas == {"rope": None, "drope": 1.7}
    assert logit_scale(model) == 1
    assert not is_position_free(model)

    [plain, *_] = evaluate(model, tokenizer, config, method=get("rope"))
    assert plain.value == pytest.approx(values["rope"])
    drop(model)
    set_logit_scale(model, 1.7)
    [by_hand, *_] = evaluate(model, tokenizer, config, method=get("nope"))
    assert by_hand.value == pytest.approx(values["drope"], rel=1e-5)
    assert by_hand.details["beta"] == pytest.approx(1.7)
    assert logit_scale(model) == pytest.approx(1.7)


def test_names_tell_entries_apart(model, tokenizer, tmp_path):
    config = EvaluationConfig(tasks=(), lengths=(64,), documents=1, perplexity_bins=1)
    entries = {
        "base": Entry(model, tokenizer, [get("rope"), get("yarn")]),
        "drope": Entry(model, tokenizer, [get("drope")]),
        "control": Entry(model, tokenizer, [get("rope"), get("yarn")]),
    }
    results = compare(entries, config, tmp_path)
    assert list(dict.fromkeys(m.method for m in results.measurements)) == [
        "rope", "yarn", "drope", "control", "control_yarn",
    ]  # fmt: skip
    with pytest.raises(InputError, match="each method once"):
        compare({"m": Entry(model, tokenizer, [get("yarn"), get("yarn", factor=4.0)])}, config, tmp_path)
    with pytest.raises(InputError, match="models"):
        compare({}, config, tmp_path)


def test_hopeless_lengths_fail_before_any_pass(model, tokenizer, tmp_path, passes):
    config = EvaluationConfig(tasks=("multi_key",), lengths=(90, 300), trials=2, documents=0)
    with pytest.raises(InputError, match="at least"):
        compare({"m": Entry(model, tokenizer, [get("rope")])}, config, tmp_path)
    config = EvaluationConfig(tasks=("multi_key",), lengths=(300,), perplexity_lengths=(10**6,), trials=2)
    with pytest.raises(InputError, match="held-out text"):
        compare({"m": Entry(model, tokenizer, [get("rope")])}, config, tmp_path)
    assert not passes


def test_default_lengths_follow_the_context():
    tasks, lengths, documents = EvaluationConfig().resolved(512)
    assert [t.name for t in tasks] == ["single", "multi_query", "multi_key", "multi_value"]
    assert (lengths, documents) == ([512, 1024, 2048, 4096], [4096])
    assert EvaluationConfig(documents=0).resolved(512)[2] == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("trials", 0), ("trials", True), ("depths", ()), ("depths", (0.5, 1.5)), ("lengths", (1.5,)), ("seed", -1),
     ("documents", -1), ("tasks", ("multi",)), ("multi_values", 5), ("batch_tokens", "many")],
)  # fmt: skip
def test_config_refuses(field, value):
    with pytest.raises(InputError):
        EvaluationConfig(**{field: value})
    with pytest.raises(InputError):
        EvaluationConfig(tasks=(), documents=0)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 9), (9, 3), (10, 10), (0, 12), (40, 61)])
def test_mcnemar_is_the_exact_binomial(b, c):
    n = b + c
    tail = sum(math.comb(n, k) for k in range(min(b, c) + 1)) / 2**n
    assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail))


def test_paired_rows_match_trials_by_prompt():
    hits = {
        ("t", 9): {"drope": {"a": True, "b": True, "c": False, "d": True}, "pi": {"d": False, "c": True, "a": False}}
    }
    [row] = mcnemar_rows(hits, "drope")
    assert (row["n"], row["method_only"], row["reference_only"], row["method"]) == (3, 1, 2, "pi")
    assert row["p"] == mcnemar(1, 2)
    assert mcnemar_rows(hits, "yarn") == []


def test_weights_key(model):
    """Follows every weight, and nothing else: neither the path nor the position state."""
    key, first = weights_key(model), model.lm_head.weight[0, 0].item()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = first + 1e-3
        assert weights_key(model) != key
        model.lm_head.weight[0, 0] = first
    model.config.name_or_path = "elsewhere"
    drop(model)
    assert weights_key(model) == key


def test_sliding_window_is_the_same_model_with_less_text(model, tokenizer, tmp_path):
    """A baseline of its own, only beyond the context; within its first window it is the model itself."""
    config = EvaluationConfig(tasks=(), lengths=(200, 512), documents=2, perplexity_bins=4)
    config.perplexity_lengths = (200, 512)
    results = compare({"m": Entry(model, tokenizer, [get("rope"), get("pi")])}, config, tmp_path)
    assert {(m.method, m.length) for m in results.measurements} == {
        (n, k) for n in ("rope", "pi") for k in (200, 512)
    } | {("sliding_window", 512)}  # fmt: skip
    loss = {
        (m.method, m.details["position_start"]): m.value for m in results.select(length=512, metric="loss")
    }  # fmt: skip
    assert loss["sliding_window", 1] == pytest.approx(loss["rope", 1], rel=1e-5)
    assert loss["sliding_window", 384] != pytest.approx(loss["rope", 384], rel=1e-5)
