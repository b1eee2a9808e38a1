"""The examples run as they are written."""

from __future__ import annotations

import importlib.util
from importlib.util import find_spec
from pathlib import Path

import exported
import pytest

from drope.models import load
from drope.models.adapters import adapter_mismatch

EXAMPLES = Path(__file__).parents[2] / "examples"
missing = [name for name in ("trl", "peft") if find_spec(name) is None]


@pytest.mark.slow
@pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)} (extra examples)")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # theirs, of one another
def test_a_converted_checkpoint_fine_tunes_with_trl_and_lora(tmp_path):
    spec = importlib.util.spec_from_file_location("finetune_trl", EXAMPLES / "finetune_trl.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    folder = exported.write(tmp_path / "m")
    fell = example.main([str(folder), str(tmp_path / "lora"), "--steps", "10"])
    assert fell > 0.3
    assert adapter_mismatch(load(folder).model, tmp_path / "lora") is None
