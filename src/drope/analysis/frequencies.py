"""What each method does to every rotary frequency at a target length: γ_m, phases, and which leave what was trained.

From a config alone: no weights are read. Formulas: `drope.positions.frequencies`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from drope.errors import DropeError
from drope.positions import METHODS, Method, RopeShape
from drope.positions.frequencies import inverse_frequencies, phases, rotations_in_context


@dataclass(frozen=True)
class MethodFrequencies:
    """One method at one target length; lists run over the pairs m = 0 … d/2 − 1.

    gamma : γ_m; phase : γ_m ω_m · length, in radians
    out_of_range : pairs that never completed a turn in training and here reach a phase beyond ω_m · C_train
    """

    method: str
    label: str
    length: int
    gamma: list[float]
    phase: list[float]
    out_of_range: list[int]


@dataclass(frozen=True)
class FrequencyTable:
    """All methods at all targets, beside the model's own frequencies.

    omega : radians a token; wavelength : tokens; turns : in the trained context; trained : ω_m · C_train, radians
    """

    theta: float
    pairs: int
    context: int
    omega: list[float]
    wavelength: list[float]
    turns: list[float]
    trained: list[float]
    methods: list[MethodFrequencies]
    left_out: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def frequency_table(
    shape: RopeShape, lengths: Sequence[int], methods: Sequence[Method] | None = None
) -> FrequencyTable:
    """γ_m, phases and out-of-range pairs of every method at every target length (tokens).

    Parameters
    ----------
    methods : by default all of the catalogue that act by frequencies alone and need no settings; `left_out` says which
        are not here, and why
    """
    omega = inverse_frequencies(shape)
    trained = phases(shape, [shape.context])[0]
    slow = rotations_in_context(shape) < 1
    chosen, left_out = _catalogue() if methods is None else (list(methods), {})
    rows = []
    for method in chosen:
        for length in lengths:
            try:
                needs = method.requirements(shape, length)
                if needs.layers is not None or needs.attention is not None or needs.crop is not None:
                    left_out[method.name] = "acts on layers, attention or the input, not by frequencies alone"
                    continue
                gamma = method.scaling(shape, length).double()
            except (DropeError, NotImplementedError) as error:
                left_out[method.name] = str(error)
                continue
            phase = phases(shape, [length], method, length)[0]
            beyond = slow & (phase > trained * (1 + 1e-9))
            rows.append(
                MethodFrequencies(
                    method.name, method.label, int(length), gamma.tolist(), phase.tolist(),
                    [int(m) for m in beyond.nonzero()[:, 0]],
                )
            )  # fmt: skip
    return FrequencyTable(
        shape.theta, shape.pairs, shape.context, omega.tolist(), (2 * math.pi / omega).tolist(),
        rotations_in_context(shape).tolist(), trained.tolist(), rows, left_out,
    )  # fmt: skip


def _catalogue() -> tuple[list[Method], dict[str, str]]:
    """Every method that its defaults make, one for each behaviour of frequencies; and why the others are not there."""
    found, left_out = [], {}
    for name, cls in METHODS.items():
        if name == "drope":
            continue  # γ = 0, as NoPE
        try:
            found.append(cls())
        except (DropeError, TypeError) as error:
            left_out[name] = str(error)
    return found, left_out
