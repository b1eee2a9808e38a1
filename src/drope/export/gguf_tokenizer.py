"""A tokenizer as the metadata of a GGUF file, or a refusal: llama.cpp knows splitting rules by name, not by regex."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drope.errors import InputError, UnsupportedModelError

if TYPE_CHECKING:
    import gguf

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)  # llama.cpp's token types
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How a byte-level tokenizer splits text -> llama.cpp's name for it.
_SPLITS = {
    ("bytes",): "gpt-2",
    ("digits", "bytes"): "smollm",
    (_WORDS + r"\p{N}{1,3}" + _REST,): "llama-bpe",
    (_WORDS + r"\p{N}" + _REST,): "qwen2",
}


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp needs of a tokenizer; lists have one entry per row of the embedding."""

    model: str  # `gpt2`: byte-level BPE; `llama`: SentencePiece-like BPE with byte fallback
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    special: dict[str, int]  # bos, eos, unk, pad
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_template: str | None

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        for name, index in self.special.items():
            getattr(writer, f"add_{name}_token_id")(index)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        writer.add_add_space_prefix(self.add_space_prefix)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def vocabulary(folder: Path, rows: int, pre: str | None = None) -> Vocabulary:
    """Read the tokenizer of a checkpoint.

    Parameters
    ----------
    rows : rows of the embedding; ids that no token has become unused tokens
    pre : llama.cpp's name of the splitting rule, for tokenizers whose rule is not recognised

    Raises
    ------
    InputError : no tokenizer.json, or a splitting rule that is not recognised
    UnsupportedModelError : a kind of tokenizer that llama.cpp has no equal of
    """
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").exists():
        raise InputError("tokenizer", str(folder), "a folder with tokenizer.json", "GGUF files hold their tokenizer.")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    # Not the file: some families' tokenizer classes replace its splitting rule.
    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    model = plain["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else "unknown")
    if kind != "BPE":
        raise UnsupportedModelError(f"llama.cpp has no equal of a {kind} tokenizer: only BPE can be written to GGUF.")
    steps = _steps(plain.get("pre_tokenizer"))
    bytes_level = any(step.get("type") == "ByteLevel" for step in steps)
    if not bytes_level and not model.get("byte_fallback"):
        raise UnsupportedModelError("llama.cpp needs a BPE tokenizer that works on bytes or falls back to them.")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    tokens, types = _tokens(model, plain.get("added_tokens") or [], rows)
    special = {
        name: getattr(tokenizer, f"{name}_token_id")
        for name in ("bos", "eos", "unk", "pad")
        if getattr(tokenizer, f"{name}_token_id", None) is not None
    }
    sample = tokenizer("a").input_ids
    return Vocabulary(
        model="gpt2" if bytes_level else "llama",
        pre=(pre or _split_name(steps)) if bytes_level else "default",
        tokens=tokens,
        types=types,
        scores=None if bytes_level else _scores(tokens, merges),
        merges=merges if bytes_level else None,
        special=special,
        add_bos=bool(sample) and sample[0] == special.get("bos", -1),
        add_eos=len(sample) > 1 and sample[-1] == special.get("eos", -1),
        add_space_prefix=not bytes_level and _prepends(plain),
        chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
    )


def _steps(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    if not step:
        return []
    return [s for part in step["pretokenizers"] for s in _steps(part)] if step["type"] == "Sequence" else [step]


def _split_name(steps: list[dict[str, Any]]) -> str:
    rules: list[str] = []
    for step in steps:
        if step["type"] == "Split":
            rules.append(step["pattern"].get("Regex") or step["pattern"].get("String"))
        elif step["type"] == "Digits":
            rules.append("digits" if step.get("individual_digits") else "digit runs")
        elif step["type"] == "ByteLevel" and step.get("use_regex", True):
            rules.append("bytes")
    if (name := _SPLITS.get(tuple(rules))) is not None:
        return name
    raise InputError(
        "tokenizer", f"BPE with the splitting rule {rules}", "one of the rules of GPT-2, SmolLM, Llama 3 or Qwen 2",
        "llama.cpp knows such rules by name only: name an equal one with --pre-tokenizer (for instance llama-bpe) "
        "and run `drope verify`, which compares the tokens.",
    )  # fmt: skip


def _tokens(model: dict[str, Any], added: list[dict[str, Any]], rows: int) -> tuple[list[str], list[int]]:
    tokens = [f"[UNUSED{i}]" for i in range(rows)]
    types = [_UNUSED] * rows
    for text, i in model["vocab"].items():
        if i < rows:
            is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">") and model.get("byte_fallback")
            tokens[i], types[i] = text, _BYTE if is_byte else _NORMAL
    for token in added:
        if token["id"] < rows:
            tokens[token["id"]], types[token["id"]] = token["content"], _CONTROL if token["special"] else _USER
    if (unknown := model.get("unk_token")) in model["vocab"]:
        types[model["vocab"][unknown]] = _UNKNOWN
    return tokens, types


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Minus the rank of the first merge that makes a token: llama.cpp merges the highest score first."""
    rank: dict[str, int] = {}
    for i, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        rank.setdefault(left + right, i)
    lowest = float(-len(merges) - 1)
    return [float(-rank[token]) if token in rank else lowest for token in tokens]


def _prepends(plain: dict[str, Any]) -> bool:
    """Whether a space is put before the text, as SentencePiece does."""
    normalizer = plain.get("normalizer") or {}
    parts = normalizer.get("normalizers", [normalizer])
    if any(part.get("type") == "Prepend" for part in parts):
        return True
    metaspace = [s for s in _steps(plain.get("pre_tokenizer")) if s["type"] == "Metaspace"]
    return any(s.get("prepend_scheme", "always") != "never" for s in metaspace)
