from __future__ import annotations

import pytest
import torch

from drope.errors import InputError
from drope.training.budget import GIB, Shape, budget, memory


def llama(hidden, wide, layers, heads, kv, vocabulary=32000, context=4096, tied=False):
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=hidden, intermediate_size=wide, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, vocab_size=vocabulary, max_position_embeddings=context, tie_word_embeddings=tied,
    )  # fmt: skip


#: The published sizes: name -> (config, parameters).
MODELS = {
    "SmolLM2-135M": (llama(576, 1536, 30, 9, 3, 49152, 8192, True), 134_515_008),
    "SmolLM-360M": (llama(960, 2560, 32, 15, 5, 49152, 2048, True), 361_821_120),
    "SmolLM-1.7B": (llama(2048, 8192, 24, 32, 32, 49152, 2048, True), 1_711_376_384),
    "Llama-2-7B": (llama(4096, 11008, 32, 32, 32), 6_738_415_616),
    "Llama-2-70B": (llama(8192, 28672, 80, 64, 8), 68_976_648_192),
}


@pytest.mark.parametrize("name", MODELS)
def test_published_models_fit_on_eight_h100(name):
    config, parameters = MODELS[name]
    shape = Shape.of(config)
    assert shape.parameters == parameters
    gpus = "8xH100" if parameters < 2e10 else "64xH100"
    found = budget(shape, gpus, 20_000_000_000)
    assert found.memory.total <= 0.9 * 80 * GIB
    assert found.sharding == ("ddp" if parameters < 3e9 else "fsdp")
    assert found.micro_batch * found.accumulation * found.gpus * found.context == found.batch_tokens
    weights = parameters - (0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size)
    attention = 6 * config.num_hidden_layers * config.hidden_size * found.context
    assert found.flops_per_token == pytest.approx(6 * weights + attention)
    assert found.gpu_hours == pytest.approx(found.seconds * found.gpus / 3600)


def test_time_of_llama_2_7b_by_hand():
    found = budget(Shape.of(MODELS["Llama-2-7B"][0]), "8xH100", 20_000_000_000, mfu=0.5)
    weights = 6_738_415_616 - 32000 * 4096
    attention = 12 * 32 * 4096 * 4096 / 2
    each = 6 * weights + attention
    if found.checkpointing:
        each *= 4 / 3
    assert found.seconds == pytest.approx(found.steps * found.batch_tokens * each / (8 * 989e12 * 0.5), rel=1e-6)


def saved_bytes(model, ids, bf16):
    """Bytes that a forward pass keeps for the backward pass, weights and their copies left out."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    copies = {p.numel() for p in model.parameters() if p.ndim == 2}
    alive = []

    def pack(tensor):
        storage = tensor.untyped_storage()
        is_copy = tensor.dtype == torch.bfloat16 and tensor.ndim == 2 and tensor.numel() in copies
        if storage.data_ptr() not in weights and not is_copy:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            hidden = model.base_model(input_ids=ids, use_cache=False)[0]
    del hidden
    return sum(kept.values())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("kv", "wide"), [(4, 176), (2, 352)])
def test_activations_are_what_the_backward_pass_keeps(bf16, kv, wide):
    """Measured by hooks on autograd's saved tensors, as the difference of four layers and two: the ends cancel."""
    from transformers import AutoModelForCausalLM

    from drope import models

    sizes = []
    for layers in (2, 4):
        config = llama(64, wide, layers, 4, kv, 128, 256)
        model = models.drop(AutoModelForCausalLM.from_config(config, dtype=torch.float32)).train()
        sizes.append(saved_bytes(model, torch.randint(128, (2, 256)), bf16))
    measured = (sizes[1] - sizes[0]) / 2 / 512
    assert Shape.of(llama(64, wide, 1, 4, kv, 128, 256)).activation_bytes(bf16=bf16) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_gradients_and_optimizer_are_measured(make_model, optimizer):
    from drope.training.optimizers import muon_adamw

    model = make_model()
    if optimizer == "muon":
        states: torch.optim.Optimizer = muon_adamw(model, 1e-3, 0.1, (0.9, 0.95), 1e-8, set())
    else:
        states = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    states.step()
    parts = getattr(states, "parts", [states])
    held = sum(t.nbytes for p in parts for s in p.state.values() for t in s.values() if t.ndim)
    planned = memory(
        Shape.of(model.config), gpus=1, sharding="none", micro_batch=1, context=32, optimizer=optimizer, bf16=False
    )
    assert planned.weights == sum(p.nbytes for p in model.parameters())
    assert planned.gradients == sum(p.grad.nbytes for p in model.parameters())
    assert planned.optimizer == pytest.approx(held, rel=0.02)  # the gains of norms are AdamW's


def test_shards_and_checkpointing_need_less(make_model):
    shape = Shape.of(MODELS["Llama-2-7B"][0])
    whole = memory(shape, gpus=8, sharding="ddp", micro_batch=1, context=4096)
    shards = memory(shape, gpus=8, sharding="fsdp", micro_batch=1, context=4096)
    again = memory(shape, gpus=8, sharding="fsdp", micro_batch=1, context=4096, checkpointing=True)
    assert shards.optimizer == whole.optimizer / 8
    assert again.activations < shards.activations / 5


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"gpus": "8xH1000"}, "--gpus"),
        ({"gpus": "0xH100"}, "--gpus"),
        ({"gpus": "1xL4"}, "--gpus"),
        ({"mfu": 1.5}, "--mfu"),
        ({"context": 8192}, "--context"),
        ({"batch_tokens": 4096}, "--batch-tokens"),
        ({"tokens": 1000}, "--tokens"),
    ],
)
def test_bad_input(changes, field):
    settings = {"gpus": "8xH100", "tokens": 10**9} | changes
    with pytest.raises(InputError) as caught:
        budget(Shape.of(MODELS["Llama-2-7B"][0]), **settings)
    assert caught.value.field == field


def test_the_command_line_prints_a_plan(capsys):
    import json

    from drope.commands import main

    assert main(["plan", "bundled", "--tokens", "1B", "--gpus", "2xA100", "--mfu", "0.2", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["sharding"] == "ddp"
    assert done["memory"]["total"] == pytest.approx(sum(v for k, v in done["memory"].items() if k != "total"))
    assert done["steps"] * done["batch_tokens"] <= 10**9
    assert main(["plan", "bundled", "--tokens", "1B", "--gpus", "H1"]) == 2
    assert "known: A100-40" in capsys.readouterr().err
