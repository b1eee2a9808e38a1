from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drope.commands import typed


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch):
    def say(*words: str) -> str:
        monkeypatch.setattr(typed, "arguments", list(words))
        return typed.command("drope")

    return say


def test_flags_are_kept_and_folders_are_not(said, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    words = ("evaluate", str(tmp_path / "model"), "--to", "4x", "--out", "a/b/")
    assert said(*words) == "drope evaluate model --to 4x --out b"
    assert said("evaluate", "--config=/home/me/run.yaml") == "drope evaluate --config=run.yaml"
    assert said("compare", f"A={tmp_path}/model", "~/B") == "drope compare A=model B"


def test_mixtures_keep_their_weights(said) -> None:
    assert said("recalibrate", "--data", "/x/a.txt=0.5+/y/b.txt=0.5") == "drope recalibrate --data a.txt=0.5+b.txt=0.5"


def test_hub_ids_are_whole(said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said("evaluate", "org/Model-1.5B") == "drope evaluate org/Model-1.5B"
    assert said("compare", "A=org/model") == "drope compare A=org/model"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert said("evaluate", "org/model") == "drope evaluate model"


def test_words_with_spaces_are_quoted(said) -> None:
    assert said("extend", "bundled", "--notes", "two words") == "drope extend bundled --notes 'two words'"


def test_without_a_command_line(said) -> None:
    assert said() == "drope"


def test_results_say_the_command(drope: Callable[..., Any], tiny: str, tmp_path: Path) -> None:
    flags = ["--tasks", "single", "--trials", "1", "--lengths", "128", "--documents", "0", "--methods", "rope"]
    found = drope("evaluate", tiny, *flags, "--out", tmp_path / "kept")
    assert found["meta"]["command"].startswith(f"drope evaluate {Path(tiny).name} {' '.join(flags)} --out kept")
