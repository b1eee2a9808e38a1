"""Two real processes over gloo against one: the same samples in each step, the same loss, the same checkpoint."""

from __future__ import annotations

import json

import pytest
import runs
import torch
from safetensors.torch import load_file

STEPS, BLOCKS = 8, 4


@pytest.fixture(scope="module")
def settings(text):
    # A large eps: where a gradient is next to nothing, Adam would make last bits into whole steps.
    return {
        "data": str(text), "tokens": STEPS * BLOCKS * 32, "batch_tokens": BLOCKS * 32, "learning_rate": 1e-2,
        "eps": 1e-4, "eval_blocks": 2, "save_every": 4 * BLOCKS * 32, "precision": "float32", "micro_batch": 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def one(settings, tmp_path_factory):
    """The run of one process."""
    out = tmp_path_factory.mktemp("one")
    assert runs.launch(1, out, settings, False, None, True) == [0]
    return out


def same_result(a, b):
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (a, b))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-5, rtol=1e-4, msg=name)
    histories = [json.loads((folder / "history.json").read_text()) for folder in (a, b)]
    for mine, other in zip(*histories, strict=True):
        assert mine["tokens"] == other["tokens"]
        for name in ("loss", "objective", "eval_loss", "learning_rate"):
            if mine[name] is not None:
                assert mine[name] == pytest.approx(other[name], rel=1e-5)


def test_two_processes_do_what_one_does(one, settings, tmp_path):
    assert runs.launch(2, tmp_path, settings, False, None, True) == [0, 0]
    same_result(one, tmp_path)
    record = json.loads((tmp_path / "run" / "recalibration.json").read_text())
    assert record["settings"]["processes"] == 2
    ours = steps_of(one, ["seen-0.json"])
    theirs = steps_of(tmp_path, ["seen-0.json", "seen-1.json"])
    assert ours == theirs


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(one, settings, tmp_path, before, after):
    assert runs.launch(before, tmp_path, settings, False, 3, True) == [0] * before
    assert (tmp_path / "stopped").exists()
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-3" / "drope_run.json").exists()
    assert runs.launch(after, tmp_path, settings, True, None, True) == [0] * after
    same_result(one, tmp_path)


def steps_of(folder, names):
    """The blocks of each step, sorted, whatever process saw them."""
    found: list[list] = [[] for _ in range(STEPS)]
    for name in names:
        blocks = [block for batch in json.loads((folder / name).read_text()) for block in batch]
        assert len(blocks) == STEPS * BLOCKS // len(names)
        share = len(blocks) // STEPS
        for step in range(STEPS):
            found[step] += blocks[step * share : (step + 1) * share]
    return [sorted(step) for step in found]


def test_a_batch_that_the_processes_cannot_share_is_refused(text, monkeypatch):
    from drope.errors import InputError
    from drope.training import RecalibrationConfig
    from drope.training.plan import make_plan

    def plan(**changes):
        config = RecalibrationConfig(**({"data": str(text), "tokens": 4096, "batch_tokens": 128} | changes))
        return make_plan(runs.make_model(), runs.make_tokenizer(), config, None, None, False)

    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="These are 4 blocks a step; take a batch or a number of processes"):
        plan()
    with pytest.raises(InputError, match="batch_tokens is 64; allowed: at least one block of 32 tokens for each of 3"):
        plan(batch_tokens=64)
    assert plan(batch_tokens=192, micro_batch=1).micro_batches == 2
    with pytest.raises(InputError, match="fsdp is True; allowed: an accelerator"):
        plan(batch_tokens=192, fsdp=True)


def test_processes_that_are_started_and_fail_are_told():
    import sys

    from drope.commands import launching

    report = "import os, sys, time; time.sleep(30 * (os.environ['RANK'] == '0')); sys.exit(3)"
    assert launching.launch(2, [sys.executable, "-c", report]) == 3
    assert launching.launch(2, [sys.executable, "-c", "import os; assert os.environ['WORLD_SIZE'] == '2'"]) == 0


def test_numbers_of_processes_that_the_machine_has_not():
    from drope.commands import launching
    from drope.errors import InputError

    for number in (0, 10**6):
        with pytest.raises(InputError, match="--nproc"):
            launching.check(number)
