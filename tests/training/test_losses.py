from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from drope.training import losses
from drope.training.losses import Logits, chunked_loss, linear_head

N, D, V = 37, 8, 50


def reference(logits, targets, teacher, w, t):
    """The definition, with whole logits and torch's own losses."""
    entropy = F.cross_entropy(logits, targets)
    divergence = F.kl_div(
        F.log_softmax(logits / t, -1), F.log_softmax(teacher / t, -1), log_target=True, reduction="batchmean"
    )
    return (1 - w) * entropy + w * t * t * divergence, entropy, t * t * divergence


@pytest.fixture
def few_rows(monkeypatch):
    """Chunks of 10 rows, the last one shorter."""
    monkeypatch.setattr(losses, "_CHUNK_ELEMENTS_CPU", 10 * V)
    monkeypatch.setattr(losses, "_FEWEST_ROWS", 1)


@pytest.mark.parametrize(("w", "t"), [(0.0, 1.0), (0.7, 1.0), (0.3, 2.5), (1.0, 0.5)])
def test_value_and_gradients_are_those_of_the_definition(few_rows, w, t):
    hidden, weight = torch.randn(N, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    bias = torch.randn(V, requires_grad=True)
    targets = torch.randint(V, (N,))
    teacher = Logits(torch.randn(N, 5), torch.randn(V, 5))
    found = chunked_loss(Logits(hidden, weight, bias), targets, teacher, w, t)
    (3 * found.loss).backward()
    ours = [x.grad.clone() for x in (hidden, weight, bias)]
    for x in (hidden, weight, bias):
        x.grad = None
    expected = reference(hidden @ weight.T + bias, targets, teacher.hidden @ teacher.weight.T, w, t)
    (3 * expected[0]).backward()
    torch.testing.assert_close(found.loss, expected[0])
    torch.testing.assert_close(found.cross_entropy, expected[1])
    if w:
        torch.testing.assert_close(found.divergence, expected[2])
    for grad, x in zip(ours, (hidden, weight, bias), strict=True):
        torch.testing.assert_close(grad, x.grad)


def test_gradients_in_double_precision_by_finite_differences(few_rows):
    hidden = torch.randn(5, 3, dtype=torch.double, requires_grad=True)
    weight = torch.randn(7, 3, dtype=torch.double, requires_grad=True)
    targets, teacher = torch.randint(7, (5,)), Logits(torch.randn(5, 7, dtype=torch.double))

    def loss(h, w):
        return chunked_loss(Logits(h, w), targets, teacher, 0.6, 1.7).loss

    # The sums are kept in float32, hence the coarse steps.
    torch.autograd.gradcheck(loss, (hidden, weight), eps=1e-2, atol=2e-3, rtol=2e-3)


def test_logits_that_a_model_computed_itself(few_rows):
    logits, targets = torch.randn(N, V, requires_grad=True), torch.randint(V, (N,))
    teacher = torch.randn(N, V)
    found = chunked_loss(Logits(logits), targets, Logits(teacher), 0.5, 1.0)
    found.loss.backward()
    grad, logits.grad = logits.grad, None
    reference(logits, targets, teacher, 0.5, 1.0)[0].backward()
    torch.testing.assert_close(grad, logits.grad)


def test_autocast_computes_in_its_dtype_and_gives_float32_gradients(few_rows):
    hidden, weight = torch.randn(N, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    targets = torch.randint(V, (N,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = chunked_loss(Logits(hidden, weight), targets)
    found.loss.backward()
    assert found.loss.dtype == weight.grad.dtype == torch.float32
    expected = F.cross_entropy((hidden.bfloat16() @ weight.bfloat16().T).float(), targets)
    torch.testing.assert_close(found.loss, expected)
    assert not torch.equal(found.loss, F.cross_entropy(hidden @ weight.T, targets))


def test_a_target_whose_probability_is_no_float_has_its_loss_and_gradient():
    logits = torch.tensor([[0.0, 300.0, 0.0], [1e4, 0.0, 1e4]], requires_grad=True)
    targets = torch.tensor([0, 1])
    found = chunked_loss(Logits(logits), targets)
    found.loss.backward()
    grad, logits.grad = logits.grad, None
    expected = F.cross_entropy(logits, targets)
    expected.backward()
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(grad, logits.grad)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen(bad):
    hidden = torch.randn(N, D)
    hidden[3, 2] = bad
    assert not chunked_loss(Logits(hidden, torch.randn(V, D)), torch.randint(V, (N,))).loss.isfinite()


def test_nothing_to_predict_is_no_loss_and_no_gradient():
    hidden, weight = torch.randn(0, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    found = chunked_loss(Logits(hidden, weight), torch.randint(V, (0,)))
    found.loss.backward()
    assert found.loss == 0
    assert not weight.grad.any()


def test_no_gradients_where_none_are_wanted():
    hidden, weight = torch.randn(N, D), torch.randn(V, D, requires_grad=True)
    with torch.no_grad():
        assert not chunked_loss(Logits(hidden, weight), torch.randint(V, (N,))).loss.requires_grad


def test_linear_head_is_found_where_logits_are_linear_only(make_model):
    model = make_model()
    assert linear_head(model) is model.lm_head
    from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    sizes = {
        "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    assert linear_head(Gemma2ForCausalLM(Gemma2Config(**sizes))) is None
    assert linear_head(GraniteForCausalLM(GraniteConfig(logits_scaling=8.0, **sizes))) is None
    assert linear_head(GraniteForCausalLM(GraniteConfig(**sizes))) is not None
