"""The only room that touches the insides of `transformers` models."""

from __future__ import annotations

from drope.models.apply import apply
from drope.models.checks import VerificationReport, verify
from drope.models.load import Loaded, load, load_config
from drope.models.logit_scale import set_logit_scale
from drope.models.rotary import drop, is_position_free, restore, scale_frequencies
from drope.models.shape import rope_shape
from drope.models.support import unsupported_reason

__all__ = [
    "Loaded",
    "VerificationReport",
    "apply",
    "drop",
    "is_position_free",
    "load",
    "load_config",
    "restore",
    "rope_shape",
    "scale_frequencies",
    "set_logit_scale",
    "unsupported_reason",
    "verify",
]
