"""Self-Extend, Dual Chunk Attention and ReRoPE against the matrix of mapped distances, alone and in whole models."""

from __future__ import annotations

import importlib

import pytest
import torch
from families import CONTEXT, logits, model, tokens
from remapping import reference, schemes_of
from torch.utils._python_dispatch import TorchDispatchMode

from drope import models
from drope.models.attention import Mask, Rotation, pieces
from drope.positions import DualChunk, ReRope, Rope, RopeShape, SelfExtend, schemes

SHAPE = RopeShape(1e4, 8, 64)
LENGTH = 4 * CONTEXT
INV_FREQ = torch.tensor([1.0, 0.3, 0.05, 0.011], dtype=torch.float64)
SCHEMES = [method.requirements(SHAPE, LENGTH).attention for method in schemes_of()]
METHODS = [SelfExtend(), SelfExtend(group=4, window=7), DualChunk(chunk=24, local=9), DualChunk(), ReRope()]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few queries, so that tiny inputs meet every kind of border."""
    monkeypatch.setitem(pieces.LOGITS, "cpu", 1)
    monkeypatch.setattr(pieces, "LEAST", 5)


def attend(scheme, q, k, v, mask=None, factor=1.0, scaling=0.4, inv_freq=INV_FREQ, **settings):
    kernel = importlib.import_module(f"drope.models.attention.{scheme.name}").attend
    rotation = Rotation(inv_freq, factor)
    return kernel(scheme, q, k, v, mask=mask or Mask.of(None, q, k), rotation=rotation, scaling=scaling, **settings)


def random(batch=1, heads=4, kv=2, count=75, width=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, heads, count, width), (batch, kv, count, width), (batch, kv, count, width)
    return [2 * torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def expected(scheme, q, k, v, factor=1.0, scaling=0.4):
    rows = zip(q, k, v, strict=True)
    return torch.stack([reference(scheme, *row, inv_freq=INV_FREQ, factor=factor, scaling=scaling) for row in rows])


@pytest.mark.parametrize("blocks", ["small", "one"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_prefill_equals_the_matrix_of_distances(scheme, blocks, request):
    if blocks == "small":
        request.getfixturevalue("small_blocks")
    q, k, v = random()
    out = attend(scheme, q, k, v)
    torch.testing.assert_close(out, expected(scheme, q, k, v), rtol=1e-10, atol=1e-10)
    with torch.no_grad():  # works in place
        assert torch.equal(attend(scheme, q, k, v), out)


@pytest.mark.parametrize("kv", [1, 2, 4])
@pytest.mark.parametrize("width", [8, 11])
def test_grouped_queries_partial_rotation_and_attention_factor(kv, width, small_blocks):
    q, k, v = random(batch=2, kv=kv, count=30, width=width)
    for scheme in (schemes.SelfExtend(3, 7), schemes.DualChunk(8, 3), schemes.ReRope(6)):
        out = attend(scheme, q, k, v, factor=1.2)
        torch.testing.assert_close(out, expected(scheme, q, k, v, factor=1.2), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_decoding_equals_prefill(scheme, small_blocks):
    q, k, v = random(count=64)
    full = expected(scheme, q, k, v)
    for at in range(64):
        one = attend(scheme, q[:, :, at : at + 1], k[:, :, : at + 1], v[:, :, : at + 1])
        torch.testing.assert_close(one, full[:, :, at : at + 1], rtol=1e-10, atol=1e-10)
    for first, last in ((3, 40), (20, 27), (40, 64)):  # a prompt that goes on after a cache
        part = attend(scheme, q[:, :, first:last], k[:, :, :last], v[:, :, :last])
        torch.testing.assert_close(part, full[:, :, first:last], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_padding_left_right_and_between(scheme, small_blocks):
    q, k, v = random(batch=4, count=40)
    real = torch.ones(4, 40, dtype=torch.bool)
    real[1, :9] = False
    real[2, 33:] = False
    real[3, [0, 1, 12, 13, 14, 30, 39]] = False
    out = attend(scheme, q, k, v, Mask(padding=real))
    assert out.isfinite().all()
    for row in range(4):
        alone = [x[row : row + 1, :, real[row]] for x in (q, k, v)]
        torch.testing.assert_close(
            out[row : row + 1, :, real[row]], expected(scheme, *alone), rtol=1e-10, atol=1e-10
        )  # fmt: skip
    last = attend(scheme, q[:, :, -1:], k, v, Mask(q_offset=39, padding=real))
    torch.testing.assert_close(last[:2], out[:2, :, -1:], rtol=1e-10, atol=1e-10)


def test_a_cache_with_room_for_more(small_blocks):
    q, k, v = random(count=40)
    scheme = schemes.SelfExtend(3, 7)
    out = attend(scheme, q[:, :, 10:20], k, v, Mask(q_offset=10))
    torch.testing.assert_close(out, expected(scheme, q, k, v)[:, :, 10:20], rtol=1e-10, atol=1e-10)


def test_dense_masks_count_too(small_blocks):
    q, k, v = random(count=30)
    scheme = schemes.ReRope(5)
    window = torch.ones(30, 30, dtype=torch.bool).tril().triu(-11)[None, None]
    out = attend(scheme, q, k, v, Mask(dense=window))
    for at in (3, 12, 29):  # a query of a window sees what it would see alone
        low = max(0, at - 11)
        alone = expected(scheme, *(x[:, :, low : at + 1] for x in (q, k, v)))
        torch.testing.assert_close(out[:, :, at], alone[:, :, -1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scheme", [schemes.SelfExtend(3, 4), schemes.DualChunk(4, 2), schemes.ReRope(3)], ids=str)
def test_gradients(scheme, small_blocks):
    q, k, v = (x.requires_grad_() for x in random(heads=2, kv=1, count=13))
    assert torch.autograd.gradcheck(lambda *qkv: attend(scheme, *qkv), (q, k, v))


@pytest.mark.parametrize("scheme", [schemes.SelfExtend(3, 12), schemes.DualChunk(16, 8), schemes.ReRope(12)], ids=str)
def test_half_precision_is_close_to_single(scheme):
    q, k, v = random(dtype=torch.float32)
    wide = attend(scheme, q, k, v)
    for dtype, most in ((torch.bfloat16, 0.03), (torch.float16, 0.004)):
        halves = [x.to(dtype) for x in (q, k, v)]
        near = attend(scheme, *halves)
        assert near.dtype == dtype
        assert (near.float() - wide).abs().mean() < most * wide.abs().mean()
        with torch.no_grad():
            assert torch.equal(attend(scheme, *halves), near)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(made, torch.Tensor):
                self.most = max(self.most, made.untyped_storage().nbytes() // made.element_size())
        return out


@pytest.mark.parametrize(
    "scheme", [schemes.SelfExtend(9, 128), schemes.DualChunk(384, 128), schemes.ReRope(256)], ids=str
)
def test_no_matrix_of_all_pairs_is_ever_there(scheme):
    q, k, v = random(heads=4, kv=2, count=2048, dtype=torch.float32)
    with torch.no_grad(), Largest() as seen:
        attend(scheme, q, k, v)
    assert seen.most <= 2 * pieces.LOGITS["cpu"] < q.shape[1] * 2048**2  # two blocks, of logits and of weights


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Mistral", "GPT-NeoX", "Phi3", "SmolLM3", "Granite"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_what_fits_in_the_window_is_rope(method, family):
    made = model(family)
    scheme = method.requirements(models.rope_shape(made.config), LENGTH).attention
    fits = getattr(scheme, "window", None) or scheme.chunk
    ids = tokens(min(fits, 40))
    before = logits(made, ids)
    with models.apply(made, method, LENGTH):
        torch.testing.assert_close(logits(made, ids), before, rtol=2e-4, atol=2e-4)
    assert torch.equal(logits(made, ids), before)


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_at_lengths_within_the_context_the_model_is_untouched(method, family):
    made, ids = model(family), tokens(CONTEXT)
    before = logits(made, ids)
    with models.apply(made, method, CONTEXT):
        assert torch.equal(logits(made, ids), before)


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "GPT-NeoX"])
def test_a_group_of_one_is_rope_at_any_length(family):
    made, ids = model(family), tokens(LENGTH)
    with models.apply(made, Rope(), LENGTH):
        rope = logits(made, ids)
    with models.apply(made, SelfExtend(group=1, window=9), LENGTH):
        torch.testing.assert_close(logits(made, ids), rope, rtol=1e-3, atol=1e-3)
    with models.apply(made, SelfExtend(group=2, window=9), LENGTH):
        assert not torch.allclose(logits(made, ids), rope, rtol=1e-2, atol=1e-2)


def slow(scheme, q, k, v, *, mask, rotation, scaling, dropout=0.0):
    assert mask.plain
    assert q.shape == (1, 4, k.shape[2], q.shape[3])
    made = reference(scheme, q[0], k[0], v[0], inv_freq=rotation.inv_freq, factor=rotation.factor, scaling=scaling)
    return made[None].to(q.dtype)


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "GPT-NeoX"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_whole_models_equal_the_matrix_of_distances(method, family, monkeypatch):
    made, ids = model(family), tokens(100)
    with models.apply(made, method, LENGTH):
        own = logits(made, ids)
        scheme = method.requirements(models.rope_shape(made.config), LENGTH).attention
        monkeypatch.setattr(importlib.import_module(f"drope.models.attention.{scheme.name}"), "attend", slow)
        torch.testing.assert_close(own, logits(made, ids), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(own, logits(made, ids), rtol=1e-2, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_generation_with_a_cache_equals_generation_without(method, family):
    made, ids = model(family), tokens(90)
    with models.apply(made, method, LENGTH):
        settings = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        cached = made.generate(ids, attention_mask=torch.ones_like(ids), use_cache=True, **settings)
        without = made.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **settings)
        assert torch.equal(cached.sequences, without.sequences)
        torch.testing.assert_close(torch.stack(cached.logits), torch.stack(without.logits), rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_cache_holds_raw_keys(method):
    made, ids = model("Llama"), tokens(80)
    with models.apply(made, method, LENGTH):
        cache = made(input_ids=ids, use_cache=True).past_key_values
        layer = made.model.layers[0]
        raw = layer.self_attn.k_proj(layer.input_layernorm(made.model.embed_tokens(ids)))
    torch.testing.assert_close(cache.layers[0].keys, raw.view(1, 80, 2, -1).transpose(1, 2))


@torch.no_grad()
@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_left_padded_batches_give_what_each_row_gives_alone(method, family):
    made = model(family)
    rows = [tokens(95, seed=3), tokens(70, seed=4)]
    padded = torch.zeros(2, 95, dtype=torch.long)
    real = torch.zeros_like(padded)
    for row, ids in enumerate(rows):
        padded[row, 95 - ids.shape[1] :], real[row, 95 - ids.shape[1] :] = ids[0], 1
    settings = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with models.apply(made, method, LENGTH):
        together = made.generate(padded, attention_mask=real, **settings)
        for row, ids in enumerate(rows):
            alone = made.generate(ids, attention_mask=torch.ones_like(ids), **settings)
            assert torch.equal(together.sequences[row, 95:], alone.sequences[0, ids.shape[1] :])
            ours = torch.stack([step[row] for step in together.logits])
            torch.testing.assert_close(ours, torch.stack(alone.logits)[:, 0], rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_packed_documents_give_what_each_gives_alone(method):
    made = model("Llama")
    rows = [(tokens(50, seed=5), tokens(60, seed=6)), (tokens(83, seed=7), tokens(27, seed=8))]
    at = torch.stack([torch.cat([torch.arange(ids.shape[1]) for ids in row]) for row in rows])
    packed_ids = torch.cat([torch.cat(row, 1) for row in rows])
    with models.apply(made, method, LENGTH):
        packed = made(input_ids=packed_ids, position_ids=at, use_cache=False).logits
        for row, documents in enumerate(rows):
            alone = torch.cat([logits(made, ids) for ids in documents], 1)
            torch.testing.assert_close(packed[row : row + 1], alone, rtol=1e-3, atol=1e-3)


def test_a_model_with_a_scaling_of_its_own_keeps_it():
    own = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": CONTEXT}
    made = model("Llama", rope_parameters=own, max_position_embeddings=2 * CONTEXT)
    ids = tokens(30)
    before = logits(made, ids)
    with models.apply(made, ReRope(), LENGTH):
        torch.testing.assert_close(logits(made, ids), before, rtol=2e-4, atol=2e-4)
