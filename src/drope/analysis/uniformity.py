"""Spread of uniformity Δ^(l) = max_{j≤i} ‖h̄_i − h_j‖ through the layers of a model (Theorem 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from drope.analysis.stack import prefix_distances


@dataclass(frozen=True)
class Spread:
    """By depth, the embeddings first and the output of the last layer at the end.

    spread : Δ^(l), in units of the hidden states; scale : their root mean square norm over tokens
    typical : median over queries i of the mean over j ≤ i of ‖h̄_i − h_j‖: what Δ is without the outliers
    """

    spread: list[float]
    scale: list[float]
    typical: list[float]

    def relative(self) -> list[float]:
        """Δ^(l) over the scale: 0 where all tokens are alike, about 1 where they are unrelated."""
        return [d / s if s else 0.0 for d, s in zip(self.spread, self.scale, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        typical = [d / s if s else 0.0 for d, s in zip(self.typical, self.scale, strict=True)]
        return {"spread": self.spread, "scale": self.scale, "relative": self.relative(), "typical_relative": typical}


def spread_by_layer(hidden: Sequence[torch.Tensor]) -> Spread:
    """Of hidden states (B, T, C), one for each depth; the first text of the batch."""
    spreads, scales, typical = [], [], []
    for states in hidden:
        h = states[0].float()
        largest, middles = 0.0, []
        for start, part in zip(range(0, len(h), 512), prefix_distances(h, 512), strict=True):
            largest = max(largest, float(part.max()))
            counts = torch.arange(start + 1, start + len(part) + 1, device=part.device)
            middles.append(part.sum(-1) / counts)
        spreads.append(largest)
        scales.append(float(h.square().sum(-1).mean().sqrt()))
        typical.append(float(torch.cat(middles).median()))
    return Spread(spreads, scales, typical)
