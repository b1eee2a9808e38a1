"""LongRoPE2: rescale factors λ_m that were searched for one model, and the family of factors that is searched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch

from drope.errors import InputError
from drope.positions.base import Method, Requirements, RopeShape
from drope.positions.frequencies import pair_indices

Below = Literal["ntk", "none"]
BELOW = ("ntk", "none")
_SLACK = 1e-9  # rounding that a written and read factor may show
_Targets = tuple[tuple[int, tuple[float, ...]], ...]


@dataclass(frozen=True)
class LongRoPE2(Method):
    """LongRoPE2: γ_m = 1/λ_m with factors λ that never decrease in m, searched for this model and target length.

    Up to C_train the rotation is the model's own; beyond, all positions are rescaled, also those within C_train. The
    factors come from `drope.search.search_longrope2`, which minimises the perplexity of a needle's tokens alone.
    Source: Shang et al., arXiv 2502.20082, section 3; stock `rope_type` "longrope".

    Parameters
    ----------
    factors : target length in tokens -> λ of each pair; each at least 1, none below the one before. A length takes
        those of the nearest target at or above it, else those of the longest. None: they are still to be searched
    attention_factor : multiplies cos and sin. 1 as in the paper's pseudocode (figure 10); None is the stock
        √(1 + ln s / ln C_train), which a saved checkpoint would apply within C_train too
    """

    factors: Mapping[int, Sequence[float]] | _Targets | None = None
    attention_factor: float | None = 1.0
    name: ClassVar[str] = "longrope2"
    label: ClassVar[str] = "LongRoPE2"

    def __post_init__(self) -> None:
        if self.attention_factor is not None and not (
            math.isfinite(self.attention_factor) and self.attention_factor > 0
        ):
            raise InputError("attention_factor", self.attention_factor, "a number above 0, or none for the stock value")
        if self.factors is not None:
            object.__setattr__(self, "factors", _checked(self.factors))

    @property
    def targets(self) -> tuple[int, ...]:
        """The lengths in tokens that there are factors for."""
        return tuple(target for target, _ in self._targets())

    def _targets(self) -> _Targets:
        return self.factors or ()  # type: ignore[return-value]  # brought into this form on creation

    def at(self, shape: RopeShape, length: int) -> tuple[int, tuple[float, ...]]:
        """The target whose factors serve `length`, and these factors.

        Raises
        ------
        InputError : there are no factors, or they are not as many as the model has rotated pairs
        """
        targets = self._targets()
        if not targets:
            raise InputError(
                "factors", None, "factors that were searched for this model",
                "Search them with `drope longrope2`, or in Python with drope.search.search_longrope2.",
            )  # fmt: skip
        target, factors = next(((t, f) for t, f in targets if t >= length), targets[-1])
        if len(factors) != shape.pairs:
            raise InputError("factors", f"{len(factors)} numbers", f"one for each of the {shape.pairs} rotated pairs")
        return target, factors

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        if shape.factor(length) == 1:
            return Requirements()
        parameters = self.stock_parameters(shape, length)
        # Stock modules switch at C_train without rotating cached keys anew; here the length is known beforehand.
        return Requirements(parameters | {"short_factor": parameters["long_factor"]})

    def stock_parameters(self, shape: RopeShape, length: int) -> dict[str, Any]:
        """Stock `rope_parameters` for a checkpoint: the model's own rotation up to C_train, rescaled beyond."""
        target, factors = self.at(shape, length)
        parameters: dict[str, Any] = {
            "rope_type": "longrope",
            "rope_theta": shape.theta,
            "factor": shape.factor(target),
            "original_max_position_embeddings": shape.context,
            "short_factor": [1.0] * shape.pairs,
            "long_factor": list(factors),
        }
        if self.attention_factor is not None:
            parameters["attention_factor"] = float(self.attention_factor)
        return parameters

    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        if shape.factor(length) == 1:
            return torch.ones(shape.pairs, dtype=torch.float64)
        return 1 / torch.tensor(self.at(shape, length)[1], dtype=torch.float64)

    def settings(self) -> dict[str, Any]:
        factors = {str(target): list(values) for target, values in self._targets()} or None
        return {"factors": factors, "attention_factor": self.attention_factor}


def critical_pair(shape: RopeShape, periods: float = 1.0) -> int:
    """The first pair that makes fewer than `periods` turns over C_train: ⌈d/2 · log_θ(C_train / 2π·periods)⌉.

    With one period it is the theoretical critical dimension (equation 7, counted in pairs); from it on, distances
    beyond C_train are angles that training never showed. At most the last pair, at least the first.
    """
    turns = shape.context / (2 * math.pi * periods)
    index = math.ceil(shape.pairs * math.log(turns) / math.log(shape.theta)) if turns > 0 else 0
    return min(max(index, 0), shape.pairs - 1)


def compose(shape: RopeShape, critical: int, above: Iterable[float], below: Below = "ntk") -> torch.Tensor:
    """λ of all pairs from those of the critical pair and the slower ones (algorithm 2). Shape (pairs,), float64.

    Faster pairs follow the base that gives the critical pair its factor, λ_m = λ_critical^(m / critical), or with
    `below="none"` stay as they are.

    Parameters
    ----------
    critical : index of the critical pair
    above : λ from the critical pair on, shape (pairs - critical,)
    """
    upper = torch.as_tensor(list(above), dtype=torch.float64)
    if not 0 <= critical < shape.pairs or len(upper) != shape.pairs - critical:
        allowed = f"a pair from 0 to {shape.pairs - 1}, with a factor for it and for each that follows"
        raise InputError("critical", critical, allowed)
    if below not in BELOW:
        raise InputError("below", below, " or ".join(BELOW))
    m = pair_indices(shape)[:critical]
    lower = upper[0] ** (m / max(critical, 1)) if below == "ntk" else torch.ones_like(m)
    return torch.cat([lower, upper])


def _checked(factors: Any) -> _Targets:
    """Factors by target, sorted, as tuples of plain numbers."""
    try:
        items = factors.items() if isinstance(factors, Mapping) else factors
        found = sorted((int(target), tuple(float(x) for x in values)) for target, values in items)
    except (TypeError, ValueError) as error:
        allowed = "a mapping of target lengths in tokens to one number for each rotated pair"
        raise InputError("factors", str(factors)[:80], allowed, str(error)) from error
    if not found:
        raise InputError("factors", "empty", "at least one target length with its factors")
    for target, values in found:
        if target < 1 or not values or not all(math.isfinite(x) and x >= 1 - _SLACK for x in values):
            raise InputError(f"factors for {target} tokens", str(values)[:80], "finite numbers of at least 1")
        for i, (a, b) in enumerate(pairwise(values)):
            if b < a - _SLACK * a:
                raise InputError(
                    f"factors for {target} tokens", f"{b:.6g} after {a:.6g} at pair {i + 1}", "never one below the last"
                )
    if len({target for target, _ in found}) < len(found):
        raise InputError("factors", str([t for t, _ in found]), "each target length once")
    return tuple(found)
