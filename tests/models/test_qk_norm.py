"""QKNorm by becoming Qwen3: exact where it can be, close where it cannot, and honest about the distance."""

from __future__ import annotations

import families
import pytest
import torch
from transformers import Qwen3ForCausalLM

from drope.errors import InputError, UnsupportedModelError
from drope.models import add_qk_norm, drop, is_position_free, save, set_logit_scale, verify
from drope.models.qk_norm import _Moments

SHAPES = ["Llama", "Mistral", "Qwen2"]


def batch(seed: int = 3) -> torch.Tensor:
    return torch.randint(3, 96, (4, 32), generator=torch.Generator().manual_seed(seed))


def constant_heads(model, q_scale: float, k_scale: float):
    """Give q and k of every head a constant RMS whatever the input: biases alone make them, in equal size.

    Each channel is ± the scale, so each head has exactly that RMS and normalising only divides by it.
    """
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in model.model.layers:
            for projection, scale in ((layer.self_attn.q_proj, q_scale), (layer.self_attn.k_proj, k_scale)):
                projection.weight.zero_()
                signs = torch.randint(0, 2, projection.bias.shape, generator=generator) * 2.0 - 1
                projection.bias.copy_(scale * signs)
    return model


@pytest.mark.parametrize("dropped", [False, True])
def test_heads_of_identical_constant_rms_convert_exactly(dropped):
    model = constant_heads(families.model("Qwen2"), 1.7, 0.6)
    if dropped:
        drop(model)
    expected = families.logits(model, batch())
    new, report = add_qk_norm(model, [batch()])
    torch.testing.assert_close(families.logits(new, batch()), expected, atol=1e-5, rtol=1e-4)
    for layer in new.model.layers:
        torch.testing.assert_close(layer.self_attn.q_norm.weight.detach(), torch.full((8,), 1.7))
        torch.testing.assert_close(layer.self_attn.k_norm.weight.detach(), torch.full((8,), 0.6))
    assert report.kl == pytest.approx(0, abs=1e-6)
    assert report.head_spread == pytest.approx((0, 0), abs=1e-6)
    ones, _ = add_qk_norm(constant_heads(families.model("Qwen2"), 1.7, 0.6), init="ones")
    assert (families.logits(ones, batch()) - expected).abs().max() > 1e-3


def test_the_fitted_gain_is_the_least_squares_solution():
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.5, 2.0, 1.0])[:, None] * torch.linspace(0.5, 1.5, 8)
    x = torch.randn(2, 50, 3, 8, generator=generator) * scales  # (B, T, H, D)
    moments = _Moments(8, eps=1e-6, paired=False)
    for part in x.flatten(-2).split(20, dim=1):
        moments.add(part)
    unit = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    for channel in range(8):
        a, b = unit[..., channel].reshape(-1, 1).double(), x[..., channel].reshape(-1, 1).double()
        assert float(moments.gain()[channel]) == pytest.approx(float(torch.linalg.lstsq(a, b).solution), rel=1e-4)


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("dropped", [False, True])
def test_fitted_is_closer_than_ones(family, dropped):
    results = {}
    for init in ("fitted", "ones"):
        model = families.model(family)
        with torch.no_grad():  # logits far from those of unit RMS: where they are not, ones are as close
            for layer in model.model.layers:
                layer.self_attn.q_proj.weight.mul_(2.5)
                layer.self_attn.k_proj.weight.mul_(1.5)
        if dropped:
            drop(model)
        before = families.logits(model, batch())
        new, report = add_qk_norm(model, [batch()], init=init)
        after = families.logits(new, batch())
        p, q = before.log_softmax(-1), after.log_softmax(-1)
        assert report.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
        loss = -p[:, :-1].gather(-1, batch()[:, 1:, None]).mean()
        assert report.loss_before == pytest.approx(float(loss), rel=1e-4)
        assert report.tokens == batch().numel()
        results[init] = report.kl
    assert results["fitted"] < results["ones"]


@pytest.mark.parametrize("family", SHAPES)
def test_state_is_kept(family, tmp_path):
    model = families.model(family)
    head = model.lm_head.weight.data_ptr()
    new, _ = add_qk_norm(drop(model), [batch()])
    assert isinstance(new, Qwen3ForCausalLM)
    assert new.lm_head.weight.data_ptr() == head, "weights are shared, not copied"
    assert is_position_free(new)
    verify(new)
    assert all(p.requires_grad for p in new.parameters())
    out = save(new, tmp_path / "out", target_length=4 * families.CONTEXT, beta=1.3)
    loaded = Qwen3ForCausalLM.from_pretrained(out)
    set_logit_scale(new, 1.3)
    torch.testing.assert_close(families.logits(loaded), families.logits(new), atol=1e-5, rtol=1e-4)


def test_rope_stays_on_and_pairs_share_a_gain():
    new, _ = add_qk_norm(families.model("Llama"), [batch()])
    assert not is_position_free(new)
    gain = new.model.layers[0].self_attn.q_norm.weight
    torch.testing.assert_close(gain[:4], gain[4:])
    free, _ = add_qk_norm(drop(families.model("Llama")), [batch()])
    gain = free.model.layers[0].self_attn.q_norm.weight
    assert (gain[:4] - gain[4:]).abs().max() > 1e-3


def test_sliding_windows_stay():
    model = families.model("Mistral")  # window 20 of 64
    new, _ = add_qk_norm(model, [batch()])
    assert new.config.layer_types == ["sliding_attention"] * 2
    assert new.config.sliding_window == 20
    ids = families.tokens(40)
    other = ids.clone()
    other[0, 0] = 95 if ids[0, 0] != 95 else 94
    # Two layers of window 20 reach back at most 38 tokens.
    difference = (families.logits(new, ids) - families.logits(new, other)).abs().amax(-1)[0]
    assert difference[39] == 0
    assert difference[5] > 0


def test_qwen2_biases_and_a_zero_output_bias():
    model = families.model("Qwen2")
    bias = model.model.layers[0].self_attn.q_proj.bias
    with torch.no_grad():
        bias.uniform_(-1, 1)
    new, _ = add_qk_norm(model, [batch()])
    assert torch.equal(new.model.layers[0].self_attn.q_proj.bias, bias)
    assert new.model.layers[0].self_attn.o_proj.bias.abs().max() == 0


def test_tied_embeddings_stay_tied():
    new, _ = add_qk_norm(families.model("Llama", tie_word_embeddings=True), [batch()])
    assert new.lm_head.weight is new.model.embed_tokens.weight


def test_attention_masks_are_left_out_of_the_distance():
    model = families.model("Llama")
    mask = torch.ones_like(batch())
    mask[:, 20:] = 0
    _, report = add_qk_norm(model, [{"input_ids": batch(), "attention_mask": mask}])
    assert report.tokens == int(mask.sum())


def test_bad_input():
    with pytest.raises(InputError, match="batches"):
        add_qk_norm(families.model("Llama"))
    with pytest.raises(InputError, match="fitted, ones"):
        add_qk_norm(families.model("Llama"), init="zeros")
    with pytest.raises(InputError, match="shape"):
        add_qk_norm(families.model("Llama"), [torch.arange(8)])
    for family, reason in (("Qwen3", "already"), ("Gemma2", "shape"), ("Phi3", "shape")):
        with pytest.raises(UnsupportedModelError, match=reason):
            add_qk_norm(families.model(family), [batch()])
    with pytest.raises(UnsupportedModelError, match="biases"):
        add_qk_norm(families.model("Llama", mlp_bias=True), [batch()])
    scaled = families.model("Llama")
    set_logit_scale(scaled, 1.5)
    with pytest.raises(InputError, match="temperature"):
        add_qk_norm(scaled, [batch()])
