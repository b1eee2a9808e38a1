"""Layouts that treat layers differently: some without rotation, some with a window."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from drope.errors import InputError
from drope.positions.scales import QueryScale
from drope.positions.schemes import check_whole


@dataclass(frozen=True)
class LayerPlan:
    """One decoder layer.

    Parameters
    ----------
    rotate : whether q and k are rotated
    window : tokens that a query sees, itself included; None: the layer's own attention
    query_scale : multiplies q in this layer
    """

    rotate: bool = True
    window: int | None = None
    query_scale: QueryScale | None = None

    def __post_init__(self) -> None:
        check_whole("window", self.window)


def layout(layers: int, without: Iterable[int], window: int | None = None, scale: QueryScale | None = None):
    """Plans for `layers` layers: those in `without` do not rotate and have `scale`, the others rotate within `window`.

    Returns
    -------
    tuple of LayerPlan
    """
    if layers < 1:
        raise InputError("layers", layers, "a model whose number of layers is known")
    free = set(without)
    if strange := sorted(i for i in free if not 0 <= i < layers):
        raise InputError("layers", strange, f"layer numbers from 0 to {layers - 1}")
    return tuple(
        LayerPlan(rotate=False, query_scale=scale) if i in free else LayerPlan(window=window) for i in range(layers)
    )


def every(layers: int, period: int, first: int) -> range:
    """Layers first, first + period, ...: one in each group of `period`, and one in models that are not so deep."""
    return range(min(first, max(layers - 1, 0)), layers, period)
