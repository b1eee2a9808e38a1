"""FSDP2: how it is asked for, and how a model comes back whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drope.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from drope.training.config import RecalibrationConfig


def fsdp_arguments(config: RecalibrationConfig, processes: int) -> dict[str, Any]:
    """The Trainer's fields for `config.fsdp`.

    Raises
    ------
    InputError : with Muon, which needs whole matrices, or with rolling back, which needs the first weights
    """
    if not config.fsdp:
        return {}
    if config.optimizer == "muon":
        raise InputError("optimizer", "muon", "adamw with --fsdp", "Muon needs whole matrices.")
    if config.on_divergence == "rollback":
        raise InputError("on_divergence", "rollback", "stop with --fsdp")
    settings = {
        "version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "state_dict_type": "FULL_STATE_DICT",
        "reshard_after_forward": True, "cpu_ram_efficient_loading": False,
    }  # fmt: skip
    return {"fsdp": True, "fsdp_config": settings}


def is_sharded(model: PreTrainedModel) -> bool:
    return any(hasattr(p, "full_tensor") for p in model.parameters())


def unsharded(model: PreTrainedModel) -> PreTrainedModel:
    """A whole model of the original class on the CPU with the weights of a sharded one; all processes call this.

    Its rotary modules are those of the sharded model, dropped or not.
    """
    import torch
    from torch.distributed.fsdp import FSDPModule

    from drope.models.rotary import rotary_modules

    # fully_shard puts a subclass in the place of a module's class.
    kind: Any = next(c for c in type(model).__mro__ if not issubclass(c, FSDPModule))
    with torch.device("meta"):
        whole = kind(model.config)
    state = {name: _full(tensor) for name, tensor in model.state_dict().items()}
    whole.load_state_dict(state, assign=True)
    whole.tie_weights()
    for name, module in rotary_modules(model).items():
        whole.set_submodule(name, module.cpu())
    for name, buffer in model.named_buffers():
        owner, _, attribute = name.rpartition(".")
        setattr(whole.get_submodule(owner), attribute, _full(buffer))
    whole.generation_config = model.generation_config
    return whole.train(model.training)


def _full(tensor: Any) -> Any:
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach().cpu()
