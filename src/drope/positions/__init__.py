"""One catalogue of positional methods. Each says what it needs of a model; `drope.models.apply` carries it out."""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any

from drope.errors import InputError
from drope.positions import frequencies
from drope.positions.alibi import Alibi
from drope.positions.base import Method, Requirements, RopeShape
from drope.positions.crop import Crop
from drope.positions.drop_layers import DropLayers
from drope.positions.drope import Drope
from drope.positions.drope_swan import DropeSWAN
from drope.positions.dual_chunk import DualChunk
from drope.positions.dynamic_ntk import DynamicNTK
from drope.positions.llama3 import Llama3
from drope.positions.longrope2 import LongRoPE2
from drope.positions.nope import Nope
from drope.positions.ntk import NTK
from drope.positions.p_rope import PRope
from drope.positions.partial_drop import PartialDrop
from drope.positions.pi import PI
from drope.positions.rerope import ReRope
from drope.positions.rnope_swa import RNoPESWA
from drope.positions.rope import Rope
from drope.positions.self_extend import SelfExtend
from drope.positions.swan import SWAN
from drope.positions.yarn import Yarn

# in the order of tables: scaling, then what changes the attention, then what loses the rotation, then architectures
METHODS: dict[str, type[Method]] = {
    cls.name: cls
    for cls in (
        Rope,
        PI,
        NTK,
        DynamicNTK,
        Yarn,
        Llama3,
        LongRoPE2,
        PRope,
        SelfExtend,
        DualChunk,
        ReRope,
        Crop,
        Nope,
        Drope,
        DropLayers,
        PartialDrop,
        DropeSWAN,
        Alibi,
        RNoPESWA,
        SWAN,
    )
}
_ALIASES = {"linear": "pi", "dynamic": "dynamic_ntk", "selfextend": "self_extend", "dca": "dual_chunk"}


def get(name: str, **settings: Any) -> Method:
    """The method of this name, with its settings.

    Raises
    ------
    InputError : an unknown name (with the nearest ones and the whole set) or setting, or a value that is refused
    """
    key = str(name).strip().lower().replace("-", "_").replace(" ", "_")
    key = _ALIASES.get(key, key)
    if key not in METHODS:
        near = difflib.get_close_matches(key, [*METHODS, *_ALIASES], n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else ""
        raise InputError("method", name, ", ".join(METHODS), hint)
    cls = METHODS[key]
    known = [field.name for field in fields(cls)]
    for setting in settings:
        if setting not in known:
            raise InputError(f"setting of {key}", setting, ", ".join(known) or f"none: {cls.label} has no settings")
    return cls(**settings)


__all__ = [
    "METHODS",
    "NTK",
    "PI",
    "SWAN",
    "Alibi",
    "Crop",
    "DropLayers",
    "Drope",
    "DropeSWAN",
    "DualChunk",
    "DynamicNTK",
    "Llama3",
    "LongRoPE2",
    "Method",
    "Nope",
    "PRope",
    "PartialDrop",
    "RNoPESWA",
    "ReRope",
    "Requirements",
    "Rope",
    "RopeShape",
    "SelfExtend",
    "Yarn",
    "frequencies",
    "get",
]
