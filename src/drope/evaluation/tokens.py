"""Text to token ids, with the special tokens that a tokenizer puts in front by itself and none of those behind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from drope.errors import InputError

if TYPE_CHECKING:
    import numpy as np


class Encoder:
    """Encodes prompts and documents alike: BOS only where the tokenizer adds it itself, never a closing EOS.

    Attributes
    ----------
    prefix : ids that the tokenizer puts before every text
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        plain = self.plain(["x"])[0]
        wrapped = tokenizer("x", verbose=False)["input_ids"]
        starts = [i for i in range(len(wrapped)) if wrapped[i : i + len(plain)] == plain]
        self.prefix: list[int] = list(wrapped[: starts[0]]) if starts else []

    def __call__(self, text: str) -> list[int]:
        return self.prefix + self.plain([text])[0]

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids without any special token, one list per text."""
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def windows(tokenizer, documents: Iterable[str], length: int, count: int) -> np.ndarray:
    """Disjoint windows of `documents` run together with an EOS between them: int64 (n <= count, length).

    Documents are concatenated, since few corpora hold single documents of 8x a context. Each window opens with the
    tokenizer's own prefix (BOS), if it has one.

    Raises
    ------
    InputError : the text does not fill one window
    """
    import numpy as np

    encoder = Encoder(tokenizer)
    body = length - len(encoder.prefix)
    between = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    stream: list[int] = []
    for text in documents:
        stream += encoder.plain([text])[0] + between
        if len(stream) >= body * count:
            break
    n = min(count, len(stream) // body)
    if n < 1:
        raise InputError(
            "text",
            f"{len(stream)} tokens",
            f"at least {length} tokens",
            "Give more held-out text, or a shorter length.",
        )
    rows = np.asarray(stream[: n * body], dtype=np.int64).reshape(n, body)
    return np.concatenate([np.tile(np.asarray(encoder.prefix, dtype=np.int64), (n, 1)), rows], axis=1)
