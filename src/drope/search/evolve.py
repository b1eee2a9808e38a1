"""Evolution of rescale factors: what a candidate is, the paper's first population, scipy's differential evolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from drope.positions.base import RopeShape
from drope.positions.longrope2 import Below, compose, critical_pair

if TYPE_CHECKING:
    from drope.search.config import SearchConfig

_PERIODS = 10  # the earliest critical pair that is tried makes ten turns over C_train


@dataclass(frozen=True)
class Candidates:
    """Vectors (critical pair, u_0 … u_{P−1}) with u between 0 and 1, and the factors that they stand for.

    λ_m = s·(1 + (largest − 1)·u) from the critical pair on, with its u in ascending order: whatever evolution does to
    a vector, its factors never decrease.
    """

    shape: RopeShape
    factor: float
    largest: float = 2.0
    below: Below = "ntk"

    @property
    def theoretical(self) -> int:
        """The first pair whose period exceeds C_train."""
        return critical_pair(self.shape)

    @property
    def earliest(self) -> int:
        return critical_pair(self.shape, _PERIODS)

    def critical(self, vector: np.ndarray) -> int:
        return round(float(vector[0]))

    def factors(self, vector: np.ndarray) -> tuple[float, ...]:
        critical = self.critical(vector)
        above = self.factor * (1 + (self.largest - 1) * np.sort(np.clip(vector[1 + critical :], 0, 1)))
        return tuple(compose(self.shape, critical, above.tolist(), self.below).tolist())

    def bounds(self) -> list[tuple[float, float]]:
        return [(self.earliest, self.theoretical), *[(0.0, 1.0)] * self.shape.pairs]

    def first(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Algorithm 1: each critical pair in turn with one random factor from it on, (count, 1 + P).

        The very first is the theory's: factor s from the theoretical critical pair on.
        """
        pairs = np.arange(self.theoretical, self.earliest - 1, -1)
        rows = np.empty((count, 1 + self.shape.pairs))
        rows[:, 0] = pairs[np.arange(count) % len(pairs)]
        rows[:, 1:] = rng.random((count, 1))
        rows[0, 1:] = 0.0
        if len(pairs) < count:  # further rounds differ between pairs too, or evolution would have nothing to mix
            rows[len(pairs) :, 1:] = np.sort(rng.random((count - len(pairs), self.shape.pairs)), axis=1)
        return rows


@dataclass(frozen=True)
class Best:
    """The outcome: factors, their critical pair and loss, best loss by generation, candidates measured."""

    factors: tuple[float, ...]
    critical: int
    loss: float
    history: list[float]
    evaluations: int


def evolve(
    loss: Callable[[tuple[float, ...]], float],
    candidates: Candidates,
    config: SearchConfig,
    tick: Callable[[float], None] = lambda low: None,
) -> Best:
    """Minimise `loss(factors)`; the same seed gives the same candidates in the same order.

    Parameters
    ----------
    tick : called after every candidate with the lowest loss so far
    """
    from scipy.optimize import differential_evolution

    rng = np.random.default_rng(config.seed)
    seen: dict[tuple[float, ...], tuple[float, int]] = {}
    history: list[float] = []
    asked = 0

    def measure(vector: np.ndarray) -> float:
        nonlocal asked
        factors = candidates.factors(vector)
        if factors not in seen:
            seen[factors] = (loss(factors), candidates.critical(vector))
        asked += 1
        lowest = min(value for value, _ in seen.values())
        if asked % config.population == 0:
            history.append(lowest)
        tick(lowest)
        return seen[factors][0]

    first = candidates.first(config.population, rng)
    if config.generations == 0:
        for row in first:
            measure(row)
    else:
        differential_evolution(
            measure, candidates.bounds(), init=first, maxiter=config.generations, recombination=config.mutation,
            integrality=np.arange(1 + candidates.shape.pairs) == 0, polish=False, tol=0, atol=0, rng=rng,
        )  # fmt: skip
    factors, (value, critical) = min(seen.items(), key=lambda item: item[1][0])
    return Best(factors, critical, value, history, len(seen))
