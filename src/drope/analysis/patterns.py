"""Centred patterns c of the positional bias functional A^c (DroPE, arXiv 2512.12167, section 3).

Rows are queries i, columns keys j ≤ i, both counted from 1 in formulas and from 0 in tensors. Every row of a pattern
sums to 0 over the keys that its query sees, so a pattern gives 0 on uniform attention. Row 1 sees one key alone:
centring makes it 0 in every pattern. B batch, H heads, b queries of a block, n keys that the block sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from drope.errors import InputError


@runtime_checkable
class Pattern(Protocol):
    """What the functional needs of a pattern."""

    @property
    def name(self) -> str: ...

    @property
    def largest(self) -> float:
        """C_c = max |c_ij|."""

    def rows(self, probs: torch.Tensor, start: int, total: torch.Tensor | None = None) -> torch.Tensor:
        """Σ_j c_ij α_ij for a block of queries that begins at `start`: (B, H, b, n) to (B, H, b).

        `total` is Σ_j α_ij, for those who have it at hand.
        """

    def dense(self, length: int) -> torch.Tensor:
        """c as a matrix, float64 (T, T), 0 above the diagonal."""


@dataclass(frozen=True)
class Offset:
    """Attention to the token `offset` places back: c_{i,i−offset} = 1 and −1/(i−1) elsewhere, for i > max(offset, 1).

    0 is the diagonal head, 1 the previous-token head. Earlier rows, which have no such token or no other, are 0.
    """

    offset: int

    def __post_init__(self) -> None:
        if self.offset < 0:
            raise InputError("offset", self.offset, "0 (the token itself), 1 (the one before it), 2, ...")

    @property
    def name(self) -> str:
        return {0: "diagonal", 1: "previous"}.get(self.offset, f"offset {self.offset}")

    @property
    def largest(self) -> float:
        return 1.0

    def rows(self, probs: torch.Tensor, start: int, total: torch.Tensor | None = None) -> torch.Tensor:
        b, n = probs.shape[-2:]
        i = torch.arange(start, start + b, device=probs.device)  # counted from 0: the query sees i + 1 keys
        at = (i - self.offset).clamp(0, n - 1)
        hit = probs.gather(-1, at.view(1, 1, b, 1).expand(*probs.shape[:2], b, 1))[..., 0]
        others = ((probs.sum(-1) if total is None else total) - hit) / i.clamp_min(1)
        return torch.where(i >= max(self.offset, 1), hit - others, torch.zeros_like(hit))

    def dense(self, length: int) -> torch.Tensor:
        c = torch.zeros(length, length, dtype=torch.float64)
        for i in range(max(self.offset, 1), length):
            c[i, : i + 1] = -1 / i
            c[i, i - self.offset] = 1
        return c


@dataclass(frozen=True)
class Custom:
    """A pattern of one's own, such as c_ij = α_ij − 1/i of a given head.

    Parameters
    ----------
    c : (T, T), 0 above the diagonal, rows that sum to 0; the first rows of it serve shorter texts
    """

    c: torch.Tensor
    name: str = "custom"

    def __post_init__(self) -> None:
        if self.c.dim() != 2 or self.c.shape[0] != self.c.shape[1]:
            raise InputError("pattern", tuple(self.c.shape), "a square matrix (T, T)")
        if not bool(torch.isfinite(self.c).all()):
            raise InputError("pattern", "values that are not finite", "finite numbers")
        if float(self.c.triu(1).abs().max() if self.c.numel() else 0) > 0:
            raise InputError("pattern", "entries above the diagonal", "0 for every key after its query")
        off = self.c.double().sum(-1).abs()
        if float(off.max()) > 1e-6 * max(1.0, float(self.c.abs().max())):
            raise InputError(
                "pattern", f"row {int(off.argmax())} sums to {float(off.max()):.3g}", "rows that sum to 0",
                "Subtract from each row its mean over the keys that the query sees.",
            )  # fmt: skip

    @property
    def largest(self) -> float:
        return float(self.c.abs().max())

    def rows(self, probs: torch.Tensor, start: int, total: torch.Tensor | None = None) -> torch.Tensor:
        b, n = probs.shape[-2:]
        if start + b > self.c.shape[0]:
            raise InputError("pattern", tuple(self.c.shape), f"a matrix of at least {start + b} rows for this text")
        return (self.c[start : start + b, :n].to(probs) * probs).sum(-1)

    def dense(self, length: int) -> torch.Tensor:
        return self.c[:length, :length].double()


def centred(weights: torch.Tensor, name: str = "custom") -> Custom:
    """The pattern of any (T, T) weights: entries above the diagonal go, and each row loses its mean over j ≤ i."""
    lower = weights.double().tril()
    counts = torch.arange(1, len(lower) + 1, dtype=torch.float64)
    return Custom((lower - (lower.sum(-1) / counts)[:, None]).tril(), name)


DIAGONAL, PREVIOUS = Offset(0), Offset(1)
STANDARD: tuple[Offset, ...] = (DIAGONAL, PREVIOUS)


def offsets(largest: int = 8) -> tuple[Offset, ...]:
    """Offset 0 (diagonal) to `largest`."""
    return tuple(Offset(k) for k in range(largest + 1))
