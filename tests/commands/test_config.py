"""Settings from YAML: read, checked, and under the command line's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from cyclopts import App, Parameter

from drope.commands.config import from_yaml, parse_settings, read_yaml
from drope.commands.options import NO_GENERAL, Flag, GeneralFlags, Length, Several, Tokens
from drope.errors import InputError


@dataclass(frozen=True)
class Options:
    tokens: Tokens = 1
    context: Length | None = None
    learning_rate: float = 0.5
    lengths: Annotated[tuple[str, ...], Several] = ("1x",)
    set: Annotated[tuple[str, ...], Several] = ()
    fast: Flag = False


def parse(*argv: str) -> tuple[str, Options]:
    app = App(config=from_yaml, exit_on_error=False, print_error=False, result_action="return_value")

    @app.default
    def command(
        model: str, *, options: Annotated[Options, Parameter(name="*")] = Options(), general: GeneralFlags = NO_GENERAL
    ) -> tuple[str, Options]:
        return model, options

    result: Any = app(list(argv))
    return result


@pytest.fixture
def file(tmp_path: Path):
    def write(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_numbers_as_people_write_them() -> None:
    _, options = parse("m", "--tokens", "5B", "--context", "16k", "--lengths", "1x", "2x", "4k")
    assert (options.tokens, options.context, options.lengths) == (5_000_000_000, 16384, ("1x", "2x", "4k"))


def test_a_file_fills_in_and_flags_win(file) -> None:
    path = file("model: m\ntokens: 2M\ncontext: 2k\nlearning_rate: 3e-4\nlengths: [1x, 8x]\nfast: true\n")
    assert parse("--config", path) == ("m", Options(2_000_000, 2048, 3e-4, ("1x", "8x"), (), True))
    model, options = parse("other", "--config", path, "--tokens", "7", "--lengths", "2x")
    assert (model, options.tokens, options.lengths, options.context) == ("other", 7, ("2x",), 2048)


def test_names_with_hyphens_and_underscores_are_one(file) -> None:
    assert parse("m", "--config", file("learning-rate: 1e-3\n"))[1].learning_rate == 1e-3


def test_null_leaves_the_default(file) -> None:
    assert parse("m", "--config", file("context: null\n"))[1].context is None


def test_a_mapping_becomes_key_value_pairs(file) -> None:
    _, options = parse("m", "--config", file("set:\n  weight_decay: 0.1\n  bf16: true\n  optim: adamw_torch\n"))
    assert parse_settings(options.set) == {"weight_decay": 0.1, "bf16": True, "optim": "adamw_torch"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("token: 5B\n", ["'token'", "Did you mean `tokens`?", "run.yaml"]),
        ("verbose: true\n", ["'verbose'"]),
        ("tokens: many\n", ["tokens", "'many'", "500M"]),
        ("- 1\n", ["--config", "a list"]),
        ("a: [\n", ["--config", "run.yaml"]),
    ],
)
def test_a_bad_file_is_refused_by_name(file, text: str, named: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse("m", "--config", file(text))
    for word in named:
        assert word in str(caught.value)


def test_a_missing_or_binary_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="no text"):
        read_yaml(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("a=1", 1),
        ("a=1e-4", 1e-4),
        ("a=true", True),
        ("a=cosine", "cosine"),
        ("a=", None),
        ("a={x: 1}", {"x": 1}),
        ("a=b=c", "b=c"),
    ],
)
def test_settings(pair: str, value: object) -> None:
    assert parse_settings([pair]) == {"a": value}


@pytest.mark.parametrize("pair", ["a", "=1", " =2"])
def test_settings_without_a_name_or_value(pair: str) -> None:
    with pytest.raises(InputError, match="key=value"):
        parse_settings([pair])
