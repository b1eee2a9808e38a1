"""Who may attend to whom, without a matrix of it: any block of the mask on demand.

B rows, Tq queries, Tk keys. transformers makes one per forward pass and hands it to every layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch

from drope.errors import DropeError


@dataclass
class Mask:
    """The pairs that a query and a key make.

    Parameters
    ----------
    q_offset, kv_offset : index of the first query and of the first key in the row (caches of windows start late)
    function : transformers' mask function of (row, head, query index, key index); None is causality
    padding : which tokens of a row are real, bool (B, tokens so far); None where all are
    dense : a ready mask (B or 1, 1, Tq, Tk) that someone passed in: True (or 0) where a pair counts; overrides the rest
    """

    q_offset: int = 0
    kv_offset: int = 0
    function: Callable[..., Any] | None = None
    padding: torch.Tensor | None = None
    dense: torch.Tensor | None = None
    rows: int = 1  # B, where the function may tell rows apart
    device: torch.device | str = "cpu"
    given: torch.Tensor | None = None  # positions of packed documents, see `pack`
    _positions: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, tensor: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor) -> Mask:
        """For a ready mask, or none at all: then the queries are the last of the keys, and causality is all."""
        if tensor is not None and tensor.dtype != torch.bool:
            tensor = tensor >= 0
        return cls(q_offset=k.shape[2] - q.shape[2], dense=tensor, device=q.device)

    @property
    def plain(self) -> bool:
        """Whether causality is all there is: no padding, no window, no borders of packed documents."""
        return self.function is None and self.padding is None and self.dense is None

    def pack(self, position_ids: torch.Tensor | None, queries: int, keys: int) -> None:
        """Note the positions, (B or 1, T), of rows that hold several documents, which start anew in each of them."""
        documents = self.function is not None and self.padding is None and self.dense is None and queries == keys
        if documents and position_ids is not None and position_ids.dim() == 2 and position_ids.shape[1] == keys:
            self.given = position_ids

    def positions(self, queries: int, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions of the queries, (B or 1, Tq), and of the keys, (B or 1, Tk): real tokens before them.

        Of the row; of the document, where documents are packed (`pack`).
        """
        return self.counts(queries, keys) if self.given is None else (self.given, self.given)

    def counts(self, queries: int, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As `positions`, but always of the row: those of keys never fall."""
        if (queries, keys) not in self._positions:
            end = max(self.q_offset + queries, self.kv_offset + keys)
            if self.padding is None:
                count = torch.arange(end, device=self.device)[None]
            else:
                real = self._padding(end)
                count = (real.long().cumsum(1) - 1).clamp(min=0)
            q = count[:, self.q_offset : self.q_offset + queries]
            self._positions[queries, keys] = q, count[:, self.kv_offset : self.kv_offset + keys]
        return self._positions[queries, keys]

    def contiguous(self) -> NoReturn:
        """Called by `generate` alone, where it makes masks ahead for a static cache."""
        raise DropeError("This method computes its own attention: generate with a dynamic cache, not a static one.")

    def allowed(self, queries: slice, keys: slice, window: int | None = None) -> torch.Tensor:
        """The block of pairs of these queries and keys (slices with start and stop), bool (B or 1, 1, q, k).

        window : leaves only the last `window` keys of each query, itself included
        """
        q = torch.arange(queries.start, queries.stop, device=self.device) + self.q_offset
        k = torch.arange(keys.start, keys.stop, device=self.device) + self.kv_offset
        q, k = q[:, None], k[None, :]
        if self.dense is not None:
            dense = self.dense[:, :1]
            block = dense[:, :, queries, keys] if dense.shape[2] > 1 else dense[:, :, :, keys]
        elif self.function is None:
            block = (k <= q)[None, None]
        else:
            rows = torch.arange(self.rows if self.padding is None else len(self.padding), device=self.device)
            block = self.function(rows[:, None, None, None], 0, q[None, None], k[None, None])
            block = block.expand(-1, -1, len(q), k.shape[1])
        if window is not None:
            block = block & (q - k < window)
        if self.padding is not None:
            real = self._padding(self.kv_offset + keys.stop)[:, self.kv_offset + keys.start :]
            block = block & real[:, None, None, :]
        return block

    def _padding(self, length: int) -> torch.Tensor:
        """Real tokens of the first `length` of each row; caches of fixed size have room for more than there are."""
        assert self.padding is not None
        short = length - self.padding.shape[1]
        return torch.nn.functional.pad(self.padding, (0, short)) if short > 0 else self.padding[:, :length]


def mask_interface(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable | None = None,
    attention_mask: torch.Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Mask:
    """What transformers calls to make the mask of a forward pass for `drope` attention."""
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    offset = int(q_offset)
    if use_vmap:  # functions of the caller's, which need not take blocks
        dense = sdpa_mask(
            batch_size, q_length, kv_length, offset, kv_offset, mask_function or causal_mask_function, attention_mask,
            allow_is_causal_skip=False, use_vmap=True, device=device,
        )  # fmt: skip
        return Mask(offset, kv_offset, dense=dense, device=device)
    padding = attention_mask
    if padding is not None and bool(padding.all()) and padding.shape[1] >= offset + q_length:
        padding = None
    own = None if mask_function is causal_mask_function else mask_function
    return Mask(offset, kv_offset, own, padding, rows=batch_size, device=device)
