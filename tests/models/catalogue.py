"""One instance of every method of the catalogue, for a tiny model of context 64, and what is special about each."""

from __future__ import annotations

from typing import Any

from families import CONTEXT, model

from drope import positions
from drope.models import mark_trained
from drope.positions import METHODS, Method, RopeShape

LENGTH = 2 * CONTEXT
SHAPE = RopeShape(1e4, 8, CONTEXT, layers=4)
_SETTINGS: dict[str, dict[str, Any]] = {"longrope2": {"factors": {LENGTH: [1.0, 1.5, 2.0, 2.5]}}}
EVERY: dict[str, Method] = {name: positions.get(name, **_SETTINGS.get(name, {})) for name in METHODS}
MORE: dict[str, Method] = {
    "drop_layers (0, 2)": positions.get("drop_layers", layers=(0, 2)),
    "drope_swan narrow": positions.get("drope_swan", window=5, period=2),
    "rnope_swa wide": positions.get("rnope_swa", window=CONTEXT, period=3),
    "swan steep": positions.get("swan", window=7, a=0.5),
    "p_rope 0": positions.get("p_rope", p=0.0),
    "partial_drop 1": positions.get("partial_drop", pairs=1),
    "crop 40": positions.get("crop", tokens=40),
    "llama3 wide": positions.get("llama3", low_freq_factor=2.0, high_freq_factor=9.0),
    "yarn 3": positions.get("yarn", factor=3.0),
}
INSTANCES = EVERY | MORE
# Stock dynamic NTK rotates new tokens by the new base and leaves cached keys by the old: exact within the context.
GROWS_WITH_INPUT = ("dynamic_ntk",)


def llama(method: Method | None = None, seed: int = 0, **changes: Any) -> Any:
    """Llama of 4 layers, 4 heads on 2 key-value heads; noted as trained for `method` where that has to be."""
    made = model("Llama", seed, **{"num_hidden_layers": 4, **changes})
    if method is not None and method.from_scratch:
        mark_trained(made.config, method)
    return made


def hidden(method: Method, length: int = LENGTH) -> int:
    """Tokens at the start of an input of `length` that the method does not let the model see."""
    crop = method.requirements(SHAPE, length).crop
    return 0 if crop is None else length - crop
