"""Dual Chunk Attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from drope.positions import schemes
from drope.positions.base import Method, Requirements, RopeShape
from drope.positions.remapping import farthest_scaling, inside_context
from drope.positions.schemes import check_whole


@dataclass(frozen=True)
class DualChunk(Method):
    """Dual Chunk Attention: positions start anew in every chunk of s tokens, so that no distance leaves the context.

    Keys are at j mod s. A query of position i sees its own chunk from i mod s (intra-chunk), the chunk before from
    min(s + i mod s, s + w − 1) (successive-chunk: true distances for the first w tokens), and all chunks before that
    from s + w − 1 (inter-chunk). Training-free. It acts at target lengths above C_train alone. `scaling` is the same
    for all pairs: the mapped distance of the last token to the first, over the true one.
    Source: An et al., ChunkLlama, arXiv 2402.17463, section 3, with its c as s + w. (Their code counts from s + w.)

    Parameters
    ----------
    chunk : s, in tokens, at most C_train; None takes 3/4 of C_train
    local : w, in tokens, at most C_train − s; None takes all of these
    """

    chunk: int | None = None
    local: int | None = None
    name: ClassVar[str] = "dual_chunk"
    label: ClassVar[str] = "Dual Chunk Attention"
    served_by: ClassVar[str] = "versions of vLLM and SGLang that read dual_chunk_attention_config"

    def __post_init__(self) -> None:
        check_whole("chunk", self.chunk)
        check_whole("local", self.local, least=0)

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        scheme = self._scheme(shape)
        return Requirements() if shape.factor(length) == 1 else Requirements(attention=scheme)

    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        scheme = self._scheme(shape)
        return farthest_scaling(shape, length, lambda: _farthest(length, scheme))

    def _scheme(self, shape: RopeShape) -> schemes.DualChunk:
        chunk = inside_context("chunk", self.chunk, max(1, 3 * shape.context // 4), shape.context)
        rest = shape.context - chunk
        return schemes.DualChunk(chunk, inside_context("local", self.local, rest, rest, least=0))


def _farthest(length: int, scheme: schemes.DualChunk) -> int:
    """The distance at which the last of `length` tokens sees the first."""
    last = scheme.chunk + scheme.local - 1
    chunks, position = divmod(length - 1, scheme.chunk)
    return (position, min(scheme.chunk + position, last), last)[min(chunks, 2)]
