"""lm-evaluation-harness both ways, on a tiny model and files of the test's own: no hub, and none of its own tasks."""

from __future__ import annotations

import json
import re

import pytest

from drope.data.haystack import haystack
from drope.errors import InputError
from drope.evaluation import Entry, EvaluationConfig, compare, harness
from drope.evaluation.tasks import ORDER, RULER, TASKS
from drope.evaluation.trials import Trials
from drope.positions import get
from drope.results import mean_interval

pytest.importorskip("lm_eval")

QUESTIONS = [
    {"query": f"Question: {i} and {i}?", "choices": [f"{2 * i}", f"{i}", "no"], "gold": i % 3} for i in range(12)
]


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "arc_easy.jsonl").write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    (folder / "lambada.jsonl").write_text(
        "".join(json.dumps({"context": f"one two {i}", "continuation": "three"}) + "\n" for i in range(5))
    )
    (folder / "winogrande.jsonl").write_text(
        json.dumps({"context_options": ["Ann was", "Bob was"], "continuation": " late", "gold": 1}) + "\n"
    )
    return folder


def by_hand(model, tokenizer) -> list[float]:
    """Accuracy of each question by the definition: the choice whose tokens are likeliest."""
    import torch

    right = []
    for q in QUESTIONS:
        scores = []
        for choice in q["choices"]:
            prompt = tokenizer(f"{q['query']}\nAnswer:")["input_ids"]
            ids = tokenizer(f"{q['query']}\nAnswer: {choice}")["input_ids"]
            with torch.no_grad():
                logs = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
            scores.append(sum(logs[i - 1, ids[i]].item() for i in range(len(prompt), len(ids))))
        right.append(float(scores.index(max(scores)) == q["gold"]))
    return right


def test_local_tasks(model, tokenizer, files, tmp_path):
    config = EvaluationConfig(
        tasks=(), documents=0, harness_tasks=("arc_easy", "lambada_openai", "winogrande"), task_data=str(files)
    )
    methods = [get("rope"), get("nope")]
    results = compare({"m": Entry(model, tokenizer, methods)}, config, tmp_path / "out", reference="rope")
    [acc] = results.select(task="arc_easy", method="rope", metric="acc")
    right = by_hand(model, tokenizer)
    assert (acc.value, acc.n) == (pytest.approx(sum(right) / 12), 12)
    assert acc.details["se"] == pytest.approx(mean_interval(right)[3])
    assert {m.task for m in results.measurements} == {"arc_easy", "lambada_openai", "winogrande"}
    paired = {(r["task"], r["method"]): r for r in results.meta["paired"]}
    assert paired["arc_easy", "nope"]["n"] == 12
    seen = []
    model.register_forward_pre_hook(lambda m, a: seen.append(1))
    second = compare({"m": Entry(model, tokenizer, methods)}, config, tmp_path / "out", reference="rope")
    assert second.measurements == results.measurements
    assert not seen  # read back


def test_bad_files(files, tmp_path):
    assert harness.short_tasks(files) == ("arc_easy", "winogrande", "lambada_openai")
    (files / "piqa.jsonl").write_text("")
    with pytest.raises(InputError, match=r"piqa\.jsonl.*empty"), harness.opened(["piqa"], files):
        pass
    (files / "piqa.jsonl").write_text('{"goal": "x"}\n')
    with pytest.raises(InputError, match="query, choices, gold"), harness.opened(["piqa"], files):
        pass
    with pytest.raises(InputError, match=r"a folder of TASK\.jsonl"), harness.opened(["piqa"], tmp_path / "none"):
        pass


def test_mistyped_tasks_are_refused_at_once(files, tmp_path):
    """The nearest names, of ours and of the harness, and neither its import nor its index."""
    import os
    import subprocess
    import sys
    from pathlib import Path

    import drope

    script = """
import sys
from drope.commands.measuring import split_tasks
from drope.errors import InputError
assert split_tasks(("ruler", "mmlu_anatomy", "ruler_vt")) == (("ruler",), ("mmlu_anatomy", "ruler_vt"))
for wrong, right in (("niah_singel_1", "niah_single_1"), ("helaswag", "hellaswag"), ("multi_kye", "multi_key")):
    try:
        split_tasks((wrong,))
    except InputError as error:
        assert f"Did you mean {right}" in str(error), error
        assert "any task of lm-evaluation-harness" in str(error)
    else:
        raise SystemExit(f"{wrong} was taken")
assert not {"lm_eval", "torch", "datasets"} & set(sys.modules)
"""
    where = {**os.environ, "PYTHONPATH": str(Path(drope.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300, env=where)
    with pytest.raises(InputError, match="Did you mean arc_easy"), harness.opened(["arc_eazy"], files):
        pass
    (files / "of_my_own.jsonl").write_text('{"query": "a", "choices": ["b"], "gold": 0}\n')
    with harness.opened(["of_my_own"], files) as tasks:
        assert tasks.tasks == ("of_my_own",)


@pytest.mark.slow
def test_no_task_of_the_harness_is_refused():
    """Every name that its own index knows passes."""
    from lm_eval.tasks import TaskManager

    from drope.evaluation import harness_names

    names = sorted(TaskManager().all_tasks)
    assert len(names) > 5000
    folder = harness_names._folder()
    assert folder is not None
    words = {w.decode() for data in harness_names._texts(folder) for w in re.findall(rb"[\w.-]+", data)}
    assert {n for n in names if re.fullmatch(r"[\w.-]+", n)} <= words
    odd = [n for n in names if not re.fullmatch(r"[\w.-]+", n)]
    harness_names.refuse_unknown([*odd[:300], *names[::50]])


def test_a_tokenizer_without_eos_is_refused(model, tokenizer, files):
    class Endless:
        eos_token_id = bos_token_id = None

    with harness.opened(["arc_easy"], files) as tasks, pytest.raises(InputError, match="an EOS or BOS token"):
        tasks.run(model, Endless(), label="rope", max_length=64)


def test_every_task_ships_for_stock_lm_eval():
    """The include path has a task for each of ours, with its budget; the harness reads them all."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(harness.TASKS_DIR), include_defaults=False)
    assert set(manager.all_subtasks) == {f"drope_{name}" for name in TASKS}
    assert {"drope_needles", "drope_ruler", "drope_order"} <= set(manager.all_tags)
    for name in (*RULER, *ORDER):
        text = (harness.TASKS_DIR / f"{name}.yaml").read_text()
        assert f"max_gen_toks: {TASKS[name].budget}\n" in text


def test_stock_backend_runs_our_tasks(model, tokenizer, tmp_path):
    """Stock HFLM on the include path: the very prompts of `drope evaluate`, and drope's own score of what it says."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tokenizer.save_pretrained(tmp_path)
    metadata = {"tokenizer": str(tmp_path), "max_seq_lengths": [400], "trials": 3}
    manager = TaskManager(include_path=str(harness.TASKS_DIR), include_defaults=False, metadata=metadata)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, max_length=512)
    found = simple_evaluate(model=lm, tasks=["drope_multi_key"], task_manager=manager, bootstrap_iters=0)
    samples = sorted(found["samples"]["drope_multi_key"], key=lambda s: s["doc_id"])
    expected = list(Trials(tokenizer, haystack("stdlib:heldout")).batch(TASKS["multi_key"], 400, 3))
    assert [s["doc"]["digest"] for s in samples] == [t.digest for t in expected]
    assert [s["arguments"][0][0] for s in samples] == [t.prompt for t in expected]
    for sample, trial in zip(samples, expected, strict=True):
        assert sample["score"] == trial.score(sample["resps"][0][0])


def test_adapter_applies_method_and_beta(model, tokenizer, tmp_path):
    """`--model drope`: log-likelihoods under YaRN and β are those of the model with both applied by hand."""
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    import drope.evaluation.lm_eval_model
    from drope.evaluation.losses import temperature_at, token_losses
    from drope.models import apply, load

    assert drope.evaluation.lm_eval_model
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = (" the statement raises an exception", " of this kind")
    request = [Instance(request_type="loglikelihood", doc={}, arguments=text, idx=0)]

    def score(arguments: str) -> float:
        lm = get_model("drope").create_from_arg_string(
            f"pretrained={tmp_path},device=cpu{arguments}", {"batch_size": 1}
        )
        return lm.loglikelihood(request)[0][0]

    import torch

    loaded = load(tmp_path)
    ids = torch.tensor([tokenizer("".join(text))["input_ids"]])
    n = ids.shape[1] - len(tokenizer(text[0])["input_ids"])
    expected = {}
    for name, beta in (("rope", 1.0), ("yarn", 1.3), ("drope", 1.0)):
        with apply(loaded.model, get(name), 1024), temperature_at(loaded.model, beta), torch.no_grad():
            expected[name] = -token_losses(loaded.model, ids, last=n).sum().item()
    assert len({round(v, 4) for v in expected.values()}) == 3
    assert score("") == pytest.approx(expected["rope"], abs=1e-4)
    assert score(",method=yarn,length=1024,beta=1.3") == pytest.approx(expected["yarn"], abs=1e-4)
    assert score(",method=drope,length=4x") == pytest.approx(expected["drope"], abs=1e-4)
    with pytest.raises(InputError, match="pretrained, method, length, beta"):
        score(",methd=yarn")
