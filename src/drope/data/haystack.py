"""Sentences to hide needles in."""

from __future__ import annotations

from drope.data import stdlib
from drope.data.sources import Mixture, open_source
from drope.errors import InputError

_CHARACTERS = 20_000_000  # enough for a haystack of several million tokens; hub datasets are read no further


def haystack(spec: str = "stdlib", *, text_field: str = "text") -> list[str]:
    """Whitespace-normalised sentences in reading order, each of them once.

    Parameters
    ----------
    spec : `stdlib` is the held-out prose of the language reference (about 25 thousand tokens), then, for longer
        haystacks, the rest of its prose and the docstrings, which training on `stdlib` does see; `stdlib:heldout` is
        the first part alone. Or a text file, a folder, or a hub dataset (`hub:org/name`, its first 20M characters).

    Raises
    ------
    InputError : no such source, or a source without sentences
    """
    if spec == "stdlib":
        documents = stdlib.prose("heldout") + stdlib.prose("train") + stdlib.docstrings()
    else:
        source = open_source(spec, text_field=text_field)
        if isinstance(source, Mixture) or spec == "episodes":
            raise InputError("--haystack", spec, "one source of prose: stdlib, a file, a folder, or hub:org/name")
        documents, characters = [], 0
        for text in source.documents():
            documents.append(text)
            characters += len(text)
            if characters > _CHARACTERS:
                break
    found = list(dict.fromkeys(stdlib.sentences(documents)))
    if not found:
        raise InputError("--haystack", spec, "a source with at least one sentence")
    return found
