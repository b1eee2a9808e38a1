"""The whole pipeline on a tiny random model: what it writes, that it resumes, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from drope.errors import InputError
from drope.evaluation import EvaluationConfig
from drope.models import apply, drop, is_position_free, load, save
from drope.pipeline import ExtendConfig, extend
from drope.positions import Drope
from drope.positions.temperatures import Tempered
from drope.results import Results
from drope.temperature import read_fit
from drope.training import RecalibrationConfig

CONTEXT, TARGET = 128, 256


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = load("bundled", weights=False).tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def config():
    recalibration = RecalibrationConfig(
        data="stdlib:prose", tokens=4 * 1024, batch_tokens=1024, distill=0.5, fade="lowest_first", fade_share=0.5
    )
    evaluation = EvaluationConfig(
        tasks=("multi_key",), lengths=(CONTEXT, TARGET), trials=2, max_new_tokens=8, documents=1
    )
    return ExtendConfig(
        TARGET, recalibration, evaluation, methods=("rope", "yarn"), control=True, temperature_tokens=512
    )


@pytest.fixture(scope="module")
def extended(source, config, tmp_path_factory):
    stages: list[str] = []
    out = tmp_path_factory.mktemp("run") / "out"
    return extend(source, out, config, say=stages.append), out, stages


def test_everything_is_measured_and_written(extended, source):
    done, out, stages = extended
    assert len(stages) == 5
    assert {m.method for m in done.results.measurements} == {"drope", "rope", "yarn", "control", "sliding_window"}
    assert {row["run"] for row in done.results.recovery} == {"drope", "control"}
    assert [row["length"] for row in done.results.temperature] == [TARGET]
    assert Results.load(out / "results.json") == done.results
    assert "<html" in done.report.read_text(encoding="utf-8")
    assert source not in (out / "results.json").read_text(encoding="utf-8")  # no paths of this machine


def test_the_checkpoint_is_stock_and_position_free(extended):
    done, _, _ = extended
    model = AutoModelForCausalLM.from_pretrained(done.checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(done.checkpoint)
    assert type(model) is LlamaForCausalLM
    assert is_position_free(model)
    assert model.config.max_position_embeddings == tokenizer.model_max_length == TARGET
    ids = tokenizer("The special magic", return_tensors="pt").input_ids
    cached, plain = (model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=c) for c in (True, False))
    assert torch.equal(cached, plain)


def test_the_same_command_again_trains_nothing(extended, source, config):
    done, out, _ = extended
    files = [*(out / "recalibration").rglob("*.safetensors"), *(out / "samples").iterdir(), out / "temperature.json"]
    before = {f: f.stat().st_mtime_ns for f in files}
    again = extend(source, out, config)
    assert {f: f.stat().st_mtime_ns for f in files} == before
    assert again.results.measurements == done.results.measurements


def test_other_settings_need_another_folder(extended, source, config):
    _, out, _ = extended
    with pytest.raises(InputError, match=r"recalibration\.tokens"):
        extend(source, out, replace(config, recalibration=replace(config.recalibration, tokens=8192)))


def test_going_on_from_a_checkpoint(extended, source, config, tmp_path):
    part, loaded = tmp_path / "part", load(source)
    save(drop(loaded.model), part, loaded.tokenizer, target_length=TARGET, provenance={"tokens": 5000})
    shorter = replace(config.recalibration, tokens=1024)
    further = replace(config, continue_from=str(part), control=False, recalibration=shorter)
    results = extend(source, tmp_path / "out", further).results
    assert results.meta["recalibration_tokens"] == 5000 + 1024
    with pytest.raises(InputError, match="position-free"):
        extend(source, tmp_path / "other", replace(further, continue_from=source))


def test_a_temperature_for_each_head_is_measured_and_folded(source, config, tmp_path):
    plain = replace(config.recalibration, fade=None, distill=0.0, tokens=1024)
    changes = {"temperature_form": "per_head_log", "temperature_steps": 2, "temperature_objective": "needles"}
    out = tmp_path / "out"
    done = extend(source, out, replace(config, control=False, recalibration=plain, **changes))
    (row,) = done.results.temperature
    assert row["length"] == TARGET
    assert row["beta"] == pytest.approx(1 + row["a"] * math.log(2))
    fit = read_fit(out / "temperature.json")
    trained = load(source).model
    trained.load_state_dict(
        load_file(next((out / "recalibration").rglob("checkpoint-*/model.safetensors"))), strict=False
    )
    ids = torch.randint(3072, (1, TARGET))
    with torch.no_grad(), apply(drop(trained), Tempered(Drope(), fit.temperature), TARGET):
        expected = trained(ids).logits
    found = AutoModelForCausalLM.from_pretrained(done.checkpoint)(ids).logits
    assert torch.allclose(found, expected, atol=1e-4)


def test_qk_norm_needs_no_context_from_the_user(source, config, tmp_path):
    plain = replace(config.recalibration, fade=None, distill=0.0, tokens=1024)
    normed = replace(config, qk_norm=True, control=False, recalibration=plain)
    assert type(AutoModelForCausalLM.from_pretrained(extend(source, tmp_path / "out", normed).checkpoint)).__name__ == (
        "Qwen3ForCausalLM"
    )


def test_a_folded_temperature_cannot_be_trained_on(source, config, tmp_path):
    part, loaded = tmp_path / "part", load(source)
    save(drop(loaded.model), part, loaded.tokenizer, target_length=TARGET, beta=1.25)
    with pytest.raises(InputError, match=r"1\.25 folded"):
        extend(source, tmp_path / "out", replace(config, continue_from=str(part)))


@pytest.mark.parametrize("to", [CONTEXT, 64])
def test_a_target_inside_the_context_is_refused(source, config, tmp_path, to):
    with pytest.raises(InputError, match="--to"):
        extend(source, tmp_path / "out", replace(config, to=to))


def test_a_folder_of_other_things_is_left_alone(source, config, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="--out"):
        extend(source, tmp_path, config)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
