"""‖∇A^c‖ by layer, RoPE against NoPE: at initialisation (Figure 4 of the paper), and along a run's checkpoints."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from drope.analysis.functional import GradientNorms, gradient_norms
from drope.analysis.patterns import STANDARD, Pattern
from drope.analysis.uniformity import Spread, spread_by_layer
from drope.errors import DropeError, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LARGEST = 600_000_000  # parameters: 2.4 GB in float32; larger models are initialised with fewer layers
_ORDER = re.compile(r"(\d+)(?!.*\d)")


def initialised(config: PreTrainedConfig, seed: int = 0, largest: int = LARGEST) -> tuple[PreTrainedModel, str]:
    """A model of this config with the family's own initial weights, float32, and a note where it had to be cut down."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    text, note = config.get_text_config(decoder=True), ""
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    size, embedded = sum(p.numel() for p in skeleton.parameters()), skeleton.get_input_embeddings().weight.numel()
    if size > largest:
        layers = text.num_hidden_layers
        kept = max(2, min(layers, int((largest - 2 * embedded) / max(1, (size - 2 * embedded) / layers))))
        text.num_hidden_layers = kept
        for key in ("layer_types", "no_rope_layers"):
            if getattr(text, key, None):
                setattr(text, key, list(getattr(text, key))[:kept])
        note = (
            f"The first {kept} of {layers} layers: the whole model, of {size / 1e9:.1f}B parameters, is too large here."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    return model.eval(), note


@dataclass(frozen=True)
class Initial:
    """At initialisation, by method (`rope`, `nope`): gradient norms and the spread of the hidden states."""

    gradients: dict[str, GradientNorms]
    spreads: dict[str, Spread]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "gradients": {k: v.to_dict() for k, v in self.gradients.items()},
            "spread": {k: v.to_dict() for k, v in self.spreads.items()},
            "note": self.note,
        }


def initial_gradients(
    config: PreTrainedConfig,
    ids: torch.Tensor,
    patterns: Sequence[Pattern] = STANDARD,
    *,
    seed: int = 0,
    largest: int = LARGEST,
) -> Initial:
    """Figure 4: the same initial weights with the config's rotation and without it, on the same text.

    A position-free checkpoint's rotation is taken from its record; where there is none, `note` says so.
    """
    from drope.analysis.attention import observe
    from drope.models import apply
    from drope.positions import Nope, Rope

    model, note = initialised(config, seed, largest)
    gradients, spreads = {}, {}
    for method in (Rope(), Nope()):
        try:
            with apply(model, method, ids.shape[1]):
                gradients[method.name] = gradient_norms(model, ids, patterns)
                spreads[method.name] = spread_by_layer(observe(model, ids, hidden=True))
        except DropeError as error:
            if method.name == "nope":
                raise
            note = f"{note} Without RoPE: {error}".strip()  # a config that says no rotation, and no record of its own
    return Initial(gradients, spreads, note)


def checkpoints(folder: str | Path) -> list[tuple[str, Path]]:
    """The checkpoints below a run's folder, in order of the number that ends their name: (name, place).

    Raises
    ------
    InputError : there are none
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError("--along", str(folder), "the folder of a run, with checkpoints in it", "There is none.")
    found = {p.parent for p in root.rglob("config.json") if (p.parent / "model.safetensors").exists()
             or (p.parent / "model.safetensors.index.json").exists()}  # fmt: skip
    numbered = sorted((int(m[1]), p) for p in found if p != root and (m := _ORDER.search(p.name)))
    if not numbered:
        raise InputError("--along", str(folder), "a folder with checkpoint-1, checkpoint-2, ... in it")
    return [(p.name, p) for _, p in numbered]


def along(
    places: Sequence[tuple[str, Any]],
    ids: torch.Tensor,
    patterns: Sequence[Pattern] = STANDARD,
    load: Callable[[Any], PreTrainedModel] | None = None,
) -> list[dict[str, Any]]:
    """‖∇A^c‖ at each checkpoint, with rotation and without: rows {checkpoint, method, gradients}.

    A checkpoint whose rotation is not on record anywhere is measured without it alone.
    """
    from drope.analysis.functional import positional_bias
    from drope.models import apply
    from drope.positions import Nope, Rope

    rows = []
    for name, place in places:
        model = load(place) if load else _load(place)
        for method in (Rope(), Nope()):
            try:
                with apply(model, method, ids.shape[1]):
                    gradients = gradient_norms(model, ids, patterns)
                    bias = positional_bias(model, ids, patterns)
            except DropeError:
                if method.name == "nope":
                    raise
                continue
            means = [[float(v[p].mean()) for v in bias.values] for p in range(len(patterns))]
            rows.append({"checkpoint": name, "method": method.name, "gradients": gradients.to_dict(), "bias": means})
    return rows


def _load(place: Any) -> PreTrainedModel:
    from drope.models import load

    return load(place).model
