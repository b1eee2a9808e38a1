"""Per-head QKNorm for models of any size: the gains are fitted layer by layer, with pieces of one matrix in memory.

As `add_qk_norm` on a dropped model, whose gains it reproduces; the weights themselves are linked, not rewritten, and
the new gains go to a file of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from drope.errors import InputError, UnsupportedModelError
from drope.models.encoding import Encoding, encode
from drope.models.qk_norm import Fit, head_dim, qk_norm_refusal, qwen3_config
from drope.models.weights import Weights

if TYPE_CHECKING:
    import torch

_BUDGET = 900 * 2**20  # bytes of activations; six times (tokens, hidden) in float32 are alive at once
_SLICE = 1024  # channels of the MLP at a time


class StreamedNorm:
    """What `convert(..., qk_norm=)` takes.

    Parameters
    ----------
    init : `fitted` or `ones`, as for `add_qk_norm`
    batches : token ids, (B, T) each; needed for `fitted`. As many are used as keep activations under 0.9 GB
    """

    def __init__(self, init: Literal["fitted", "ones"] = "fitted", batches: Iterable[Any] | None = None):
        import torch

        if init not in ("fitted", "ones"):
            raise InputError("qk_norm_init", init, "fitted, ones")
        self.init = init
        self.rows = [torch.as_tensor(row) for batch in batches or () for row in batch]
        if init == "fitted" and not self.rows:
            raise InputError("batches", "empty", "at least one batch of token ids to fit on", 'Or choose init="ones".')
        self.report: dict[str, Any] = {}

    def describe(self) -> list[Any]:
        """As JSON."""
        return [self.init, [row.tolist() for row in self.rows]]

    def refuse(self, config: Any, folded: float) -> None:
        """Raise for models that cannot become Qwen3."""
        if (reason := qk_norm_refusal(config)) is not None:
            raise UnsupportedModelError(f"{config.model_type!r} cannot be given QKNorm: {reason}.")
        if folded != 1.0:
            raise InputError("model", f"a temperature of {folded:g} is folded in", "a model without one for QKNorm")

    def write(self, folder: Path, out: Path, config: Any, encoded: Encoding, beta: float) -> Encoding:
        """Add gains and index to the weights in `out`; returns how the new config says "no rotation"."""
        import torch
        from safetensors.torch import save_file

        from drope.models.stream import write_index

        weights = Weights(folder)
        try:
            first = "model.layers.0.self_attn.q_proj.weight"
            dtype, biased = weights.dtype(first), first.replace("weight", "bias") in weights
            width, layers = head_dim(config), config.num_hidden_layers
            fits = _fit(weights, config, self._used(config)) if self.init == "fitted" else []
            new: dict[str, torch.Tensor] = {}
            for i in range(layers):
                for norm in ("q_norm", "k_norm"):
                    gain = getattr(fits[i], norm[0]).gain() if fits else torch.ones(width)
                    new[f"model.layers.{i}.self_attn.{norm}.weight"] = (gain * (beta if norm == "q_norm" else 1)).to(
                        dtype
                    )
                if biased and f"model.layers.{i}.self_attn.o_proj.bias" not in weights:
                    new[f"model.layers.{i}.self_attn.o_proj.bias"] = torch.zeros(config.hidden_size, dtype=dtype)
        finally:
            weights.close()
        gains = out / "model-qk_norm.safetensors"  # mlx-lm reads model*.safetensors and no others
        save_file(new, gains, metadata={"format": "pt"})
        gains.chmod(0o644)
        single = out / "model.safetensors"
        if single.exists():  # a file of this name would be read alone
            single.rename(out / "model-weights.safetensors")
        write_index(out)
        self.report = {
            "init": self.init,
            "tokens": sum(row.numel() for row in self._used(config)) if fits else 0,
            "q_gain": [float(fit.q.gain().square().mean().sqrt()) for fit in fits],
            "k_gain": [float(fit.k.gain().square().mean().sqrt()) for fit in fits],
            "head_spread": [fit.q.head_spread() for fit in fits],
        }
        target = config.max_position_embeddings, encoded.config.max_position_embeddings
        return encode(qwen3_config(config, biased), target[1])

    def _used(self, config: Any) -> list[torch.Tensor]:
        most = _BUDGET // (6 * 4 * max(config.hidden_size, head_dim(config) * config.num_attention_heads))
        used: list[torch.Tensor] = []
        for row in self.rows:
            if used and sum(r.numel() for r in used) + row.numel() > most:
                break
            used.append(row[:most])
        return used


def _fit(weights: Weights, config: Any, rows: list[torch.Tensor]) -> list[Fit]:
    """Moments of every layer's q and k over the texts, in a forward without rotation."""
    import torch
    from torch.nn import functional

    eps, width = config.rms_norm_eps, head_dim(config)
    lengths = [len(row) for row in rows]
    ids = torch.cat(rows)
    known, places = torch.unique(ids, return_inverse=True)
    x = weights.chosen_rows("model.embed_tokens.weight", known.tolist())[places]  # (N, hidden)

    def normed(values: torch.Tensor, key: str) -> torch.Tensor:
        scale = (values.square().mean(-1, keepdim=True) + eps).rsqrt()
        return values * scale * weights.rows(key)

    def project(values: torch.Tensor, key: str) -> torch.Tensor:
        out = torch.empty(len(values), weights.shape(f"{key}.weight")[0])
        for first, piece in weights.row_pieces(f"{key}.weight"):
            torch.mm(values, piece.T, out=out[:, first : first + len(piece)])
        return out.add_(weights.rows(f"{key}.bias")) if f"{key}.bias" in weights else out

    fits = []
    with torch.no_grad():
        for i in range(config.num_hidden_layers):
            at, layer = f"model.layers.{i}.self_attn", f"model.layers.{i}"
            h = normed(x, f"{layer}.input_layernorm.weight")
            q, k, v = (project(h, f"{at}.{name}_proj") for name in "qkv")
            fit = Fit(config, paired=False)
            fit.q.add(q[None])
            fit.k.add(k[None])
            fits.append(fit)
            window = _window(config, i)
            start = 0
            for length in lengths:
                part = slice(start, start + length)
                heads = [t[part].unflatten(-1, (-1, width)).transpose(0, 1)[None] for t in (q, k, v)]
                mask = torch.ones(length, length, dtype=torch.bool).tril()
                if window:
                    mask = mask.triu(1 - window)
                out = functional.scaled_dot_product_attention(
                    heads[0], heads[1], heads[2], attn_mask=mask, enable_gqa=True
                )
                q[part] = out[0].transpose(0, 1).flatten(1)  # q of this text is not needed any more
                start += length
            del k, v, h
            x = x + project(q, f"{at}.o_proj")
            del q
            h = normed(x, f"{layer}.post_attention_layernorm.weight")
            x = x + _mlp(weights, f"{layer}.mlp", h, config)
    return fits


def _mlp(weights: Weights, at: str, h: torch.Tensor, config: Any) -> torch.Tensor:
    import torch
    from transformers.activations import ACT2FN

    act = ACT2FN[config.hidden_act]
    out = torch.zeros(len(h), weights.shape(f"{at}.down_proj.weight")[0])
    channels = weights.shape(f"{at}.gate_proj.weight")[0]
    for first in range(0, channels, _SLICE):
        last = min(first + _SLICE, channels)
        gate, up = (h @ weights.rows(f"{at}.{name}_proj.weight", first, last).T for name in ("gate", "up"))
        out.addmm_(act(gate) * up, weights.columns(f"{at}.down_proj.weight", first, last).T)
    return out


def _window(config: Any, layer: int) -> int | None:
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    return window if window and (not types or types[layer] == "sliding_attention") else None
