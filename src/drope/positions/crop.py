"""Cropping: what is too long is cut off at the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from drope.errors import InputError
from drope.positions.base import Method, Requirements, RopeShape
from drope.positions.schemes import check_whole


@dataclass(frozen=True)
class Crop(Method):
    """Crop: of a text of `length` tokens the model sees the last C_train, with its own rotation, and nothing before.

    The experiment that shows what a scaling method adds over forgetting: DroPE, arXiv 2512.12167, figure 5, finds that
    YaRN's zero-shot behaviour equals this. Prompt and answer share the C_train tokens.

    Parameters
    ----------
    tokens : how many are kept; None for C_train
    """

    tokens: int | None = None
    name: ClassVar[str] = "crop"
    label: ClassVar[str] = "Crop to the context"
    served_by: ClassVar[str] = "any engine, by cutting the input before it"

    def __post_init__(self) -> None:
        check_whole("tokens", self.tokens)

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        kept = self.tokens or shape.context
        if kept > shape.context:
            raise InputError("tokens", kept, f"1 to {shape.context}, the trained context")
        return Requirements(crop=kept) if length > kept else Requirements()

    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        return torch.ones(shape.pairs, dtype=torch.float64)
