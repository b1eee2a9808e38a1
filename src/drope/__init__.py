"""Longer context for pretrained RoPE language models, by dropping their positional embeddings (DroPE).

    import drope

    loaded = drope.load("bundled")
    model = drope.drop(loaded.model)

Names are imported when they are first used, so that `import drope` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drope.evaluation import compare, evaluate
    from drope.models import apply, convert, drop, inspect, load, restore, save
    from drope.pipeline import extend
    from drope.temperature import fit as fit_temperature
    from drope.training.recalibrate import recalibrate

_HOMES = {
    "apply": "drope.models",
    "compare": "drope.evaluation",
    "convert": "drope.models",
    "drop": "drope.models",
    "evaluate": "drope.evaluation",
    "extend": "drope.pipeline",
    "fit_temperature": "drope.temperature",
    "inspect": "drope.models",
    "load": "drope.models",
    "recalibrate": "drope.training",
    "restore": "drope.models",
    "save": "drope.models",
}

__all__ = [
    "apply",
    "compare",
    "convert",
    "drop",
    "evaluate",
    "extend",
    "fit_temperature",
    "inspect",
    "load",
    "recalibrate",
    "restore",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'drope' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), "fit" if name == "fit_temperature" else name)


def __dir__() -> list[str]:
    return __all__
