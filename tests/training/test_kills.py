"""kill -9 of real processes at random points; what goes on from there ends with the same bits."""

from __future__ import annotations

import random
import time

import pytest
import runs
import torch
from safetensors.torch import load_file

KILLS = 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "muon", "distill": 0.5, "fade": "lowest_first"}], ids=["paper", "fast"]
)
def test_any_number_of_kills_changes_nothing(text, tmp_path, changes):
    settings = {
        "data": str(text), "tokens": 60 * 128, "batch_tokens": 128, "learning_rate": 1e-2, "eval_blocks": 2,
        "eval_every": 20 * 128, "save_every": 2 * 128, "precision": "float32", "micro_batch": 2, **changes,
    }  # fmt: skip
    whole = tmp_path / "whole"
    whole.mkdir()
    assert runs.launch(1, whole, settings) == [0]  # also warms the server of processes
    expected = load_file(whole / "model" / "model.safetensors")
    began = time.monotonic()
    again = tmp_path / "again"
    again.mkdir()
    assert runs.launch(1, again, settings) == [0]
    lifetime = time.monotonic() - began
    rng, kills = random.Random(0), 0
    while kills < KILLS:
        out = tmp_path / f"killed-{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        for _life in range(100):
            process = runs.context().Process(target=runs.work, args=({}, out, settings, (out / "run").exists()))
            process.start()
            process.join(rng.uniform(0.0, 0.8) * lifetime)
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            if process.exitcode == 0:  # it was done between the look and the kill
                break
            assert process.exitcode == -9
            kills += 1
        assert process.exitcode == 0
        found = load_file(out / "model" / "model.safetensors")
        assert all(torch.equal(found[name], expected[name]) for name in expected)
