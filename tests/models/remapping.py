"""The mapped distances of Self-Extend, Dual Chunk Attention and ReRoPE, pair by pair, and attention over them."""

from __future__ import annotations

import torch

from drope.positions import DualChunk, ReRope, SelfExtend, schemes


def distance(scheme: schemes.Scheme, i: int, j: int) -> int:
    """The distance that a query at i sees a key at j <= i at: the papers' formulas."""
    if isinstance(scheme, schemes.ReRope):
        return min(i - j, scheme.window)
    if isinstance(scheme, schemes.SelfExtend):
        g, w = scheme.group, scheme.window
        return i - j if i - j < w else i // g - j // g + w - w // g
    assert isinstance(scheme, schemes.DualChunk)
    s, c = scheme.chunk, scheme.chunk + scheme.local
    apart = i // s - j // s
    if apart == 0:
        return i % s - j % s
    successive = [*range(s, c)] + [c - 1] * s  # of the first w tokens, then of all others
    return (successive[i % s] if apart == 1 else c - 1) - j % s


def matrix(scheme: schemes.Scheme, tokens: int) -> torch.Tensor:
    """All distances, (T, T); 0 where j > i."""
    return torch.tensor([[distance(scheme, i, j) if j <= i else 0 for j in range(tokens)] for i in range(tokens)])


def reference(scheme, q, k, v, *, inv_freq, factor=1.0, scaling=1.0):
    """Softmax attention of one row, q (H, T, D), k and v (K, T, D): each pair of tokens rotated by its own distance.

    In complex numbers and float64. Returns (H, T, D).
    """
    q, k, v = q.double(), k.double(), v.double()
    groups, pairs, tokens = q.shape[0] // k.shape[0], len(inv_freq), q.shape[1]
    turn = torch.exp(1j * matrix(scheme, tokens)[..., None].double() * inv_freq.double())  # (T, T, pairs)
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    out = []
    for head in range(q.shape[0]):
        own, key = q[head], k[head // groups]
        left = torch.complex(own[:, :pairs], own[:, pairs : 2 * pairs])
        right = torch.complex(key[:, :pairs], key[:, pairs : 2 * pairs])
        rotated = torch.einsum("ip,jp,ijp->ij", left, right.conj(), turn).real * factor**2
        still = own[:, 2 * pairs :] @ key[:, 2 * pairs :].T
        weights = ((rotated + still) * scaling).masked_fill(future, float("-inf")).softmax(-1)
        out.append(weights @ v[head // groups])
    return torch.stack(out)


def farthest(scheme: schemes.Scheme, length: int, *, only_last: bool = False, step: int = 1) -> int:
    """The largest distance among `length` tokens; `only_last`: that of the last token to the first."""
    if only_last:
        return distance(scheme, length - 1, 0)
    return max(distance(scheme, i, j) for i in range(0, length, step) for j in range(i + 1))


def schemes_of() -> list:
    """Methods with settings that meet borders in different places, for a context of 64."""
    return [
        SelfExtend(),
        SelfExtend(group=3, window=10),
        SelfExtend(group=8, window=5),
        DualChunk(),
        DualChunk(chunk=10, local=3),
        DualChunk(chunk=7, local=20),
        DualChunk(chunk=16, local=0),
        ReRope(),
        ReRope(window=1),
        ReRope(window=11),
    ]
