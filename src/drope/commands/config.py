"""Settings from a YAML file, under those of the command line."""

from __future__ import annotations

import difflib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drope.errors import InputError

if TYPE_CHECKING:
    from cyclopts import App
    from cyclopts.argument import ArgumentCollection

_ONLY_FLAGS = {"config", "json", "verbose"}  # how to run, not what to run


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings in `path`, names with hyphens.

    Raises
    ------
    InputError : the file is missing, is no YAML, or holds something else than settings
    """
    import yaml

    allowed = "a YAML file of settings, such as `tokens: 5B`"
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "It is no text."
        raise InputError("--config", str(path), allowed, f"{reason}.".replace("..", ".")) from error
    except yaml.YAMLError as error:
        raise InputError("--config", str(path), allowed, " ".join(str(error).split())) from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise InputError("--config", str(path), allowed, f"The file holds a {type(raw).__name__}.")
    return {str(key).replace("_", "-"): value for key, value in raw.items()}


def from_yaml(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill in what the command line left open from the file that `--config` names (a hook of cyclopts).

    Raises
    ------
    InputError : the file has a key that this subcommand does not know; the nearest that it does is named
    """
    path = next((a.tokens[-1].value for a in arguments if "--config" in a.names and a.tokens), None)
    if path is None:
        return
    settings = read_yaml(path)
    known = sorted(_known(arguments) - _ONLY_FLAGS)
    for key, value in settings.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else ""
            raise InputError(f"a key in {path}", key, ", ".join(known), hint)
        if isinstance(value, dict):
            settings[key] = [f"{name}={_plain(item)}" for name, item in value.items()]

    from cyclopts.config import Dict

    Dict(settings, source=str(path), use_commands_as_keys=False)(app, commands, arguments)


def parse_settings(pairs: list[str] | tuple[str, ...], field: str = "--set") -> dict[str, Any]:
    """`["weight_decay=0.1", "bf16=true"]` as a mapping; values are read as YAML."""
    import yaml

    result: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise InputError(field, pair, "key=value, such as weight_decay=0.1")
        parsed = yaml.safe_load(value)
        if isinstance(parsed, str):  # YAML 1.1 takes 1e-4 for text
            with suppress(ValueError):
                parsed = float(parsed)
        result[name.strip().replace("-", "_")] = parsed
    return result


def _known(arguments: ArgumentCollection) -> set[str]:
    """The names under which a file may set something: those of the flags, without the forms that negate."""
    return {name.removeprefix("--") for a in arguments if a.parse for name in a.parameter.name or () if _is_key(name)}


def _is_key(name: str) -> bool:
    return name.startswith("--") and "." not in name


def _plain(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().removesuffix("...").strip()
