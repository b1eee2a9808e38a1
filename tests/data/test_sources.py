from __future__ import annotations

import gzip
import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drope.data import stdlib
from drope.data.haystack import haystack
from drope.data.sources import EpisodeSource, FileSource, HubSource, Mixture, StdlibSource, open_source
from drope.errors import InputError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("first document", encoding="utf-8")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.md").write_text("# second", encoding="utf-8")
    (tmp_path / "c.jsonl").write_text('{"text": "third"}\n\n{"text": "fourth"}\n', encoding="utf-8")
    with gzip.open(tmp_path / "d.jsonl.gz", "wt", encoding="utf-8") as f:
        f.write(json.dumps({"text": "fifth"}) + "\n")
    pq.write_table(pa.table({"text": ["sixth", "seventh"], "n": [1, 2]}), tmp_path / "e.parquet")
    (tmp_path / "ignored.bin").write_bytes(b"\x00\xff")
    return tmp_path


def test_a_folder_gives_every_document_of_every_format(folder):
    documents = list(open_source(folder).documents())
    expected = ["first document", "# second", "third", "fourth", "fifth", "sixth", "seventh"]
    assert sorted(documents) == sorted(expected)
    assert documents == list(open_source(folder).documents())


@pytest.mark.parametrize("name", ["a.txt", "deep/b.md", "c.jsonl", "d.jsonl.gz", "e.parquet"])
def test_single_files(folder, name):
    assert list(open_source(folder / name).documents())


def test_identity_changes_with_the_file(folder):
    before = open_source(folder).identity()
    (folder / "a.txt").write_text("another document", encoding="utf-8")
    assert open_source(folder).identity() != before


def test_another_text_field(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"body": "hello"}\n', encoding="utf-8")
    assert list(open_source(path, text_field="body").documents()) == ["hello"]
    with pytest.raises(InputError, match=r"--text-field.*line 1 has: body"):
        list(open_source(path).documents())


def test_kinds():
    assert isinstance(open_source("stdlib"), StdlibSource)
    assert isinstance(open_source("episodes"), EpisodeSource)
    hub = open_source("org/name:config")
    assert isinstance(hub, HubSource)
    assert (hub.name, hub.config) == ("org/name", "config")
    mixture = open_source("episodes=3+stdlib:prose=1")
    assert isinstance(mixture, Mixture)
    assert [share for _, share in mixture.parts] == [0.75, 0.25]
    assert [share for _, share in open_source("episodes+stdlib").parts] == [0.5, 0.5]


def test_an_existing_path_wins_over_the_mixture_syntax(tmp_path):
    path = tmp_path / "a+b=1.txt"
    path.write_text("text", encoding="utf-8")
    assert isinstance(open_source(path), FileSource)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nonsense", "allowed: stdlib"),
        ("./missing.txt", "No such file"),
        ("data/missing.jsonl", "No such file"),
        ("episodes=0.85+stdlib", "a weight above 0 for every part"),
        ("episodes=-1+stdlib=2", "a weight above 0"),
        ("stdlib+stdlib", "different sources"),
        ("episodes=x+stdlib=y", "weights that are numbers"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(InputError, match=message):
        open_source(spec)


def test_bad_files(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="a folder with files ending in"):
        open_source(tmp_path / "empty")
    (tmp_path / "x.pdf").write_bytes(b"%PDF")
    with pytest.raises(InputError, match="a file ending in"):
        open_source(tmp_path / "x.pdf")
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"x\.txt.*UTF-8"):
        list(open_source(tmp_path / "x.txt").documents())
    (tmp_path / "x.jsonl").write_text('{"text": "fine"}\n{"text": \n', encoding="utf-8")
    with pytest.raises(InputError, match=r"x\.jsonl, line 2"):
        list(open_source(tmp_path / "x.jsonl").documents())
    (tmp_path / "x.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(InputError, match="readable parquet"):
        list(open_source(tmp_path / "x.parquet").documents())
    pq.write_table(pa.table({"n": [1]}), tmp_path / "y.parquet")
    with pytest.raises(InputError, match=r"a column of y\.parquet: n"):
        list(open_source(tmp_path / "y.parquet").documents())


def test_a_hub_dataset_out_of_reach_is_named():  # the tests run offline
    with pytest.raises(InputError, match="no-such-org/no-such-set"):
        list(open_source("no-such-org/no-such-set").documents())


def test_haystack_starts_with_heldout_prose_and_goes_on_without_repeats(monkeypatch):
    some = list(itertools.islice(stdlib.sources(), 20))  # parsing all docstrings takes seconds
    monkeypatch.setattr(stdlib, "sources", lambda: iter(some))
    heldout, everything = haystack("stdlib:heldout"), haystack()
    assert everything[: len(heldout)] == heldout
    assert len(everything) > 3 * len(heldout)
    assert len(set(everything)) == len(everything)


def test_haystack_of_files(tmp_path):
    (tmp_path / "essay.txt").write_text("One thing.\nTwo  things! One thing. Three?", encoding="utf-8")
    assert haystack(str(tmp_path / "essay.txt")) == ["One thing.", "Two things!", "Three?"]
    (tmp_path / "blank.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(InputError, match="at least one sentence"):
        haystack(str(tmp_path / "blank.txt"))
    with pytest.raises(InputError, match="one source of prose"):
        haystack("episodes")
