import pytest
import torch

from drope.training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (32, 8), (3, 12, 6)])
def test_orthogonalise_is_the_polar_factor(shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    found = orthogonalise(x)
    # the quintic iteration leaves singular values between about 0.7 and 1.2, in the right directions
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.3
    assert values.max() < 1.3
    assert torch.nn.functional.cosine_similarity((u @ v).flatten(), found.flatten(), dim=0) > 0.95


def test_a_step_equals_the_formula():
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(6, 10))
    before, gradient = w.detach().clone(), torch.randn(6, 10)
    w.grad = gradient.clone()
    Muon([w], lr=0.1, momentum=0.9, weight_decay=0.5).step()
    average = 0.1 * gradient  # the first step of the gradient's average
    nesterov = 0.1 * gradient + 0.9 * average
    expected = before * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 10**0.5 * orthogonalise(nesterov)
    assert torch.allclose(w, expected, atol=1e-6)


def test_batched_by_shape_equals_one_by_one():
    torch.manual_seed(0)
    start = [torch.randn(4, 8) for _ in range(3)]
    gradients = [torch.randn(4, 8) for _ in range(3)]
    together = [torch.nn.Parameter(s.clone()) for s in start]
    alone = [torch.nn.Parameter(s.clone()) for s in start]
    for p, q, g in zip(together, alone, gradients, strict=True):
        p.grad, q.grad = g.clone(), g.clone()
        Muon([q], lr=0.1).step()
    Muon(together, lr=0.1).step()
    for p, q in zip(together, alone, strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="matrices only"):
        Muon([torch.nn.Parameter(torch.zeros(4))])
