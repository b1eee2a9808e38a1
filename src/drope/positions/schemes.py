"""Attention schemes that replace the rotation inside the attention: what they are, without how they are computed.

`drope.models.attention.<name>` computes the scheme of that name on raw q and k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from drope.errors import InputError


@dataclass(frozen=True)
class Scheme:
    """A scheme. `rotates`: whether it uses the model's frequencies (ALiBi does not)."""

    name: ClassVar[str]
    rotates: ClassVar[bool] = True


@dataclass(frozen=True)
class SelfExtend(Scheme):
    """Distances below `window` as they are; others from positions divided by `group`, shifted to join at the window."""

    group: int
    window: int
    name: ClassVar[str] = "self_extend"

    def __post_init__(self) -> None:
        check_whole("group", self.group)
        check_whole("window", self.window)


@dataclass(frozen=True)
class DualChunk(Scheme):
    """Positions within chunks of `chunk` tokens; `local` tokens across a border keep their true distance."""

    chunk: int
    local: int
    name: ClassVar[str] = "dual_chunk"

    def __post_init__(self) -> None:
        check_whole("chunk", self.chunk)
        check_whole("local", self.local, least=0)


@dataclass(frozen=True)
class ReRope(Scheme):
    """Distances clamped to `window`."""

    window: int
    name: ClassVar[str] = "rerope"

    def __post_init__(self) -> None:
        check_whole("window", self.window)


@dataclass(frozen=True)
class Alibi(Scheme):
    """A bias of −m_h (i − j) on the logits, the slopes m_h geometric in the head h; no rotation."""

    name: ClassVar[str] = "alibi"
    rotates: ClassVar[bool] = False


def check_whole(field: str, value: int | None, least: int = 1, most: int | None = None, what: str = "tokens") -> None:
    """Refuse what is not a whole number of `least` to `most` (None: no limit); None passes, it means a default."""
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        upper = f" to {most}" if most is not None else " or more"
        raise InputError(field, value, f"a whole number of {what}, {least}{upper}")
