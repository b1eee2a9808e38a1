"""The only room that touches the insides of `transformers` models."""

from __future__ import annotations

from drope.models.applicable import check_method, mark_trained, trained_for
from drope.models.apply import apply
from drope.models.checks import VerificationReport, verify
from drope.models.convert import convert
from drope.models.inspect import Inspection, inspect
from drope.models.load import Loaded, load, load_config
from drope.models.logit_scale import set_logit_scale
from drope.models.qk_norm import QKNormReport, add_qk_norm
from drope.models.rotary import drop, is_position_free, restore, scale_frequencies
from drope.models.save import save
from drope.models.shape import declare_context, rope_shape
from drope.models.stock import stock_config
from drope.models.support import unsupported_reason

__all__ = [
    "Inspection",
    "Loaded",
    "QKNormReport",
    "VerificationReport",
    "add_qk_norm",
    "apply",
    "check_method",
    "convert",
    "declare_context",
    "drop",
    "inspect",
    "is_position_free",
    "load",
    "load_config",
    "mark_trained",
    "restore",
    "rope_shape",
    "save",
    "scale_frequencies",
    "set_logit_scale",
    "stock_config",
    "trained_for",
    "unsupported_reason",
    "verify",
]
