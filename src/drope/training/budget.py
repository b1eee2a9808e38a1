"""What a run takes, from a model's configuration alone: memory per GPU, how to split the work, time.

The counts are those of this trainer: float32 weights under bfloat16 autocast, AdamW in float32, PyTorch's fused
attention, logits in chunks. B blocks of T tokens in a micro batch, L layers, D hidden width, F MLP width, V vocabulary,
A width of all query heads, K width of all key heads.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from drope.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: GPUs by name: memory in GiB and dense bfloat16 in TFLOP/s, as their makers state them.
GPUS = {
    "A100-40": (40, 312), "A100": (80, 312), "H100": (80, 989), "H200": (141, 989), "B200": (180, 2250),
    "L4": (24, 121), "L40S": (48, 362), "A10": (24, 125), "RTX4090": (24, 165), "RTX5090": (32, 209),
    "MI300X": (192, 1307),
}  # fmt: skip
GIB = 2**30
_USABLE = 0.9  # share of the memory that is planned with: the rest is the driver's, NCCL's and fragmentation
_CHUNK_BYTES = 5 * 4 * (1 << 25)  # logits, log-probabilities and gradients of one chunk (drope.training.losses)


@dataclass(frozen=True)
class Shape:
    """The sizes that memory and time depend on."""

    parameters: int
    embedding: int
    layers: int
    hidden: int
    wide: int
    queries: int
    keys: int
    vocabulary: int
    context: int
    tied: bool
    idle: int  # weights of experts that a token does not pass

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Shape:
        """Counted on torch's meta device: no weights are made.

        Raises
        ------
        UnsupportedModelError : a family without rotation
        """
        import torch
        from transformers import AutoModelForCausalLM

        from drope.models import rope_shape
        from drope.models.shape import head_width

        text = config.get_text_config(decoder=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(text)
        total = sum(p.numel() for p in model.parameters())
        width, heads = head_width(text), text.num_attention_heads
        wide = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        wide = max(wide) if isinstance(wide, list | tuple) else wide
        active = getattr(text, "num_experts_per_tok", None) or 1
        if getattr(text, "moe_intermediate_size", None):
            wide = text.moe_intermediate_size
        return cls(
            total, model.get_input_embeddings().weight.numel(), text.num_hidden_layers, text.hidden_size,
            int(wide * active), heads * width, (getattr(text, "num_key_value_heads", None) or heads) * width,
            text.vocab_size, rope_shape(config).context, bool(text.tie_word_embeddings),
            _idle_weights(model, text),
        )  # fmt: skip

    def activation_bytes(self, *, bf16: bool = True, checkpointing: bool = False) -> float:
        """Bytes that one token's forward pass leaves for the backward pass."""
        norms = 16 * self.hidden  # two norms, input and normalised, float32 always
        if bf16:
            # autocast copies the input of each linear layer: q, k, v, gate, up
            layer = norms + 10 * self.hidden + 2 * (3 * self.queries + 2 * self.keys) + 8 * self.wide
        else:
            layer = norms + 8 * self.hidden + 4 * (3 * self.queries + 2 * self.keys) + 16 * self.wide
        if checkpointing:
            return 4 * self.hidden * self.layers + layer
        return layer * self.layers

    def flops(self, context: int, *, distill: bool = False, checkpointing: bool = False) -> tuple[float, float]:
        """(model, hardware) floating point operations a token: 6 per weight that multiplies, and causal attention.

        MFU counts the first; the second adds a teacher's pass and what checkpointing computes again.
        """
        multiplying = self.parameters - self.idle - (0 if self.tied else self.embedding)
        forward = 2 * multiplying + 2 * self.layers * self.queries * context  # half of the T x T products
        model = 3 * forward
        return model, model + forward * (distill + checkpointing)


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the peak of a step."""

    weights: float
    gradients: float
    optimizer: float
    copies: float
    teacher: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Budget:
    """A run on some GPUs.

    sharding : `none` (one GPU), `ddp` (whole copies) or `fsdp` (weights, gradients and optimiser spread over the GPUs)
    micro_batch : blocks that one GPU computes at once; accumulation: micro batches of a step
    seconds, gpu_hours : at the given MFU; steps: optimizer steps
    """

    gpu: str
    gpus: int
    sharding: str
    checkpointing: bool
    micro_batch: int
    accumulation: int
    context: int
    batch_tokens: int
    steps: int
    memory: Memory
    flops_per_token: float
    mfu: float
    seconds: float
    gpu_hours: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"memory": asdict(self.memory) | {"total": self.memory.total}}


def memory(
    shape: Shape,
    *,
    gpus: int,
    sharding: str,
    micro_batch: int,
    context: int,
    checkpointing: bool = False,
    optimizer: str = "adamw",
    distill: bool = False,
    bf16: bool = True,
) -> Memory:
    """Bytes on each of `gpus` GPUs for micro batches of `micro_batch` blocks of `context` tokens."""
    share = gpus if sharding == "fsdp" else 1
    n = shape.parameters
    matrices = n - shape.embedding * (1 if shape.tied else 2)
    states = 8 * n - (4 * matrices if optimizer == "muon" else 0)  # Muon keeps one average, AdamW two
    # Autocast keeps bfloat16 copies of the weights; FSDP gathers two layers (and the largest is the embedding) at once.
    copies: float = 2 * n if bf16 else 0
    if sharding == "fsdp":
        layer = (n - shape.embedding) / shape.layers
        copies = 4 * (2 * layer + 2 * shape.embedding) + (2 * n if bf16 else 0) / shape.layers
    tokens = micro_batch * context
    head = (6 if bf16 else 4) * shape.vocabulary * shape.hidden  # the gradient of the output layer and its copy
    rows = max(256, (1 << 25) // shape.vocabulary)
    chunk = _CHUNK_BYTES * min(1.0, tokens / rows) * (1.5 if distill else 1)
    ends = 16 * shape.hidden * tokens  # embeddings, last norm, the gradient of the last hidden states
    return Memory(
        weights=4 * n / share, gradients=4 * n / share, optimizer=states / share, copies=copies,
        teacher=2 * n if distill else 0,
        activations=shape.activation_bytes(bf16=bf16, checkpointing=checkpointing) * tokens + ends,
        logits=head + chunk,
    )  # fmt: skip


def budget(
    shape: Shape,
    gpus: str,
    tokens: int,
    *,
    batch_tokens: int = 1 << 20,
    context: int | None = None,
    optimizer: str = "adamw",
    distill: bool = False,
    mfu: float = 0.4,
) -> Budget:
    """The simplest split that fits: whole copies before shards, shards before checkpointing, then large micro batches.

    Parameters
    ----------
    gpus : such as `8xH100`; `H100` is one
    mfu : model FLOPs utilisation, the share of the GPUs' stated bfloat16 rate that is reached

    Raises
    ------
    InputError : an unknown GPU, a batch that the GPUs cannot share evenly, or a model that does not fit in any way
    """
    number, name = _parse_gpus(gpus)
    capacity, teraflops = GPUS[name]
    context = context or shape.context
    if not 0 < mfu <= 1:
        raise InputError("--mfu", mfu, "above 0 and at most 1")
    if context > shape.context:
        raise InputError("--context", context, f"at most the model's own {shape.context} tokens")
    blocks = batch_tokens // context // number * number
    if not blocks:
        raise InputError("--batch-tokens", batch_tokens, f"at least {number} blocks of {context} tokens, one a GPU")
    if tokens < blocks * context:
        raise InputError("--tokens", tokens, f"at least one step of {blocks * context} tokens")
    common: dict[str, Any] = {"gpus": number, "context": context, "optimizer": optimizer, "distill": distill}
    splits = ["ddp", "fsdp"] if number > 1 else ["none"]
    if optimizer == "muon":
        splits = splits[:1]  # Muon needs whole matrices
    for checkpointing in (False, True):
        for sharding in splits:
            fitting = [
                (micro, need)
                for micro in (d for d in range(1, blocks // number + 1) if blocks // number % d == 0)
                if (need := memory(
                    shape, sharding=sharding, micro_batch=micro, checkpointing=checkpointing, **common
                )).total <= _USABLE * capacity * GIB
            ]  # fmt: skip
            if fitting:
                # More than 32k tokens at once are no faster.
                micro, need = max((f for f in fitting if f[0] * context <= 32768), default=fitting[0])
                model, hardware = shape.flops(context, distill=distill, checkpointing=checkpointing)
                steps = tokens // (blocks * context)
                seconds = steps * blocks * context * hardware / (number * teraflops * 1e12 * mfu)
                return Budget(
                    name, number, sharding, checkpointing, micro, blocks // number // micro, context,
                    blocks * context, steps, need, model, mfu, seconds, seconds * number / 3600,
                )  # fmt: skip
    least = memory(shape, sharding=splits[-1], micro_batch=1, checkpointing=True, **common).total / GIB
    raise InputError(
        "--gpus", gpus, f"GPUs with at least {least / _USABLE:.0f} GiB each for this model",
        "Take more of them, larger ones, or a shorter --context.",
    )  # fmt: skip


def _parse_gpus(text: str) -> tuple[int, str]:
    match = re.fullmatch(r"(?:(\d+)\s*[x×*]\s*)?([\w-]+)", text.strip())
    names = {name.lower(): name for name in GPUS}
    if not match or match[2].lower() not in names or match[1] == "0":
        raise InputError("--gpus", text, f"a number and a GPU, such as 8xH100; known: {', '.join(GPUS)}")
    return int(match[1] or 1), names[match[2].lower()]


def _idle_weights(model: Any, text: Any) -> int:
    """Weights of the experts that a token is not sent to."""
    experts = next((getattr(text, k) for k in ("num_experts", "num_local_experts", "n_routed_experts")
                    if getattr(text, k, None)), 0)  # fmt: skip
    chosen = getattr(text, "num_experts_per_tok", None) or experts
    held = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    return int(held * (1 - chosen / experts)) if experts else 0
