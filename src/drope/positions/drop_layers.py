"""DroPE for some layers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from drope.errors import InputError
from drope.positions.base import Method, Requirements, RopeShape
from drope.positions.layers import every, layout


@dataclass(frozen=True)
class DropLayers(Method):
    """The rotation leaves some layers and stays in the others: γ_m = 0 in those, 1 elsewhere; then recalibration.

    Source: DroPE, arXiv 2512.12167, applied to the layouts of RNoPE, arXiv 2501.18795, without its windows.

    Parameters
    ----------
    layers : numbers of the layers that lose the rotation, from 0; None for the last of every four
    """

    layers: tuple[int, ...] | None = None
    name: ClassVar[str] = "drop_layers"
    label: ClassVar[str] = "DroPE, some layers"
    trained: ClassVar[bool] = True
    served_by: ClassVar[str] = "SmolLM3 (no_rope_layers), for Llama-shaped weights without biases"

    def __post_init__(self) -> None:
        if self.layers is not None:
            numbers = tuple(self.layers)
            if not numbers or any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in numbers):
                raise InputError("layers", self.layers, "layer numbers, from 0")
            object.__setattr__(self, "layers", numbers)  # a list would not be hashable

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        chosen = self.layers if self.layers is not None else every(shape.layers, 4, 3)
        return Requirements(layers=layout(shape.layers, chosen))

    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        """γ_m of the layers that rotate."""
        return torch.ones(shape.pairs, dtype=torch.float64)
