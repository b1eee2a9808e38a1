from __future__ import annotations

import pytest
import torch
from runs import same, weights

from drope import models
from drope.errors import DropeError, InputError
from drope.training import recalibrate
from drope.training.callbacks import read_history


def test_a_run_learns_and_ends_position_free(make_model, tokenizer, config, tmp_path):
    model = make_model()
    result = recalibrate(model, tokenizer, config(tokens=60 * 128), tmp_path / "run")
    assert result.model is model
    assert models.is_position_free(model)
    assert result.tokens_seen == 60 * 128
    assert result.steps == 60
    first, last = result.history[0], result.history[-1]
    assert first["tokens"] == 0
    assert last["tokens"] == result.tokens_seen
    assert last["eval_loss"] < first["eval_loss"] - 0.5
    assert last["loss"] < 3.9
    assert {"loss", "objective", "learning_rate", "tokens_per_second", "eval_loss"} <= set(last)
    assert last["loss"] == pytest.approx(last["objective"])
    assert read_history(tmp_path / "run" / "history.jsonl") == result.history
    assert not model.training
    assert model.config.use_cache is True
    assert all(p.grad is None for p in model.parameters())
    names = {p.name for p in (tmp_path / "run").rglob("*")}
    assert "model.safetensors" in names
    assert not names & {"training_args.bin", "pytorch_model.bin"}


def test_held_out_loss_is_the_models_own(make_model, tokenizer, config, tmp_path):
    from drope.data.packing import pack

    model = make_model()
    result = recalibrate(model, tokenizer, config(), tmp_path / "run")
    blocks = pack(config().data, tokenizer, 32, tokens=4 * 32, heldout=True)
    ids = torch.stack([row["input_ids"] for row in blocks.dataset])
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids).loss.item()
    assert result.history[-1]["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_step_is_adamw_on_the_mean_loss(make_model, tokenizer, config, tmp_path):
    """One whole step against torch alone: accumulation, clipping, decay, rate."""
    from drope.data.packing import pack

    settings = config(tokens=128, eval_blocks=0, schedule="constant", warmup=0)
    model, plain = make_model(), models.drop(make_model())
    ids = torch.stack([row["input_ids"] for row in pack(settings.data, tokenizer, 32, tokens=128).dataset])
    recalibrate(model, tokenizer, settings, tmp_path / "run")
    decayed = [p for p in plain.parameters() if p.ndim == 2]
    rest = [p for p in plain.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    plain(input_ids=ids, labels=ids).loss.backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    optimizer.step()
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=2e-4, rtol=1e-3, msg=name)  # Adam's first step amplifies last bits


def test_control_keeps_rope_and_sees_the_same_blocks(make_model, tokenizer, config, tmp_path):
    seen: dict[str, list] = {"a": [], "b": []}

    def run(key, **kwargs):
        model = make_model()
        watch = model.model.embed_tokens.register_forward_pre_hook(
            lambda m, args: seen[key].append(args[0].clone()) if m.training else None
        )
        result = recalibrate(model, tokenizer, config(), tmp_path / key, **kwargs)
        watch.remove()
        return result

    run("a")
    control = run("b", control=True)
    assert not models.is_position_free(control.model)
    assert torch.equal(torch.cat(seen["a"]), torch.cat(seen["b"]))
    dropped = models.drop(make_model())
    back = recalibrate(dropped, tokenizer, config(), tmp_path / "c", control=True)
    assert same(weights(back.model), weights(control.model))


def test_the_teacher_is_the_rotating_original_and_stays_as_it_is(make_model, tokenizer, config, tmp_path):
    settings = config(distill=1.0, learning_rate=1e-9, eval_blocks=0, tokens=128)
    teacher = make_model()
    before = weights(teacher)
    explicit = recalibrate(make_model(), tokenizer, settings, tmp_path / "a", teacher=teacher)
    implicit = recalibrate(models.drop(make_model()), tokenizer, settings, tmp_path / "b")
    first = explicit.history[0]["divergence"]
    assert first > 0
    assert first == implicit.history[0]["divergence"] == explicit.history[0]["objective"]
    assert same(before, weights(teacher))
    rope = recalibrate(make_model(), tokenizer, settings, tmp_path / "c", as_is=True, teacher=teacher)
    assert abs(rope.history[0]["divergence"]) < 1e-6  # the same function


def test_bfloat16_weights_train_in_float32_and_come_back(make_model, tokenizer, config, tmp_path):
    model = make_model().bfloat16()
    model.model.rotary_emb.inv_freq = make_model().model.rotary_emb.inv_freq  # as from_pretrained leaves it
    recalibrate(model, tokenizer, config(), tmp_path / "run")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    models.restore(model)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "run" / "checkpoints" / "checkpoint-16" / "model.safetensors")
    assert {t.dtype for t in saved.values()} == {torch.float32}


def test_bf16_computes_in_bfloat16_over_float32_weights(make_model, tokenizer, config, tmp_path):
    model, dtypes = make_model(), set()
    watch = model.model.layers[0].mlp.up_proj.register_forward_hook(
        lambda m, i, o: dtypes.add(o.dtype) if m.training else None
    )
    forward = type(model).forward
    recalibrate(model, tokenizer, config(precision="bf16", tokens=2 * 128, eval_blocks=0), tmp_path / "run")
    watch.remove()
    assert dtypes == {torch.bfloat16}
    assert "forward" not in vars(model)
    assert type(model).forward is forward


def test_soft_capped_logits_take_the_models_own_way(tokenizer, config, tmp_path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    shape = Gemma2Config(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=32, sliding_window=16, query_pre_attn_scalar=8,
        final_logit_softcapping=2.0, bos_token_id=0, eos_token_id=0, pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    model = Gemma2ForCausalLM(shape).eval()
    result = recalibrate(model, tokenizer, config(distill=0.5), tmp_path / "run")
    assert result.history[-1]["eval_loss"] < result.history[0]["eval_loss"]


def test_training_arguments_pass_through(make_model, tokenizer, config, tmp_path):
    settings = config(training_arguments={"optim": "adafactor", "save_total_limit": 1})
    recalibrate(make_model(), tokenizer, settings, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-16"]


def test_a_loss_that_is_not_finite_stops_the_run(make_model, tokenizer, config, tmp_path):
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(DropeError, match="lower learning_rate"):
        recalibrate(model, tokenizer, config(eval_blocks=0), tmp_path / "run")


def test_bad_input(make_model, tokenizer, config, tmp_path):
    def refused(match, model=None, **changes):
        with pytest.raises(InputError, match=match):
            recalibrate(model or make_model(), tokenizer, config(**changes), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    refused("context is 64; allowed: at most the model's own 32", context=64)
    refused("tokens is 127; allowed: at least one step of 128", tokens=127)
    refused("batch_tokens is 31", batch_tokens=31)
    refused("micro_batch is 3; allowed: a divisor of the 4", micro_batch=3)
    refused("warmup is 17", warmup=17)
    refused("tokenizer is 'of 64 tokens'", model=make_model(vocab_size=40))
    refused("teacher", model=make_model(rope_parameters=STOPPED), distill=0.5)
    refused("fade", model=make_model(rope_parameters=STOPPED), fade="linear")


STOPPED = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 1e20, "low_freq_factor": 32.0, "high_freq_factor": 64.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def test_a_position_free_checkpoint_may_go_on(make_model, tokenizer, config, tmp_path):
    model = make_model(rope_parameters=STOPPED, max_position_embeddings=64)
    result = recalibrate(model, tokenizer, config(), tmp_path / "run")
    assert models.is_position_free(result.model)
    assert result.settings["context"] == 32


def test_defaults_of_the_learning_rate(make_model, tokenizer, config, tmp_path):
    from drope.training.plan import make_plan

    plain = make_plan(make_model(), tokenizer, config(learning_rate=None), None, None, False)
    assert plain.learning_rate == 3e-4
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = Qwen3Config(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=32,
    )  # fmt: skip
    normed = Qwen3ForCausalLM(shape)
    assert make_plan(normed, tokenizer, config(learning_rate=None), None, None, False).learning_rate == 1e-3


def test_nothing_is_printed(make_model, tokenizer, config, tmp_path, capfd):
    recalibrate(make_model(), tokenizer, config(tokens=128), tmp_path / "run")
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


def test_the_module_needs_no_torch_to_be_configured():
    import subprocess
    import sys

    code = "import sys; from drope.training import RecalibrationConfig; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_teacher_with_another_vocabulary_is_refused(make_model, tokenizer, config, tmp_path):
    with pytest.raises(InputError, match="teacher is 'LlamaForCausalLM'; allowed: a model with the same vocabulary"):
        recalibrate(make_model(), tokenizer, config(distill=0.5), tmp_path / "run", teacher=make_model(vocab_size=65))
    with pytest.raises(InputError, match=r"training_arguments\.fp16"):
        config(training_arguments={"fp16": True})
