"""Text that every Python installation already carries, so that nothing has to be downloaded.

`pydoc_data.topics` holds about 465 KB of English technical prose (the language reference behind `help()`), and the
standard library's own sources are 12 MB more. Both are deterministic for one Python version.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Split = Literal["train", "heldout", "all"]

# One topic in five is held out: enough prose for 8x haystacks without repeating, and never trained on.
_HELDOUT_EVERY = 5
_SKIPPED_DIRS = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "pydoc_data", "turtledemo"}


def prose(split: Split = "all") -> list[str]:
    """Documents of English prose, one per topic of `pydoc_data.topics`, in a fixed order.

    `"heldout"` is one topic in five. Topics quote one another at length, so `"train"` is the other topics without the
    paragraphs that stand in a held-out one.
    """
    from pydoc_data.topics import topics

    documents = list(dict.fromkeys(_clean(topics[name]) for name in sorted(topics)))  # several names share a text
    if split == "all":
        return documents
    heldout = documents[::_HELDOUT_EVERY]
    if split == "heldout":
        return heldout
    seen = {_plain(paragraph) for text in heldout for paragraph in text.split("\n\n")}
    kept = (
        "\n\n".join(p for p in text.split("\n\n") if _plain(p) not in seen)
        for i, text in enumerate(documents)
        if i % _HELDOUT_EVERY
    )
    return [text for text in kept if text.strip()]


def sources() -> Iterator[str]:
    """The standard library's Python sources (tests excluded), one document per file, sorted by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if _SKIPPED_DIRS.isdisjoint(path.relative_to(root).parts[:-1]):
            text = path.read_text(encoding="utf-8", errors="replace")
            if text.strip():
                yield text


def sentences(documents: list[str]) -> list[str]:
    """Split documents into whitespace-normalised sentences, in order."""
    return [s for text in documents for s in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if s]


def _clean(text: str) -> str:
    """Drop the reStructuredText underlines, which are runs of punctuation and no prose."""
    return re.sub(r"^[*=\-~^+|\s]{4,}$", "", text, flags=re.MULTILINE).strip()


def docstrings() -> list[str]:
    """The standard library's docstrings, one document per source file: prose about code, several times `prose()`."""
    import ast
    import warnings

    documents = []
    for text in sources():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old escapes in library sources are not our business
                tree = ast.parse(text)
        except SyntaxError:
            continue
        nodes = (n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef))
        parts = [doc for n in nodes if (doc := ast.get_docstring(n))]
        if parts:
            documents.append("\n\n".join(parts))
    return documents


def _plain(paragraph: str) -> str:
    """A paragraph without its layout: the same words quoted at another indentation are the same."""
    return " ".join(paragraph.split())
