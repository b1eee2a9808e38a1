"""The token ids that analyses run on: plain text, and needle probes whose every token is known by its place."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from drope.data import needles as N
from drope.data.sources import open_source
from drope.errors import InputError


def text_ids(tokenizer: Any, text: str | Sequence[str], length: int, count: int = 1) -> torch.Tensor:
    """`count` disjoint windows of text, int64 (count, length): documents run together with an EOS between them.

    Parameters
    ----------
    text : documents, or the spec of a source (`stdlib:heldout`, a file); its held-out part where it has one

    Raises
    ------
    InputError : the text is too short
    """
    ids: list[int] = []
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    for document in _documents(text):
        ids += _encode(tokenizer, document) + end
        if len(ids) >= length * count:
            return torch.tensor(ids[: length * count]).view(count, length)
    raise InputError("--text", f"{len(ids)} tokens", f"at least {length * count} tokens", "Give a longer text.")


@dataclass(frozen=True)
class Probe:
    """A needle in a haystack, its question and its answer, teacher forced.

    ids : (1, T), the answer without its last token included; depth : share of the haystack before the needle
    needle : places of the whole needle sentence, [first, last)
    copied, asking : places of the value's tokens in the needle, and the places that predict them at the end
    answer : the value's ids, which `asking` should predict
    """

    ids: torch.Tensor
    depth: float
    needle: tuple[int, int]
    copied: list[int]
    asking: list[int]
    answer: list[int]

    @property
    def distance(self) -> int:
        """Tokens from the last of the question to the value's first."""
        return self.asking[0] - self.copied[0]


def probes(
    tokenizer: Any, text: str | Sequence[str], length: int, depths: Sequence[float], *, seed: int = 0
) -> list[Probe]:
    """One needle probe of exactly `length` tokens (question and answer included) for each depth from 0 to 1.

    Raises
    ------
    InputError : needle and question do not fit, or the text is too short
    """
    rng = random.Random(f"analysis/{seed}")
    hay = text_ids(tokenizer, text, length + 256)[0].tolist() if length > 0 else []
    out = []
    for depth in depths:
        key, value = N.random_key(rng), N.random_number(rng)
        before, after = N.NEEDLE.format(key=key, value="\0").split(" \0")
        pieces = [_encode(tokenizer, f" {before}"), _encode(tokenizer, f" {value}"), _encode(tokenizer, after)]
        question = _encode(tokenizer, f"\n{N.ASK_KEY.format(keys=key)}")
        answer = pieces[1]
        prefix = _prefix(tokenizer)
        room = length - len(prefix) - sum(map(len, pieces)) - len(question) - len(answer) + 1
        if room < 1:
            raise InputError(
                "--length",
                length,
                f"at least {length - room + 1} tokens for a needle probe",
                "Choose a longer one, or other --parts than heads and crop.",
            )
        at, start = round(depth * room), rng.randrange(0, len(hay) - room + 1)
        body = hay[start : start + room]
        first = len(prefix) + at
        ids = [*prefix, *body[:at], *(token for piece in pieces for token in piece), *body[at:], *question]
        copied = list(range(first + len(pieces[0]), first + len(pieces[0]) + len(answer)))
        asking = list(range(len(ids) - 1, len(ids) - 1 + len(answer)))
        ids += answer[:-1]
        needle = (first, first + sum(map(len, pieces)))
        out.append(Probe(torch.tensor(ids)[None], float(depth), needle, copied, asking, answer))
    return out


def _documents(text: str | Sequence[str]) -> Sequence[str]:
    if not isinstance(text, str):
        return text
    source = open_source(text)
    heldout = source.heldout_documents()
    return list(source.documents()) if heldout is None else heldout


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer([text], add_special_tokens=False, verbose=False)["input_ids"][0]


def _prefix(tokenizer: Any) -> list[int]:
    """The special tokens that a tokenizer puts before every text by itself."""
    plain, wrapped = _encode(tokenizer, "x"), tokenizer("x", verbose=False)["input_ids"]
    starts = [i for i in range(len(wrapped)) if wrapped[i : i + len(plain)] == plain]
    return list(wrapped[: starts[0]]) if starts else []
