"""Every family that is exported, on the real engines: `make engines`."""

from __future__ import annotations

from importlib.util import find_spec

import exported
import pytest

from drope.errors import InputError, UnsupportedModelError
from drope.export import ENGINES, export, verify
from drope.export.gguf_layouts import LAYOUTS

LLAMA_CPP = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp is not installed (extra llama-cpp)")
MLX = pytest.mark.skipif(find_spec("mlx_lm") is None, reason="mlx-lm is not installed (extra mlx)")
NAMES = {
    "llama": "Llama", "mistral": "Mistral", "mixtral": "Mixtral", "granite": "Granite", "qwen2": "Qwen2",
    "qwen3": "Qwen3", "qwen3_moe": "Qwen3-MoE", "olmo2": "OLMo2", "gemma": "Gemma", "phi": "Phi",
    "stablelm": "StableLM", "gpt_neox": "GPT-NeoX",
}  # fmt: skip


@LLAMA_CPP
@pytest.mark.engines
@pytest.mark.parametrize("kind", LAYOUTS)
def test_llama_cpp_computes_what_every_family_does(kind, tmp_path):
    folder = exported.write(tmp_path / "m", NAMES[kind], beta=1.3)
    # Rounding to 8 bits makes a random router choose other experts: no measure of the layout.
    precision = ("f32", "f16") if kind in ("mixtral", "qwen3_moe") else ("f32", "f16", "q8_0")
    rows = verify(export(folder, tmp_path / "out", "llama.cpp", precision=precision), reference=folder)
    assert len(rows) == 4 * len(precision)
    assert all(row.passed for row in rows), [row for row in rows if not row.passed]


@MLX
@pytest.mark.engines
@pytest.mark.parametrize("kind", [kind for kind in ENGINES["mlx"].families or () if kind in NAMES])
def test_mlx_computes_what_every_family_does(kind, tmp_path):
    folder = exported.write(tmp_path / "m", NAMES[kind], beta=1.3)
    rows = verify(export(folder, tmp_path / "out", "mlx"), ["mlx"])
    assert len(rows) == 4
    assert all(row.passed for row in rows), rows


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llama.cpp", "mlx"])
def test_a_family_that_is_not_proven_is_refused_by_name(engine, tmp_path):
    folder = exported.write(tmp_path / "m", "Cohere")
    with pytest.raises(UnsupportedModelError, match="'cohere'"):
        export(folder, tmp_path / "out", engine)
    assert not (tmp_path / "out").exists()


def test_a_model_that_rotates_is_refused(tmp_path):
    exported.wide("Llama").save_pretrained(tmp_path / "m")
    with pytest.raises(InputError, match="still rotates"):
        export(tmp_path / "m", tmp_path / "out", "vllm")
