from __future__ import annotations

import json
import random

import numpy as np
import pytest

from drope.data import streaming
from drope.data.packing import Tokenising, pack
from drope.data.sources import open_source
from drope.data.streaming import LastShard, stream
from drope.errors import InputError

CONTEXT = 16


@pytest.fixture(scope="module")
def words():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<eos>": 0, "<bos>": 1, **{str(i): i + 2 for i in range(1000)}}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", bos_token="<bos>")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Seven shards; document d of shard s repeats the number 100 s + d."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    for s in range(7):
        rows = [{"text": " ".join([str(100 * s + d)] * rng.randrange(0, 60))} for d in range(80)]
        (folder / f"{s}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def blocks_of(corpus, words, notes, n=400, **settings):
    tokenising = Tokenising(words, **settings)
    return stream(open_source(str(corpus)), tokenising, CONTEXT, tokens=n * CONTEXT, notes=notes, lanes=3)


def test_blocks_are_the_shards_packed_in_order(corpus, words, tmp_path):
    blocks = blocks_of(corpus, words, tmp_path)
    assert len(blocks) == 400
    lane = np.concatenate([blocks[i]["input_ids"] for i in range(1, 100, 3)])  # shards 1 and 4
    expected = []
    for s in (1, 4):
        for line in (corpus / f"{s}.jsonl").read_text().splitlines():
            if text := json.loads(line)["text"]:
                expected += [*(int(w) + 2 for w in text.split()), 0]
    assert lane.tolist() == expected[: len(lane)]
    assert blocks[0]["trained"].all()


def test_any_position_is_reached_with_and_without_notes(corpus, words, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "_NOTE_EVERY", 8)
    monkeypatch.setattr(streaming, "_DOCUMENTS", 4)
    whole = [row["input_ids"].tolist() for row in map(blocks_of(corpus, words, tmp_path).__getitem__, range(400))]
    assert any(tmp_path.rglob("lane-0.*.jsonl"))
    for path in tmp_path.rglob("*.jsonl"):  # a kill cut the last line short
        path.write_text(path.read_text() + '{"block": 9', encoding="utf-8")
    resumed, fresh = blocks_of(corpus, words, tmp_path), blocks_of(corpus, words, tmp_path / "fresh")
    for i in (250, 251, 252, 3, 399, 398):
        assert resumed[i]["input_ids"].tolist() == whole[i]
        assert fresh[i]["input_ids"].tolist() == whole[i]


def test_going_on_reads_no_document_again(corpus, words, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "_NOTE_EVERY", 8)
    monkeypatch.setattr(streaming, "_DOCUMENTS", 4)
    before = blocks_of(corpus, words, tmp_path)
    for i in range(0, 300, 3):
        before[i]
    seen: list[str] = []
    original = Tokenising.batches

    def batches(self, texts):
        seen.extend(texts)
        return original(self, texts)

    monkeypatch.setattr(Tokenising, "batches", batches)
    blocks_of(corpus, words, tmp_path)[297]
    assert 0 < len(seen) < 40  # of 160 in this lane


def test_shards_begin_again_with_a_warning(corpus, words, tmp_path, caplog):
    blocks = blocks_of(corpus, words, tmp_path, n=2000)
    first, again = blocks[0]["input_ids"], None
    for i in range(0, 1500, 3):
        again = blocks[i]["input_ids"]
    assert "begins again" in caplog.text
    assert again is not None
    assert len(again) == len(first)


def test_the_last_shard_is_held_out(corpus, words, tmp_path):
    blocks = blocks_of(corpus, words, tmp_path)
    trained = {int(t) for i in range(400) for t in blocks[i]["input_ids"]}
    held = pack(LastShard(open_source(str(corpus))), words, CONTEXT, tokens=20 * CONTEXT, cache_dir=tmp_path)
    held_out = {int(t) for row in held.dataset for t in row["input_ids"]}
    assert held_out - {0}
    assert not trained & held_out - {0}


def test_fingerprints_change_with_what_decides_the_blocks(corpus, words, tmp_path):
    same = {blocks_of(corpus, words, tmp_path / str(i)).fingerprint for i in range(2)}
    assert len(same) == 1
    assert blocks_of(corpus, words, tmp_path, bos=True).fingerprint not in same


def test_bos_begins_each_document(corpus, words, tmp_path):
    def ids(**settings):
        blocks = pack(str(corpus), words, CONTEXT, tokens=50 * CONTEXT, cache_dir=tmp_path, **settings)
        return np.concatenate([row["input_ids"] for row in blocks.dataset])

    plain, with_bos = ids(), ids(bos=True)
    assert 1 not in plain
    after = with_bos[1:][with_bos[:-1] == 0]
    assert (after == 1).mean() > 0.9  # blocks are shuffled: what follows the last of one is not its next


def test_bad_input(corpus, words, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.jsonl").write_text('{"text": "1 2 3"}', encoding="utf-8")
    for spec, match in ((tmp_path / "one", "at least two shards"), ("stdlib", "a hub dataset, or a folder")):
        with pytest.raises(InputError, match=match):
            stream(open_source(str(spec)), Tokenising(words), CONTEXT, tokens=160, notes=tmp_path)
    nameless = type(words)(tokenizer_object=words.backend_tokenizer, eos_token="<eos>")
    with pytest.raises(InputError, match="has no BOS"):
        Tokenising(nameless, bos=True)
