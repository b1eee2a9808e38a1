"""LoRA adapters and dropped rotations: an adapter trained with rotation does not fit the model without it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drope.errors import InputError

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)


def carries_adapter(model: nn.Module) -> bool:
    """Whether LoRA or other PEFT layers are in the model, unmerged."""
    return bool(getattr(model, "_hf_peft_config_loaded", False)) or any(
        hasattr(module, "lora_A") or hasattr(module, "lora_magnitude_vector") for module in model.modules()
    )


def warn_of_adapter(model: nn.Module) -> None:
    """Say, where a model with an adapter loses its rotation, what that means for the adapter."""
    if carries_adapter(model):
        log.warning(
            "The model carries an adapter that was trained with rotation, which is now dropped: its changes to q and k "
            "assume positions that are gone. Merge it before dropping and recalibrate, or train it anew afterwards."
        )


def adapter_mismatch(model: Any, adapter: str | Path) -> str | None:
    """Why an adapter does not belong to a position-free model, or None.

    An adapter is taken as trained with rotation where its `base_model_name_or_path` is the model that this one was made
    from, or anything else than this checkpoint.

    Raises
    ------
    InputError : no adapter there
    """
    from drope.models.rotary import is_position_free

    path = Path(adapter) / "adapter_config.json"
    try:
        base = str(json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
    except (OSError, ValueError) as error:
        raise InputError("adapter", str(adapter), "a folder with adapter_config.json, as PEFT writes it") from error
    if not is_position_free(model):
        return None
    own = str(getattr(model, "name_or_path", "") or "")
    place = Path(base).expanduser()
    if base and (base == own or place.exists() and own and place.resolve() == Path(own).resolve()):
        return None
    if place.is_dir() and _stops(place):
        return None  # another position-free checkpoint: the same model at another length, say
    return (
        f"The adapter was trained on {base or 'an unknown model'}, not on this position-free checkpoint: its changes "
        "to q and k assume the rotation that is dropped here. Train it anew on the converted model."
    )


def load_adapter(model: Any, adapter: str | Path) -> Any:
    """`PeftModel.from_pretrained` that warns where the adapter was trained with rotation.

    Raises
    ------
    InputError : peft is not installed, or there is no adapter
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise InputError("adapter", str(adapter), "peft installed", "pip install 'drope-llm[peft]'") from error
    if (reason := adapter_mismatch(model, adapter)) is not None:
        log.warning(reason)
    return PeftModel.from_pretrained(model, str(adapter))


def _stops(folder: Path) -> bool:
    from drope.models.load import load_config
    from drope.models.shape import stops_rotation

    return (folder / "config.json").exists() and stops_rotation(load_config(folder))
