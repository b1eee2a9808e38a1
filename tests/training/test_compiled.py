from __future__ import annotations

from functools import partial

import pytest
import torch

from drope import drop
from drope.errors import InputError
from drope.training import recalibrate
from drope.training.compiled import check_compile, compiled

# torch's own use, when its compiler is imported
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")


@pytest.fixture
def compiler(make_model):
    try:
        check_compile(make_model())
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def config(small_run):
    return partial(small_run, tokens=12 * 128, eval_every=128)


@pytest.mark.slow  # compiling takes up to a minute on one core
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    "settings",
    [{}, {"distill": 0.5, "match": 0.5}, {"fade": "lowest_first"}, {"virtual_length": 4}],
    ids=str,
)
def test_compiled_training_goes_the_same_way(make_model, tokenizer, config, tmp_path, settings):
    plain = recalibrate(make_model(), tokenizer, config(**settings), tmp_path / "plain")
    ours = recalibrate(make_model(), tokenizer, config(compile=True, **settings), tmp_path / "compiled")
    for expected, found in zip(plain.history, ours.history, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    for (name, a), b in zip(plain.model.named_parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_one_graph_serves_all_layers_and_nothing_stays(make_model):
    from torch._dynamo.utils import counters

    model = drop(make_model())
    ids = torch.arange(16).view(2, 8)
    before = model(ids, use_cache=False).logits
    torch.compiler.reset()
    counters.clear()
    with compiled(model):
        torch.testing.assert_close(model(ids, use_cache=False).logits, before)
        assert counters["stats"]["unique_graphs"] == 1 < len(model.model.layers)
    assert not any("forward" in vars(layer) for layer in model.model.layers)
    assert not counters["graph_break"]


def test_layers_that_cannot_be_taken_one_by_one_are_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(InputError, match="layers of GPT2LMHeadModel cannot be taken one by one"):
        check_compile(model)


def test_a_machine_without_a_compiler_is_told_before_work_begins(make_model, tokenizer, config, tmp_path, monkeypatch):
    def compile_nothing(function):
        def fail(*args):
            raise RuntimeError("InvalidCxxCompiler: no working g++ was found")

        return fail

    monkeypatch.setattr(torch, "compile", compile_nothing)
    with pytest.raises(InputError, match=r"false on this machine.*needs a C\+\+ compiler.*no working g\+\+"):
        recalibrate(make_model(), tokenizer, config(compile=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()
