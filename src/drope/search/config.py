"""What a search for rescale factors is told; the defaults are the LongRoPE2 paper's (section 3.2, appendix B)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from drope.errors import InputError
from drope.positions.longrope2 import BELOW, Below


@dataclass(frozen=True)
class SearchConfig:
    """Settings of one search. It takes about population · (generations + 1) · documents forward passes at the target.

    population : candidates of a generation, at least 5
    generations : rounds of mutation; 0 takes the best of the first population
    mutation : probability that a coordinate of a candidate is mutated
    largest : factors from the critical pair on lie between s and `largest` · s
    documents : needle documents of a candidate's perplexity
    below : pairs below the critical one: `ntk` scales the base so that they meet its factor, `none` leaves them alone
    attention_factor : multiplies cos and sin, in the search and after it; None: the stock √(1 + ln s / ln C_train)
    haystack : source of the documents' prose (see `drope.data.haystack`)
    seed : of the population, the mutations and the needles, none of which an evaluation uses
    batch_tokens : tokens held on the device at once

    Raises
    ------
    InputError : a value outside its range
    """

    population: int = 64
    generations: int = 40
    mutation: float = 0.3
    largest: float = 2.0
    documents: int = 10
    below: Below = "ntk"
    attention_factor: float | None = 1.0
    haystack: str = "stdlib:heldout"
    seed: int = 0
    batch_tokens: int = 16384

    def __post_init__(self) -> None:
        for name, least in (("population", 5), ("generations", 0), ("documents", 1), ("seed", 0), ("batch_tokens", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(name, value, f"a whole number of at least {least}")
        if not 0 < self.mutation <= 1:
            raise InputError("mutation", self.mutation, "a probability above 0, at most 1")
        if not (math.isfinite(self.largest) and self.largest > 1):
            raise InputError("largest", self.largest, "a number above 1: the range that factors are searched in")
        if self.below not in BELOW:
            raise InputError("below", self.below, " or ".join(BELOW))
        if self.attention_factor is not None and not (
            math.isfinite(self.attention_factor) and self.attention_factor > 0
        ):
            raise InputError("attention_factor", self.attention_factor, "a number above 0, or none for the stock value")
