"""Greedy decoding and its log."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from drope.evaluation import needles
from drope.evaluation.needles import Decoding, answer, greedy, run_trials
from drope.evaluation.sharing import Trunk, can_reuse
from drope.evaluation.tasks import get_task
from drope.evaluation.trials import Trials
from drope.models import drop
from drope.results import wilson


def uncached(model, prompt: list[int], steps: int) -> list[int]:
    """Greedy continuation without cache, padding or batch."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def prompts(sizes: list[int], vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(2, vocabulary, (n,), generator=generator).tolist() for n in sizes]


@pytest.mark.parametrize("positions", ["rope", "none"])
@pytest.mark.parametrize("sizes", [[40, 40, 40], [40, 17, 33, 5]])
def test_batched_equals_one_by_one(model, positions, sizes):
    """Cache, batch and left padding are neutral, with and without positions."""
    if positions == "none":
        drop(model)
    batch = prompts(sizes, model.config.vocab_size)
    with torch.no_grad():
        together = greedy(model, batch, 12)
        alone = [greedy(model, [p], 12)[0] for p in batch]
    assert together == alone == [uncached(model, p, 12) for p in batch]
    assert len({tuple(t) for t in together}) == len(sizes)  # the rows do differ


def test_rows_leave_the_batch_without_disturbing_others(model):
    batch = prompts([30, 12, 25, 19, 28], model.config.vocab_size)
    ends = [2, 9, 4, 3, 9]
    with torch.no_grad():
        full = greedy(model, batch, 9)
        left = greedy(model, batch, 9, done=lambda row, ids: len(ids) >= ends[row])
    assert left == [ids[:n] for ids, n in zip(full, ends, strict=True)]


def test_stop_token_ends_a_row_and_is_not_output(model):
    batch = prompts([20, 20], model.config.vocab_size)
    with torch.no_grad():
        full = greedy(model, batch, 8)
        cut = greedy(model, batch, 8, stop=frozenset([full[0][3]]))
    assert cut[0] == full[0][: full[0].index(full[0][3])]
    model.generation_config.eos_token_id = [1, 7]
    assert needles.stop_ids(model, type("T", (), {"eos_token_id": 5})) == {1, 5, 7}


def test_prefill_asks_for_last_logits_only(model):
    seen = []
    model.lm_head.register_forward_hook(lambda m, i, out: seen.append(out.shape[1]))
    with torch.no_grad():
        greedy(model, prompts([50], model.config.vocab_size), 3)
    assert seen == [1, 1, 1]


def make_trials(tokenizer, sentences, n=7, length=220):
    return list(Trials(tokenizer, sentences, max_new_tokens=12).batch(get_task("multi_key"), length, n))


def test_hits_end_early_and_count(model, tokenizer, sentences, tmp_path):
    """Ask for what the model is known to say: every such trial is a hit, found without spending the budget."""
    trials = make_trials(tokenizer, sentences)
    said = answer(model, tokenizer, trials)
    solved = [replace(t, answers=(s[:3],)) if i % 2 else t for i, (t, s) in enumerate(zip(trials, said, strict=True))]
    records = run_trials(model, tokenizer, solved, tmp_path / "log.jsonl")
    assert [r["hit"] for r in records] == [bool(i % 2) for i in range(7)]
    for record, full in zip(records, said, strict=True):
        assert full.startswith(record["output"])
        assert (len(record["output"]) < len(full)) == record["hit"]
    [total] = needles.measurements(records, "multi_key", "rope", 220, {})
    assert (total.value, total.n, (total.low, total.high)) == (3 / 7, 7, wilson(3, 7))


def test_newline_rule(model, tokenizer, sentences):
    trials = make_trials(tokenizer, sentences, n=1)
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    plain = answer(model, tokenizer, trials)[0]
    bias = torch.zeros(model.config.vocab_size)
    model.lm_head.register_forward_hook(lambda m, i, out: out + bias)
    bias[newline] = 1e4  # nothing but newlines: there is no text that a newline could end
    assert (
        answer(model, tokenizer, trials, Decoding(stop_at_newline=True))[0].count("\n") >= trials[0].max_new_tokens - 1
    )
    calls = iter([0.0, 0.0, 1e4] + [0.0] * 99)
    model.register_forward_pre_hook(lambda m, a: bias.__setitem__(newline, next(calls)))
    cut = answer(model, tokenizer, trials, Decoding(stop_at_newline=True))[0]
    assert cut.endswith("\n")
    assert plain.startswith(cut[:-1])


def test_interruption_loses_nothing(model, tokenizer, sentences, tmp_path):
    """Ctrl-C in the third batch, and a line torn as by a kill: the rerun decodes only what is missing."""
    trials = make_trials(tokenizer, sentences)
    small = Decoding(batch_tokens=2 * 220)
    whole = run_trials(model, tokenizer, trials, tmp_path / "whole.jsonl", small)

    log, prefills = tmp_path / "log.jsonl", []

    def count(module, args, kwargs):
        if kwargs["input_ids"].shape[1] > 1:
            prefills.append(kwargs["input_ids"].shape[0])
            if len(prefills) == 3:
                raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    with pytest.raises(KeyboardInterrupt):
        run_trials(model, tokenizer, trials, log, small)
    assert len(log.read_text().splitlines()) == 4
    log.write_bytes(log.read_bytes()[:-25])  # the last record is torn
    prefills[:] = [0] * 3
    assert run_trials(model, tokenizer, trials, log, small) == whole
    assert sum(prefills) == 7 - 3
    prefills[:] = [0] * 3
    assert run_trials(model, tokenizer, trials, log, small) == whole
    assert sum(prefills) == 0
    handle.remove()
    assert sum(1 for line in log.read_text().splitlines() if _whole(line)) == 7


def test_log_of_other_prompts_is_not_used(model, tokenizer, sentences, tmp_path):
    log = tmp_path / "log.jsonl"
    run_trials(model, tokenizer, make_trials(tokenizer, sentences, n=2), log)
    other = list(Trials(tokenizer, sentences, seed=9, max_new_tokens=12).batch(get_task("multi_key"), 220, 2))
    records = run_trials(model, tokenizer, other, log)
    assert [tuple(r["expected"]) for r in records] == [t.answers for t in other]


def test_batches_stay_within_the_budget(tokenizer, sentences):
    trials = sorted(make_trials(tokenizer, sentences, n=9), key=lambda t: -len(t.ids))
    for limit in (1, 440, 700, 10**6):
        batches = list(needles._batches(trials, limit))
        assert [t for b in batches for t in b] == trials
        for b in batches:
            assert len(b) == 1 or len(b) * max(len(t.ids) + t.max_new_tokens for t in b) <= limit


def test_depth_rows():
    records = [{"hit": h, "found": float(h), "depth": d} for d, h in [(0.0, 1), (0.0, 0), (0.5, 1), (0.5, 1)]]
    total, top, middle = needles.measurements(records, "single", "rope", 256, {"model": "m"})
    assert (total.value, total.n, "depth" in total.details) == (0.75, 4, False)
    assert (top.value, top.n, top.details["depth"]) == (0.5, 2, 0.0)
    assert (middle.value, middle.details) == (1.0, {"model": "m", "found": 1.0, "depth": 0.5})


def _whole(line: str) -> bool:
    try:
        return bool(json.loads(line))
    except ValueError:
        return False


def test_shared_beginning_changes_nothing(model, tokenizer, sentences, tmp_path):
    """Prompts that begin alike: the shared part is prefilled once, and every output is what it was."""
    trials = list(Trials(tokenizer, sentences, seed=2).batch(get_task("niah_single_1"), 700, 9))
    tokens = []
    model.register_forward_pre_hook(lambda m, a, k: tokens.append(k["input_ids"].numel()), with_kwargs=True)
    outputs, cost = [], []
    for share in (True, False):
        tokens.clear()
        decoding = Decoding(batch_tokens=2100, share=share)
        records = run_trials(model, tokenizer, trials, tmp_path / f"{share}.jsonl", decoding)
        outputs.append([r["output"] for r in records])
        cost.append(sum(n for n in tokens if n > 20))
    assert outputs[0] == outputs[1]
    assert len(set(outputs[0])) > 1
    assert cost[0] < 0.8 * cost[1]


def test_drafts_are_greedy_decoding(model):
    """Whatever is guessed, the output is that of greedy decoding; a right guess takes one pass."""
    batch = prompts([40, 31, 36], model.config.vocab_size)
    with torch.no_grad():
        plain = greedy(model, batch, 10, done=lambda row, ids: len(ids) >= 6)
        passes: list[int] = []
        model.register_forward_pre_hook(lambda m, a: passes.append(1))
        for guess in (plain, [plain[0], [5, 5, 5], [*plain[2][:3], 7]], [[], [9], []]):
            passes.clear()
            assert greedy(model, batch, 10, done=lambda row, ids: len(ids) >= 6, drafts=guess) == plain
            assert len(passes) == (1 if guess is plain else 6)


@pytest.mark.parametrize("positions", ["rope", "none"])
def test_rows_prefilled_apart_decode_together(model, positions):
    """Prompts that share more and less of a beginning, with guesses right and wrong: no row says anything else."""
    if positions == "none":
        drop(model)
    vocabulary = model.config.vocab_size
    beginning = prompts([230], vocabulary)[0]
    shared = [20, 100, 101, 180, 230, 0]
    batch = [beginning[:n] + rest for n, rest in zip(shared, prompts([9, 31, 4, 50, 17, 60], vocabulary), strict=True)]

    def done(row: int, ids: list[int]) -> bool:
        return len(ids) >= 5 + row

    with torch.no_grad():
        plain = [ids[: 5 + row] for row, p in enumerate(batch) for ids in greedy(model, [p], 12)]
        sizes: list[tuple[int, ...]] = []
        model.register_forward_pre_hook(lambda m, a, k: sizes.append(tuple(k["input_ids"].shape)), with_kwargs=True)
        for drafts in (None, plain, [plain[0], [5, 5], plain[2], [*plain[3][:2], 5], [], plain[5]]):
            trunk = Trunk(np.asarray(beginning))
            sizes.clear()
            assert greedy(model, batch, 12, done=done, drafts=drafts, trunk=trunk, shared=shared) == plain
            # the beginning in three pieces; the rows that share 100 and 101 tokens in one pass, and 180 and 230
            assert [n for _, n in sizes if n in (20, 80)] == [20, 80, 80]
            assert [rows for rows, n in sizes if n not in (1, 20, 80)] == [1, 2, 2, 1]
            assert trunk.done == 180
            assert (sum(n == 1 for _, n in sizes) == 0) == (drafts is plain)
            # in another order, and with what is prefilled already
            assert greedy(model, batch[::-1], 5, trunk=trunk, shared=shared[::-1]) == [p[:5] for p in plain[::-1]]


def test_lists_are_guessed_as_they_are_said(tokenizer, sentences):
    """Several answers are tried in one pass: of several keys in the order asked, of one key in that of the text."""
    said = {}
    for name in ("niah_multiquery", "niah_multivalue"):
        [trial] = Trials(tokenizer, sentences).batch(get_task(name), 900, 1)
        said[name] = tokenizer.decode(needles._spoken(tokenizer, [trial])[0]), trial
    guess, trial = said["niah_multiquery"]
    assert guess.replace(" ", "") == "{},{},{},and{}".format(*trial.answers)
    guess, trial = said["niah_multivalue"]
    ordered = sorted(trial.answers, key=trial.prompt.index)
    assert list(trial.answers) != ordered
    assert guess.replace(" ", "") == "{},{},{},and{}".format(*ordered)


def test_caches_that_cannot_be_cut():
    from transformers import MistralConfig, MistralForCausalLM

    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2, "vocab_size": 99}  # fmt: skip
    assert can_reuse(MistralForCausalLM(MistralConfig(**small, sliding_window=None)))
    assert not can_reuse(MistralForCausalLM(MistralConfig(**small, sliding_window=16)))
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert not can_reuse(MistralForCausalLM(MistralConfig(**small, sliding_window=None, rope_parameters=dynamic)))
