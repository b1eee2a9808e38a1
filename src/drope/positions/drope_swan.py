"""DroPE into a SWAN layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from drope.positions.base import Requirements, RopeShape
from drope.positions.layers import every, layout
from drope.positions.windows import STOCK, Windowed


@dataclass(frozen=True)
class DropeSWAN(Windowed):
    """DroPE into a SWAN layout: of a RoPE model, one layer in four is dropped and stays global; the others keep their
    rotation within a window, so that they never meet a distance that training did not show; then recalibration.

    Source: DroPE, arXiv 2512.12167, with the layout and the conversion of arXiv 2504.08719.

    Parameters
    ----------
    window : tokens that a windowed layer sees, the query included; None for a quarter of C_train
    period : layers in a group, of which the first is dropped and global
    """

    name: ClassVar[str] = "drope_swan"
    label: ClassVar[str] = "DroPE into SWAN"
    trained: ClassVar[bool] = True
    served_by: ClassVar[str] = STOCK

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        return Requirements(layers=layout(shape.layers, every(shape.layers, self.period, 0), self.window_for(shape)))
