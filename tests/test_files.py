import errno
import json

import pytest

from drope.errors import DropeError, InputError
from drope.files import fingerprint, new_folder, write_json, write_text


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "a" / "out"
    with new_folder(target) as folder:
        (folder / "x").write_text("1")
        assert not target.exists()
    assert (target / "x").read_text() == "1"
    assert [p.name for p in target.parent.iterdir()] == ["out"]


def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path):
    target = tmp_path / "out"
    with new_folder(target) as folder:
        (folder / "old").write_text("kept")

    def fail_half_way():
        with new_folder(target, overwrite=True) as folder:
            (folder / "new").write_text("lost")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    assert [p.name for p in target.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_existing_folder_is_refused_unless_told(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("")
    with pytest.raises(InputError, match="--overwrite"), new_folder(target):
        pass
    with new_folder(target, overwrite=True) as folder:
        (folder / "new").write_text("")
    assert [p.name for p in target.iterdir()] == ["new"]


def test_a_full_disk_is_said_plainly(tmp_path):
    with pytest.raises(DropeError, match="disk is full"), new_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "no space")
    assert not any(tmp_path.iterdir())


def test_text_is_replaced_in_one_step(tmp_path):
    write_text(tmp_path / "f", "one")
    write_text(tmp_path / "f", "two")
    assert (tmp_path / "f").read_text() == "two"
    assert len(list(tmp_path.iterdir())) == 1


def test_json_is_strict(tmp_path):
    write_json(tmp_path / "f.json", {"β": 1.5})
    assert json.loads((tmp_path / "f.json").read_text(encoding="utf-8")) == {"β": 1.5}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "f.json", {"x": float("nan")})
    assert json.loads((tmp_path / "f.json").read_text(encoding="utf-8")) == {"β": 1.5}


def test_fingerprints_see_values_and_not_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
