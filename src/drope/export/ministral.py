"""A temperature that grows with position, in a stock class: Ministral3 multiplies q by 1 + c·ln(1 + ⌊position / L⌋).

Ministral3 is Llama's shape otherwise, with the same names of weights. A constant temperature that is folded into the
weights is taken out again, file by file.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from drope.errors import InputError, UnsupportedModelError
from drope.export.side_files import copy_side_files
from drope.files import write_json
from drope.models.encoding import FACTOR
from drope.models.files import check_safetensors, weight_files
from drope.models.stream import fold_edits, patch, refuse_missing
from drope.record import folded_beta


def ministral_refusal(config: Any) -> str | None:
    """Why models of this config cannot become Ministral3, or None where they can."""
    if config.model_type not in ("llama", "mistral"):
        return f"only llama and mistral have Ministral3's shape; {config.model_type!r} does not"
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        return "it has biases, which Ministral3 has no place for"
    return None


def write_ministral(folder: Path, config: Any, out: Path, coefficient: float) -> None:
    """Write the position-free checkpoint `folder` as Ministral3 to the existing folder `out`.

    Parameters
    ----------
    coefficient : c; L is the trained context

    Raises
    ------
    UnsupportedModelError : not of that shape; the message says why
    InputError : a coefficient that is no number of 0 or more
    """
    from transformers import Ministral3Config

    from drope.models.qk_norm import LLAMA_SETTINGS, head_dim
    from drope.models.save import raise_tokenizer_limit
    from drope.models.shape import rope_shape

    if not (math.isfinite(coefficient) and coefficient >= 0):
        raise InputError("--length-temperature", coefficient, "a number of 0 or more")
    if (reason := ministral_refusal(config)) is not None:
        raise UnsupportedModelError(f"{config.model_type!r} cannot be given a temperature by position: {reason}.")
    context = rope_shape(config).context
    rope = {
        "rope_type": "llama3", "rope_theta": float(config.rope_parameters["rope_theta"]), "factor": FACTOR,
        "low_freq_factor": float(context), "high_freq_factor": float(2 * context),
        "original_max_position_embeddings": context, "llama_4_scaling_beta": coefficient,
    }  # fmt: skip
    new = Ministral3Config(
        **{key: getattr(config, key) for key in LLAMA_SETTINGS if hasattr(config, key)},
        head_dim=head_dim(config), sliding_window=getattr(config, "sliding_window", None), rope_parameters=rope,
        dtype=getattr(config, "dtype", None), architectures=["Ministral3ForCausalLM"],
    )  # fmt: skip
    files = weight_files(folder)
    edits = fold_edits(config, 1 / folded_beta(folder))
    refuse_missing(config, edits, files)
    for file in files:
        patch(file, out / file.name, {k: v for k, v in edits.items() if k in check_safetensors(file)})
    copy_side_files(folder, out)
    plain = json.loads(new.to_json_string())
    # vLLM reads this key; transformers and mlx-lm read the one among the rope parameters.
    plain["llama_4_scaling"] = {"original_max_position_embeddings": context, "beta": coefficient}
    write_json(out / "config.json", plain)
    raise_tokenizer_limit(out, config.max_position_embeddings)
