"""Real engines against transformers, and the controls that show that a returned rotation would be found."""

from __future__ import annotations

import json
from importlib.util import find_spec

import exported
import families
import pytest
from transformers import AutoConfig

from drope.commands import main
from drope.errors import InputError
from drope.export import export, verify
from drope.export.gguf_file import write_gguf
from drope.models import drop, save

LLAMA_CPP = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp is not installed (extra llama-cpp)")
MLX = pytest.mark.skipif(find_spec("mlx_lm") is None, reason="mlx-lm is not installed (extra mlx)")


def with_rope(folder, **changes):
    """Put the rotation back in a checkpoint's config."""
    path = folder / "config.json"
    plain = json.loads(path.read_text())
    rope = {"rope_type": "default", "rope_theta": plain["rope_parameters"]["rope_theta"]}
    path.write_text(json.dumps(plain | {"rope_parameters": rope, "rope_scaling": None} | changes))


def test_transformers_passes_at_lengths_below_and_above_the_context(tmp_path):
    rows = verify(exported.write(tmp_path / "m", beta=1.3), ["transformers"])
    assert [(row.length, row.cached) for row in rows] == [(32, False), (32, True), (96, False), (96, True)]
    assert all(row.passed and row.difference < 1e-4 < row.control for row in rows), rows


def test_a_transformers_checkpoint_that_rotates_is_caught(tmp_path):
    folder = exported.write(tmp_path / "m")
    rotating = tmp_path / "rotating"
    rotating.mkdir()
    for file in folder.iterdir():
        (rotating / file.name).write_bytes(file.read_bytes())
    with_rope(rotating)
    with pytest.raises(InputError, match="still rotates"):
        verify(rotating, ["transformers"])
    rows = verify(rotating, ["transformers"], reference=folder)
    assert not any(row.passed for row in rows)
    assert "rotation put back is that far away too" in rows[0].problem


def test_a_comparison_that_cannot_tell_fails(tmp_path):
    """Where nothing is attended to differently, a rotation would not show."""
    model = exported.wide("Llama")
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    folder = save(drop(model), tmp_path / "m", exported.tokenizer(), target_length=exported.TARGET)
    rows = verify(folder, ["transformers"])
    assert not any(row.passed for row in rows)
    assert all("cannot tell" in row.problem for row in rows)


@LLAMA_CPP
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_llama_cpp_passes_and_its_rotation_is_caught(family, tmp_path):
    folder = exported.write(tmp_path / "m", family, beta=1.3)
    out = export(folder, tmp_path / "gguf", "llama.cpp")
    rows = verify(out, reference=folder)
    assert {row.engine for row in rows} == {"llama.cpp (f16)", "llama.cpp (q8_0)"}
    assert all(row.passed for row in rows), [row for row in rows if not row.passed]

    config = AutoConfig.from_pretrained(folder)
    write_gguf(folder, config, out / "model-f16.gguf", precision="f16", length=exported.TARGET, encoding="rope")
    rows = [row for row in verify(out, reference=folder) if row.engine.endswith("(f16)")]
    assert rows
    assert not any(row.passed for row in rows)


@LLAMA_CPP
def test_llama_cpp_with_other_tokens_is_caught(tmp_path):
    folder = exported.write(tmp_path / "m")
    rows = verify(folder, ["llama.cpp"], pre="llama-bpe")
    assert "tokens differ" in rows[-1].problem


@MLX
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_mlx_passes_and_its_rotation_is_caught(family, tmp_path):
    folder = exported.write(tmp_path / "m", family, beta=1.3)
    out = export(folder, tmp_path / "mlx", "mlx")
    assert json.loads((out / "config.json").read_text())["rope_scaling"]["factor"] == 1e20
    rows = verify(out, ["mlx"])
    assert all(row.passed for row in rows), rows
    with_rope(out)
    rows = verify(out, ["mlx"], reference=folder)
    assert not any(row.passed for row in rows), rows


def test_the_command_fails_loudly(tmp_path, capsys):
    folder = exported.write(tmp_path / "m")
    assert main(["verify", str(folder), "--engine", "transformers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    assert main(["verify", str(folder), "--engine", "transformers", "--tolerance", "1e-12"]) == 1
    shown = capsys.readouterr()
    assert "FAILED" in shown.out
    assert "off by" in shown.err


def test_bad_input(tmp_path):
    families.model("Llama").save_pretrained(tmp_path / "rope")
    with pytest.raises(InputError, match="still rotates"):
        verify(tmp_path / "rope")
    folder = exported.write(tmp_path / "m")
    with pytest.raises(InputError, match="--lengths"):
        verify(folder, lengths=[exported.TARGET + 1])
    with pytest.raises(InputError, match="--engine"):
        verify(folder, ["tensorrt"])
    with pytest.raises(InputError, match="--base-url"):
        verify(folder, base_url="http://127.0.0.1:9/v1")
    (tmp_path / "m" / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="--reference"):
        verify(folder)
