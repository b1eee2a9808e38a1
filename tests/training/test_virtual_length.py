from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from drope import models
from drope.errors import InputError
from drope.training import RecalibrationConfig, recalibrate
from drope.training.virtual_length import check_virtual_length, log_copies, weighted_causal_mask


def one_layer(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**(sizes | changes))).eval()
    models.drop(model)
    return model


def test_a_weighted_context_is_the_longer_one_with_the_tokens_repeated():
    model = one_layer()
    ids = torch.randint(64, (1, 20), generator=torch.Generator().manual_seed(1))
    copies = torch.tensor([[3, 1, 1, 4, 1, 5, 5, 5, 1, 1, 2, 7, 1, 1, 1, 3, 3, 1, 1, 1]])
    with torch.no_grad():
        weighted = model(input_ids=ids, attention_mask=weighted_causal_mask(copies.log().float(), torch.float32)).logits
        longer = model(input_ids=ids.repeat_interleave(copies[0], dim=1)).logits
    last = copies[0].cumsum(0) - 1  # of each token's copies, the one that sees all of them
    torch.testing.assert_close(weighted[0], longer[0, last], rtol=1e-4, atol=1e-4)


def test_documents_apart_see_only_themselves():
    documents = torch.tensor([[0, 0, 1, 1]])
    mask = weighted_causal_mask(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.float32, documents)[0, 0]
    no = torch.finfo(torch.float32).min
    assert mask.tolist() == [[0, no, no, no], [0, 1, no, no], [no, no, 2, no], [no, no, 2, 3]]


def test_spans_count_once_or_m_times_with_m_up_to_the_largest():
    blocks = [log_copies(torch.randint(1000, (256,)), 8.0, seed=3) for _ in range(300)]
    top = torch.stack([b.max() for b in blocks])
    assert all(set(b.tolist()) <= {0.0, b.max().item()} for b in blocks)
    assert top.max() <= math.log(8) + 1e-6
    # A tenth is left as it is; the other maxima are uniform in ln m, less the few blocks whose tosses all fell on 1.
    assert 0.05 < (top == 0).float().mean() < 0.25
    assert top[top > 0].mean() == pytest.approx(math.log(8) / 2, rel=0.15)
    raised = torch.stack([(b > 0).float().mean() for b in blocks if b.max() > 0])
    assert raised.mean() == pytest.approx(0.5, abs=0.05)
    changes = torch.stack([(b.diff() != 0).sum() for b in blocks if b.max() > 0]).float()
    assert 256 / 64 / 4 < changes.mean() < 256 / 8  # spans of 8 to 64; half the borders change nothing


def test_the_draw_hangs_on_block_and_seed_alone():
    ids = torch.arange(64)
    assert torch.equal(log_copies(ids, 16.0, 0), log_copies(ids.int(), 16.0, 0))
    others = [log_copies(ids, 16.0, seed) for seed in range(1, 4)] + [log_copies(ids.flip(0), 16.0, 0)]
    assert all(not torch.equal(log_copies(ids, 16.0, 0), other) for other in others)


def settings(text, **changes) -> RecalibrationConfig:
    plain = {"data": str(text), "tokens": 8 * 128, "batch_tokens": 128, "eval_blocks": 2, "precision": "float32"}
    return RecalibrationConfig(**(plain | changes))


def test_training_weighs_what_evaluation_and_control_do_not(make_model, tokenizer, text, tmp_path):
    runs = {}
    for name, factor, control in (
        ("as is", 1.0, False),
        ("longer", 16.0, False),
        ("c1", 1.0, True),
        ("c16", 16.0, True),
    ):
        config = settings(text, virtual_length=factor)
        runs[name] = recalibrate(make_model(), tokenizer, config, tmp_path / name, control=control).history
    assert runs["as is"][0]["eval_loss"] == runs["longer"][0]["eval_loss"]
    assert runs["as is"][1]["loss"] != runs["longer"][1]["loss"]
    assert [r.get("loss") for r in runs["c1"]] == [r.get("loss") for r in runs["c16"]]


def test_micro_batches_do_not_change_the_draw(make_model, tokenizer, text, tmp_path):
    ends = []
    for micro in (1, 4):
        config = settings(text, virtual_length=8.0, micro_batch=micro)
        ends.append(recalibrate(make_model(), tokenizer, config, tmp_path / str(micro)).history[-1]["loss"])
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)


def test_document_masks_and_a_teacher_go_with_it(make_model, tokenizer, text, tmp_path):
    config = settings(text, virtual_length=8.0, document_mask=True, distill=0.5, fade="lowest_first")
    result = recalibrate(make_model(), tokenizer, config, tmp_path / "run")
    assert all(math.isfinite(row["objective"]) for row in result.history[1:])


def test_attention_that_takes_no_mask_is_refused():
    model = one_layer()
    check_virtual_length(model, 64)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="sdpa or eager"):
        check_virtual_length(model, 64)


def test_windows_shorter_than_the_block_are_refused():
    from transformers import MistralConfig, MistralForCausalLM

    model = MistralForCausalLM(MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=32))  # fmt: skip
    check_virtual_length(model, 32)
    with pytest.raises(InputError, match="windows of 32"):
        check_virtual_length(model, 64)


def test_less_than_one_is_refused(text):
    with pytest.raises(InputError, match="virtual_length"):
        settings(text, virtual_length=0.5)
