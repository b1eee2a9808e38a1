from __future__ import annotations

import itertools

import numpy as np
import pytest

from drope.data import packing, stdlib
from drope.data.episodes import NEEDLE, Episodes
from drope.data.packing import pack
from drope.data.sources import EpisodeSource, FileSource
from drope.errors import InputError


def rows(blocks):
    return [tuple(row["input_ids"].tolist()) for row in blocks.dataset]


@pytest.fixture
def corpus(tmp_path):
    """Twelve documents of numbered words: every stretch of text is found once."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02}.txt").write_text(" ".join(f"w{i}x{j}" for j in range(200)), encoding="utf-8")
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_blocks_are_the_documents_joined_by_eos(corpus, cache, tokenizer):
    both = [pack(corpus, tokenizer, 64, cache_dir=cache, heldout=h) for h in (True, False)]
    source = both[0] and packing.open_source(corpus)
    stream: list[int] = []
    for text in source.documents():
        stream += [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    expected = [tuple(stream[i : i + 64]) for i in range(0, len(stream) - 63, 64)]
    found = rows(both[0]) + rows(both[1])
    assert sorted(found) == sorted(expected)
    assert sum(row.count(tokenizer.eos_token_id) for row in found) in (11, 12)
    assert set(rows(both[0])).isdisjoint(rows(both[1]))
    assert len(both[0]) == len(expected) // 50 or len(both[0]) == 1


def test_the_order_is_fixed_by_the_seed(corpus, cache, tokenizer):
    a, b, c = (pack(corpus, tokenizer, 64, cache_dir=cache, seed=s) for s in (0, 0, 1))
    assert rows(a) == rows(b)
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert rows(a) != rows(c)
    assert sorted(rows(a)) == sorted(rows(c))


def test_more_tokens_than_there_are_repeat_in_new_orders(corpus, cache, tokenizer, caplog):
    once = pack(corpus, tokenizer, 64, cache_dir=cache)
    n = len(once)
    twice = pack(corpus, tokenizer, 64, tokens=2 * n * 64, cache_dir=cache)
    assert f"{2 * n * 64:,} tokens" in caplog.text
    assert f"holds {n * 64:,}: each block is seen 2.0 times" in caplog.text
    first, second = rows(twice)[:n], rows(twice)[n:]
    assert sorted(first) == sorted(second) == sorted(rows(once))
    assert first != second
    assert twice.epochs == 2
    assert twice.tokens == 2 * n * 64


def test_a_cache_is_taken_once_made_and_left_whole(corpus, cache, tokenizer, monkeypatch):
    fresh = rows(pack(corpus, tokenizer, 64, cache_dir=cache))
    monkeypatch.setattr(packing.Tokenising, "batches", lambda *_: pytest.fail("tokenised again"))
    assert rows(pack(corpus, tokenizer, 64, cache_dir=cache)) == fresh
    assert {p.name for p in (cache / "blocks").glob("*/*")} == {"blocks.arrow", "blocks.json"}


def test_a_changed_file_is_packed_anew(corpus, cache, tokenizer):
    before = pack(corpus, tokenizer, 64, cache_dir=cache)
    (corpus / "00.txt").write_text("now quite different " * 100, encoding="utf-8")
    assert pack(corpus, tokenizer, 64, cache_dir=cache).fingerprint != before.fingerprint


def test_an_interrupted_packing_leaves_nothing(corpus, cache, tokenizer):
    (corpus / "zz.jsonl").write_text("not json", encoding="utf-8")
    with pytest.raises(InputError, match=r"zz\.jsonl"):
        pack(corpus, tokenizer, 64, cache_dir=cache)
    assert not list((cache / "blocks").iterdir())


def test_large_texts_are_read_only_as_far_as_needed(corpus, cache, tokenizer, monkeypatch):
    monkeypatch.setattr(FileSource, "size", lambda _: None)
    monkeypatch.setattr(packing, "_HELDOUT_BLOCKS", 4)
    train = pack(corpus, tokenizer, 16, tokens=20 * 16, cache_dir=cache)
    heldout = pack(corpus, tokenizer, 16, cache_dir=cache, heldout=True)
    assert (len(train), len(heldout)) == (20, 4)
    everything = pack(corpus, tokenizer, 16, cache_dir=cache)
    assert len(everything) > 100
    assert set(rows(heldout)).isdisjoint(rows(everything))
    assert set(rows(train)) <= set(rows(everything))


def test_long_documents_are_cut_at_lines_without_eos(monkeypatch):
    monkeypatch.setattr(packing, "_PIECE", 10)
    text = "one\ntwo\nthree four five six\n"
    pieces = list(packing._pieces([text, "  ", "next"]))
    assert "".join(t for t, _ in pieces[:-1]) == text.rstrip()
    assert [ends for _, ends in pieces] == [False] * (len(pieces) - 2) + [True, True]
    assert pieces[0] == ("one\ntwo\n", False)


def test_episodes_are_generated_once_and_are_the_generator_s(cache, tokenizer, monkeypatch):
    monkeypatch.setattr(stdlib, "sources", lambda: iter(()))  # parsing all docstrings takes seconds
    train = pack("episodes", tokenizer, 512, tokens=5 * 512, cache_dir=cache, seed=3)
    stream = Episodes(tokenizer, EpisodeSource().sentences(), 512).blocks(3)
    assert rows(train) == [tuple(next(stream).tolist()) for _ in range(5)]
    heldout = pack("episodes", tokenizer, 512, tokens=3 * 512, cache_dir=cache, heldout=True, seed=3)
    assert len(heldout) == 3
    kinds = [
        k for _, k in itertools.islice(Episodes(tokenizer, EpisodeSource().sentences(), 512).annotated_blocks(3), 5)
    ]
    trained = [row["trained"].numpy() for row in train.dataset]
    assert all(np.array_equal(t, k != NEEDLE) for t, k in zip(trained, kinds, strict=True))
    assert 0.1 < np.mean(trained) < 0.9
    assert set(rows(heldout)).isdisjoint(rows(train))
    with pytest.raises(InputError, match="an amount"):
        pack("episodes", tokenizer, 512, cache_dir=cache)
    with pytest.raises(InputError, match=r"context is 64.*`episodes`"):  # the generator would search for ever
        pack("episodes", tokenizer, 64, tokens=5 * 512, cache_dir=cache)


def test_mixtures_keep_their_shares_and_shuffle(corpus, cache, tokenizer, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("zzz " * 4000, encoding="utf-8")
    mixed = pack(f"{corpus}=0.75+{other}=0.25", tokenizer, 32, tokens=40 * 32, cache_dir=cache)
    zzz = ["z" in tokenizer.decode(row["input_ids"]) for row in mixed.dataset]
    assert sum(zzz) == 10
    assert zzz != sorted(zzz)
    assert all(row["trained"].all() for row in mixed.dataset)  # of plain text, every token
    heldout = pack(f"{corpus}=0.75+{other}=0.25", tokenizer, 32, cache_dir=cache, heldout=True)
    assert set(rows(heldout)) - set(rows(mixed))


@pytest.mark.parametrize("total", [1, 7, 100, 1953])
def test_shares_add_up(total):
    counts = packing._shares([0.85, 0.1, 0.05], total)
    assert sum(counts) == total
    assert np.abs(np.array(counts) - np.array([0.85, 0.1, 0.05]) * total).max() < 1


def test_bad_input(cache, tokenizer, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("too short", encoding="utf-8")
    with pytest.raises(InputError, match="at least one block of 64 tokens"):
        pack(short, tokenizer, 64, cache_dir=cache)
    with pytest.raises(InputError, match="at least one block of 64 tokens"):
        pack("stdlib:prose", tokenizer, 64, tokens=63, cache_dir=cache)

    class NoEnd:
        eos_token_id = None
        name_or_path = "endless"

    with pytest.raises(InputError, match=r"tokenizer is 'endless'.*EOS"):
        pack("stdlib:prose", NoEnd(), 64, cache_dir=cache)


def test_one_block_trains_and_holds_nothing_out(cache, tokenizer, tmp_path):
    text = tmp_path / "one.txt"
    text.write_text("abc " * 30, encoding="utf-8")
    n = len(tokenizer("abc " * 30)["input_ids"])
    assert len(pack(text, tokenizer, n - 2, cache_dir=cache)) == 1
    with pytest.raises(InputError, match="one of them to hold out"):
        pack(text, tokenizer, n - 2, cache_dir=cache, heldout=True)
