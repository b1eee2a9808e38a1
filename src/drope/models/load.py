"""Loading models: a hub id, a folder, a GGUF file, or the model that ships with drope."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from drope.errors import DropeError, InputError, UnsupportedModelError
from drope.models.files import check_folder
from drope.models.released import build as build_released
from drope.models.released import facts as released_facts
from drope.models.released import is_released, stock_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_SOURCES = 'a hub id such as "org/name", a folder with a checkpoint, a .gguf file, or "bundled"'


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer (None where the checkpoint has none) and the source that was asked for."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    source: str


def load(
    source: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    weights: bool = True,
) -> Loaded:
    """Load a causal language model and its tokenizer.

    Parameters
    ----------
    source : a hub id, a folder, a .gguf file, or `bundled` for the small model that ships with drope
        (`bundled:recalibrating` is a position-free state from late in its recalibration)
    dtype : `auto` is float32 on a CPU and the checkpoint's own elsewhere
    device : `auto` is the first accelerator, else the CPU
    revision : branch, tag or commit, for hub ids
    trust_remote_code : run modelling code that comes with the checkpoint
    weights : False gives the architecture alone, on torch's meta device (its rotary modules are real)

    Raises
    ------
    InputError : nothing loadable there, damaged or missing files, or a tokenizer that does not match the model
    UnsupportedModelError : not a causal language model
    DropeError : the hub cannot be reached
    """
    from transformers import AutoModelForCausalLM

    place, options = _locate(source)
    options |= {"revision": revision, "trust_remote_code": trust_remote_code}
    options = {key: value for key, value in options.items() if value is not None}
    target = _device(device)
    model: Any
    with _readable_errors(source):
        config = _config(place, options)
        if weights:
            check_folder(place, options.get("gguf_file"))
        if weights and released_facts(config) is not None:
            model = build_released(place, config, **options, dtype=_dtype(dtype, target, config))
            model = model.to(target).eval()
        elif weights:
            model = AutoModelForCausalLM.from_pretrained(
                place,
                **options,
                **({} if "gguf_file" in options else {"use_safetensors": True, "config": config}),
                dtype=_dtype(dtype, target, config),
                **({"device_map": {"": str(target)}} if target.type == "cuda" else {}),
            )
            if "gguf_file" in options:
                _forget_quantisation(model)
            model = model.to(target).eval()
        else:
            model = _architecture(config, trust_remote_code)
        tokenizer = _tokenizer(place, options)
    if tokenizer is not None:
        _check_tokenizer(tokenizer, model, source)
    return Loaded(model, tokenizer, str(source))


def load_config(
    source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """The configuration alone; no weights are read. Errors as for `load`."""
    place, options = _locate(source)
    options |= {"trust_remote_code": trust_remote_code} | ({"revision": revision} if revision else {})
    with _readable_errors(source):
        return _config(place, options)


def load_tokenizer(
    source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer alone; no weights are read. Errors as for `load`."""
    place, options = _locate(source)
    options |= {"trust_remote_code": trust_remote_code} | ({"revision": revision} if revision else {})
    with _readable_errors(source):
        tokenizer = _tokenizer(place, options)
    if tokenizer is None:
        raise InputError("model", str(source), "a checkpoint with a tokenizer")
    return tokenizer


#: What ships with drope: the RoPE model, and a state from the middle of its recalibration.
BUNDLED = {"bundled": "bundled", "bundled:recalibrating": "bundled_recalibrating"}


def bundled_folder(name: str = "bundled") -> Path:
    """Where a model that ships with drope lies; `name` is a key of `BUNDLED`."""
    folder = Path(__file__).parent.parent / BUNDLED[name]
    if not (folder / "config.json").exists():
        raise InputError("model", name, _SOURCES, "This installation of drope has no bundled model: reinstall it.")
    return folder


def _locate(source: str | Path) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes: a folder or hub id, and options that a GGUF file needs."""
    name = str(source)
    if name in BUNDLED:
        return str(bundled_folder(name)), {}
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise InputError("model", name, _SOURCES, "A single file can be loaded only if it is a GGUF.")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").exists():
            raise InputError("model", name, _SOURCES, "This folder has no config.json, so it holds no checkpoint.")
        return str(path), {}
    looks_local = isinstance(source, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local or path.suffix in (".gguf", ".safetensors"):
        raise InputError("model", name, _SOURCES, "There is no such file or folder.")
    return name, {}


def _config(place: str, options: dict[str, Any]) -> PreTrainedConfig:
    from transformers import AutoConfig, PreTrainedConfig

    if "gguf_file" in options:
        _need_gguf()
    else:
        plain, _ = PreTrainedConfig.get_config_dict(place, **options)
        if is_released(plain):
            return stock_config(plain)
    return AutoConfig.from_pretrained(place, **options)


def _architecture(config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """The model without weights; its frequencies are made for real, so that they can be read."""
    from transformers import AutoModelForCausalLM

    from drope.models.rebuild import rebuild
    from drope.models.rotary import frequencies

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and frequencies(child) and getattr(child, "config", None) is not None:
                setattr(parent, name, rebuild(child, child.config.rope_parameters))
    return model.eval()


def _tokenizer(place: str, options: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
    if Path(place).is_dir() and "gguf_file" not in options and not any((Path(place) / name).exists() for name in names):
        return None
    return AutoTokenizer.from_pretrained(place, **options)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, source: str | Path) -> None:
    """Refuse a tokenizer that makes ids which the model has no embedding for."""
    rows = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    extra = set(tokenizer.added_tokens_decoder)  # placeholders that some families add beyond their text vocabulary
    needed = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
    beyond = [(i, t) for t, i in tokenizer.get_vocab().items() if i >= rows and (i not in extra or i in needed)]
    if beyond:
        index, token = min(beyond)
        raise InputError(
            "tokenizer",
            f"{type(tokenizer).__name__} with {len(tokenizer)} tokens",
            f"one whose ids are all below {rows}, the rows of the model's embedding",
            f"{len(beyond)} of its tokens have no embedding in {source} (the first is {token!r}, id {index}): "
            "it belongs to another model.",
        )


def _device(device: str | torch.device) -> torch.device:
    if str(device) != "auto":
        try:
            return torch.device(device)
        except RuntimeError:
            raise InputError("device", str(device), "auto, cpu, cuda, cuda:0, mps") from None
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _dtype(dtype: str | torch.dtype, device: torch.device, config: PreTrainedConfig) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if device.type == "cpu":
            return torch.float32
        own = getattr(config.get_text_config(decoder=True), "dtype", None) or config.dtype or torch.bfloat16
        return own if isinstance(own, torch.dtype) else getattr(torch, str(own).removeprefix("torch."))
    short = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}
    name = short.get(dtype, dtype)
    if name not in _DTYPES:
        raise InputError("dtype", dtype, ", ".join(["auto", *_DTYPES]))
    return _DTYPES[name]


def _forget_quantisation(model: Any) -> None:
    """A GGUF file's weights are dequantised when read: training and saving must not take them for quantised ones."""
    model.is_quantized, model.hf_quantizer = False, None
    for owner, name in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)


def _need_gguf() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise DropeError('Reading GGUF files needs the package "gguf": pip install "drope-llm[gguf]".') from None


class _readable_errors:
    """Turns what loaders raise into errors that say what to do."""

    def __init__(self, source: str | Path):
        self.source = str(source)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, DropeError):
            return
        from safetensors import SafetensorError

        message = str(error)
        first = message.strip().splitlines()[0] if message.strip() else type(error).__name__
        local = Path(self.source).expanduser().exists() or self.source in BUNDLED
        if isinstance(error, SafetensorError):
            raise InputError("model", self.source, "whole files", f"A file is damaged: {first}.") from error
        unknown = ("Unrecognized", "model_type", "model type")
        if isinstance(error, ValueError) and any(words in message for words in unknown):
            raise UnsupportedModelError(
                f"{self.source} is not a causal language model that transformers knows: {first}"
            ) from error
        if local:
            if isinstance(error, OSError | ValueError | KeyError | RuntimeError):
                raise InputError("model", self.source, "a whole checkpoint", f"It cannot be read: {first}") from error
            return
        if _unreachable(error):
            raise DropeError(
                f"{self.source} is no folder here and the Hugging Face hub cannot be reached. "
                "Check the connection (or HF_ENDPOINT, HF_HUB_OFFLINE); or fetch the model elsewhere with "
                f"`hf download {self.source} --local-dir DIR`, copy DIR here and pass its path; "
                'or try the model that ships with drope: "bundled".'
            ) from error
        if isinstance(error, OSError | ValueError):
            raise InputError("model", self.source, _SOURCES, first) from error


def _unreachable(error: BaseException) -> bool:
    """Whether an error, or what caused it, is a failed connection."""
    signs = ("connect", "offline", "timed out", "timeout", "name resolution", "localentrynot")
    seen: BaseException | None = error
    while seen is not None:
        text = f"{type(seen).__name__} {seen}".lower()
        if any(sign in text for sign in signs):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
