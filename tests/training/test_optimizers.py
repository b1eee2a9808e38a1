from __future__ import annotations

import copy

import pytest
import torch

from drope.training.muon import Muon, orthogonalise
from drope.training.optimizers import muon_adamw


def test_orthogonalise_brings_singular_values_near_one():
    x = torch.randn(3, 24, 10)
    s = torch.linalg.svdvals(orthogonalise(x))
    assert s.min() > 0.5
    assert s.max() < 1.3


def test_muon_takes_matrices_only():
    with pytest.raises(ValueError, match="matrices only"):
        Muon([torch.zeros(3)])


@pytest.fixture
def made(make_model):
    model = make_model()
    decayed = {n for n, p in model.named_parameters() if p.ndim == 2}
    return model, muon_adamw(model, 0.01, 0.1, (0.9, 0.95), 1e-8, decayed)


def step(model, optimizer):
    ids = torch.arange(32).view(1, 32)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_matrices_of_the_blocks_go_to_muon_and_the_rest_to_adamw(made):
    model, optimizer = made
    muon, adamw = ({id(p) for g in part.param_groups for p in g["params"]} for part in optimizer.parts)
    for name, p in model.named_parameters():
        assert (id(p) in muon) == (p.ndim == 2 and "embed" not in name)
        assert (id(p) in muon) != (id(p) in adamw)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays[id(model.model.norm.weight)] == 0
    assert decays[id(model.model.embed_tokens.weight)] == 0.1


def test_a_scheduler_moves_both_parts_also_after_loading(made):
    _, optimizer = made
    optimizer.load_state_dict(optimizer.state_dict())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert {g["lr"] for part in optimizer.parts for g in part.param_groups} == {0.005}
    assert schedule.get_last_lr()[0] == 0.005


def test_state_goes_through_a_file(made, make_model, tmp_path):
    model, optimizer = made
    step(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    twin = copy.deepcopy(model)
    other = muon_adamw(twin, 0.01, 0.1, (0.9, 0.95), 1e-8, {n for n, p in twin.named_parameters() if p.ndim == 2})
    other.load_state_dict(torch.load(tmp_path / "o.pt", weights_only=True))
    step(model, optimizer)
    step(twin, other)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
