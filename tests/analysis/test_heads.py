"""Distances, needles and heads, on attention that is known."""

from __future__ import annotations

import families
import pytest
import torch

from drope.analysis import Visitor, needle_attention, observe, positional_heads, semantic_heads
from drope.analysis.attention import Block
from drope.analysis.functional import PositionalBias
from drope.analysis.heads import CopyVisitor, DistanceVisitor, distance_edges
from drope.analysis.text import Probe, probes, text_ids
from drope.errors import InputError
from drope.models import load

T = 20


class Dense(Visitor):
    """All probabilities, put together again."""

    def __init__(self) -> None:
        self.layers: dict[int, list[torch.Tensor]] = {}

    def block(self, block: Block) -> None:
        pad = (0, T - block.probs.shape[-1])
        self.layers.setdefault(block.layer, []).append(torch.nn.functional.pad(block.probs, pad))

    def probs(self, layer: int) -> torch.Tensor:
        return torch.cat(self.layers[layer], dim=2)


def test_distances_against_loops() -> None:
    model, ids = families.model("Llama"), families.tokens(T)
    edges, first = distance_edges(T), T // 2
    dense, visitor = Dense(), DistanceVisitor(edges, first)
    observe(model, ids, dense, visitor, elements=4 * T * 3)
    probs = dense.probs(1)[0]
    for head in range(4):
        expected = [0.0] * (len(edges) - 1)
        for i in range(first, T):
            for j in range(i + 1):
                b = max(n for n, e in enumerate(edges[:-1]) if e <= i - j)
                expected[b] += float(probs[head, i, j]) / (T - first)
        assert visitor.profile(1, head) == pytest.approx(expected, abs=1e-6)
        assert sum(visitor.profile(1, head)) == pytest.approx(1, abs=1e-5)


def test_edges_of_distances() -> None:
    edges = distance_edges(100)
    assert edges[:5] == [0, 1, 2, 3, 4]
    assert edges[-1] == 100
    assert edges == sorted(set(edges))


def test_positional_heads_are_ranked_over_patterns() -> None:
    values = [torch.tensor([[0.1, 0.2], [0.9, 0.0]]), torch.tensor([[0.5, 0.0], [0.0, 0.3]])]
    found = positional_heads(PositionalBias((0, 3), ("diagonal", "previous"), values), 3)
    assert [(h.layer, h.head, h.what) for h in found] == [(0, 0, "previous"), (3, 0, "diagonal"), (3, 1, "previous")]


def test_copying_attention_on_a_head_that_copies() -> None:
    probe = Probe(torch.zeros(1, 12).long(), 0.5, (3, 8), [5, 6], [10, 11], [1, 2])
    probs = torch.zeros(1, 2, 12, 12)
    probs[0, 0, 10, 5] = probs[0, 0, 11, 6] = 1.0  # copies
    probs[0, 1, 10, 4] = probs[0, 1, 11, 0] = 1.0  # looks at the needle once
    visitor = CopyVisitor(probe)
    for start, stop in ((0, 11), (11, 12)):
        visitor.block(Block(0, start, stop, probs[:, :, start:stop, :stop]))
    assert visitor.copied[0].tolist() == [1.0, 0.0]
    assert visitor.needle[0].tolist() == [1.0, 0.5]


@pytest.fixture(scope="module")
def bundled():
    return load("bundled")


@pytest.mark.parametrize("length", [96, 128, 400])
def test_probes_are_what_they_say(bundled, length: int) -> None:
    found = probes(bundled.tokenizer, "stdlib:heldout", length, (0.0, 0.5, 1.0))
    for probe in found:
        ids = probe.ids[0].tolist()
        assert len(ids) == length
        assert [ids[i] for i in probe.copied] == probe.answer
        assert [*ids, probe.answer[-1]][-len(probe.answer) :] == probe.answer
        assert probe.asking[-1] == length - 1
        needle = bundled.tokenizer.decode(ids[probe.needle[0] : probe.needle[1]])
        value = bundled.tokenizer.decode(probe.answer).strip()
        assert needle.strip().startswith("One of the special magic numbers for")
        assert needle.strip().endswith(f"is: {value}.")
    distances = [p.distance for p in found]
    assert distances == sorted(distances, reverse=True)
    again = probes(bundled.tokenizer, "stdlib:heldout", length, (0.0, 0.5, 1.0))
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(found, again, strict=True))


def test_the_head_that_copies_is_found(bundled) -> None:
    """The bundled model answers single needles: some head looks at the value, far above what an even spread would."""
    found = probes(bundled.tokenizer, "stdlib:heldout", 96, (0.2, 0.7))
    attention = needle_attention(bundled.model, found)
    best = semantic_heads(attention, 1)[0]
    assert best.score > 10 / 96
    assert min(attention.at(best)) > 0


def test_texts_that_are_too_short(bundled) -> None:
    assert text_ids(bundled.tokenizer, ["words " * 200], 50, 2).shape == (2, 50)
    with pytest.raises(InputError, match="at least 500"):
        text_ids(bundled.tokenizer, ["words " * 20], 500)
    with pytest.raises(InputError, match="needle probe"):
        probes(bundled.tokenizer, "stdlib:heldout", 20, (0.5,))
