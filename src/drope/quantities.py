"""Numbers as people write them: `16k` tokens of context, `5B` tokens of training, `8x` the trained length."""

from __future__ import annotations

import re

from drope.errors import InputError

_LENGTH = {"": 1, "k": 1024, "m": 1024**2}
_AMOUNT = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


def parse_count(text: str | int, field: str = "length") -> int:
    """A context length. `k` is 1024, as in the names of models: `16k` is 16384."""
    return _parse(text, field, _LENGTH, "a length such as 4096 or 16k")


def parse_tokens(text: str | int | float, field: str = "tokens") -> int:
    """An amount of training tokens, in decimal units: `5B` is 5,000,000,000; `500M`, `20k`, `1e6`."""
    return _parse(text, field, _AMOUNT, "an amount of tokens such as 500M, 5B or 1e9")


def parse_factor(text: str | float, field: str = "factor") -> float:
    """An extension factor, `8x` or `8`, of at least 1."""
    try:
        factor = float(str(text).strip().lower().removesuffix("x"))
    except ValueError:
        raise InputError(field, text, "a factor of at least 1, such as 8x") from None
    if not 1 <= factor < float("inf"):
        raise InputError(field, text, "a factor of at least 1, such as 8x")
    return factor


def parse_target(text: str | int, context: int, field: str = "--to") -> int:
    """A target length in tokens: `8x` of `context`, or a length such as `16k`."""
    if isinstance(text, str) and text.strip().lower().endswith("x"):
        return round(parse_factor(text, field) * context)
    return parse_count(text, field)


def format_count(n: int) -> str:
    """16384 -> `16k`, 1000 -> `1000`."""
    return f"{n // 1024}k" if n >= 1024 and n % 1024 == 0 else str(n)


def format_tokens(n: float) -> str:
    """5_000_000_000 -> `5B`, 31_500_000 -> `31.5M`."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:g}"


def _parse(text: str | int | float, field: str, units: dict[str, int], allowed: str) -> int:
    if isinstance(text, bool):
        raise InputError(field, text, allowed)
    match = re.fullmatch(r"\s*([0-9_]*\.?[0-9]+(?:e\+?[0-9]+)?)\s*([a-z]?)\s*", str(text).lower())
    if not match or match[2] not in units:
        raise InputError(field, text, allowed)
    value = float(match[1].replace("_", "")) * units[match[2]]
    if value < 1 or value != int(value):
        raise InputError(field, text, f"{allowed}, a whole number of at least 1")
    return int(value)
