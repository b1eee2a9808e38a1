"""Writing a position-free checkpoint as a GGUF file, one tensor in memory at a time.

"No rotation" is the `linear` scaling type with factor 1e20, which llama.cpp applies in every architecture: positions
are multiplied by 1e-20 before the angles are made. (The `llama3` type lives in a tensor that few architectures read.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from drope.errors import InputError, UnsupportedModelError
from drope.export.gguf_layouts import LAYOUTS, Layout, expert_of, kv_heads, refusal, reorder, rotated_width, unfuse
from drope.models.encoding import FACTOR
from drope.models.files import check_safetensors, weight_files

if TYPE_CHECKING:
    import gguf
    import numpy as np
    import torch
    from transformers import PretrainedConfig

Precision = Literal["f32", "f16", "q8_0"]
PRECISIONS: tuple[Precision, ...] = ("f16", "q8_0", "f32")
_BLOCK = 32  # values that share a scale in Q8_0


def write_gguf(
    folder: Path, config: PretrainedConfig, target: Path, *, precision: Precision, length: int, pre: str | None = None,
    keep: frozenset[str] = frozenset(), encoding: Literal["linear", "rope"] = "linear",
) -> Path:  # fmt: skip
    """Write the checkpoint in `folder` to the file `target`.

    Parameters
    ----------
    precision : of matrices; vectors stay in float32
    length : tokens, becomes the model's context
    pre : see `gguf_tokenizer.vocabulary`
    keep : weights that stay in float16 under `q8_0`, by their name in the checkpoint
    encoding : `rope` leaves the rotation on, as a control that shows that a comparison would find it

    Raises
    ------
    UnsupportedModelError : a family or tokenizer that llama.cpp, or this writer, has no layout for; says why
    InputError : an unknown precision or splitting rule, or values that float16 cannot hold
    """
    import gguf

    from drope.export.gguf_tokenizer import vocabulary

    if precision not in PRECISIONS:
        raise InputError("--precision", precision, ", ".join(PRECISIONS))
    reason = refusal(config, length)
    if reason is not None:
        raise UnsupportedModelError(f"{config.model_type!r} cannot be written to GGUF: {reason}.")
    layout = LAYOUTS[config.model_type]
    arch = gguf.MODEL_ARCH[layout.arch]
    tensors = _Tensors(folder, config, layout, arch)
    words = vocabulary(folder, tensors.rows, pre)
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[arch])
    _settings(writer, config, layout, length, tensors.rows, encoding)
    kinds = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16,
             "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}  # fmt: skip
    writer.add_file_type(kinds[precision])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    words.add_to(writer)
    types = {}
    for name, shape, source in tensors.plan():
        types[name] = kind = _type(name, shape, precision, source in keep)
        size = gguf.quant_shape_to_byte_shape(shape, kind) if kind == gguf.GGMLQuantizationType.Q8_0 else shape
        dtype = {"F32": "float32", "F16": "float16"}.get(kind.name, "uint8")
        count = _product(size) * {"float32": 4, "float16": 2, "uint8": 1}[dtype]
        import numpy

        raw = kind if kind == gguf.GGMLQuantizationType.Q8_0 else None
        writer.add_tensor_info(name, size, numpy.dtype(dtype), count, raw_dtype=raw)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, _, source in tensors.plan():
            writer.write_tensor_data(_encoded(tensors.read(name), types[name], source))
    finally:
        writer.close()
    return target


def _settings(
    writer: gguf.GGUFWriter, config: Any, layout: Layout, length: int, rows: int, encoding: str
) -> None:  # fmt: skip
    import gguf

    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_name(str(getattr(config, "name_or_path", "") or config.model_type).rstrip("/").split("/")[-1])
    writer.add_context_length(length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads(config))
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_vocab_size(rows)
    eps = getattr(config, "rms_norm_eps", None) or config.layer_norm_eps
    (writer.add_layer_norm_eps if layout.layer_norm else writer.add_layer_norm_rms_eps)(float(eps))
    writer.add_rope_dimension_count(rotated_width(config, width))
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    if encoding == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(FACTOR)
    if layout.settings is not None:
        layout.settings(writer, config)


class _Tensors:
    """The tensors of a checkpoint under their GGUF names, read one by one."""

    def __init__(self, folder: Path, config: Any, layout: Layout, arch: gguf.MODEL_ARCH):
        import gguf

        self.config, self.layout = config, layout
        names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
        self.parts: dict[str, dict[int, tuple[Path, str]]] = defaultdict(dict)  # GGUF name -> expert -> where
        self.shapes: dict[str, tuple[int, ...]] = {}
        unknown = []
        for file in weight_files(folder):
            for key, entry in check_safetensors(file).items():
                if key.endswith(("rotary_emb.inv_freq", "attention.bias", "masked_bias")) and "proj" not in key:
                    continue  # buffers of old checkpoints, no weights
                plain, expert = expert_of(key) or (key, 0)
                name = names.get_name(plain, try_suffixes=(".weight", ".bias"))
                if name is None:
                    unknown.append(key)
                    continue
                self.parts[name][expert] = (file, key)
                many = (len(self.parts[name]),) if expert_of(key) else ()
                self.shapes[name] = (*many, *entry["shape"])
        if unknown:
            raise UnsupportedModelError(
                f"{config.model_type!r} has weights that llama.cpp's {layout.arch.lower()} has no place for: "
                f"{', '.join(unknown[:3])}{' …' if len(unknown) > 3 else ''}."
            )
        if getattr(config, "tie_word_embeddings", False):
            self.parts.pop("output.weight", None)
            self.shapes.pop("output.weight", None)
        self.rows = self.shapes["token_embd.weight"][0]
        if layout.arch == "PHI2" and "output.weight" not in self.parts:
            raise UnsupportedModelError("llama.cpp's phi2 has an output matrix of its own; this model ties it.")

    def plan(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """GGUF name, shape, and name in the checkpoint, in a fixed order."""
        for name in sorted(self.parts):
            yield name, self.shapes[name], self.parts[name][0][1]

    def read(self, name: str) -> torch.Tensor:
        """The tensor in float32, as llama.cpp wants it."""
        import torch
        from safetensors import safe_open

        found = []
        for _, (file, key) in sorted(self.parts[name].items()):
            with safe_open(file, "pt") as opened:
                found.append(opened.get_tensor(key).float())
        tensor = torch.stack(found) if expert_of(self.parts[name][0][1]) else found[0]
        config, layout = self.config, self.layout
        heads = config.num_attention_heads
        kind = name.rsplit(".", 2)[-2] if name.count(".") >= 2 else name
        if layout.interleaved and kind in ("attn_q", "attn_k"):
            count = heads if kind == "attn_q" else kv_heads(config)
            tensor = reorder(tensor, count, rotated_width(config, tensor.shape[0] // count))
        if kind == "attn_qkv" and layout.fused:
            tensor = unfuse(tensor, heads)
        if layout.norm_offset and "norm" in name:
            tensor = tensor + layout.norm_offset
        return tensor


def _type(name: str, shape: tuple[int, ...], precision: str, kept: bool) -> gguf.GGMLQuantizationType:
    import gguf

    kinds = gguf.GGMLQuantizationType
    if len(shape) < 2 or precision == "f32" or "ffn_gate_inp" in name or name.endswith(".bias"):
        return kinds.F32
    if precision == "q8_0" and not kept and shape[-1] % _BLOCK == 0:
        return kinds.Q8_0
    return kinds.F16


def _encoded(tensor: torch.Tensor, kind: gguf.GGMLQuantizationType, name: str) -> np.ndarray:
    import gguf
    import numpy

    values = numpy.ascontiguousarray(tensor.numpy())
    if kind == gguf.GGMLQuantizationType.F32:
        return values
    if kind == gguf.GGMLQuantizationType.F16:
        if values.size and float(numpy.abs(values).max()) > 65504:
            raise InputError("--precision", "f16", "f32", f"{name} has values that float16 cannot hold.")
        return values.astype(numpy.float16)
    return gguf.quants.quantize(values, kind)


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
