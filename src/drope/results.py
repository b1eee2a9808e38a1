"""The one result schema: what every measurement writes and every report reads. Documented in `docs/results.md`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from drope.errors import InputError
from drope.files import write_text

SCHEMA = 1


@dataclass
class Measurement:
    """One number with its 95% interval.

    task: `multi_query`, `single`, `perplexity`, ...; method: name in the catalogue; length: tokens;
    metric: `success` (share of trials, 0 to 1), `loss` (nats per token), `perplexity`; n: trials or documents;
    details: whatever else identifies the number, such as depth (0 to 1), beta, position (first token), settings.
    """

    task: str
    method: str
    length: int
    metric: str
    value: float
    low: float
    high: float
    n: int
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Results:
    """Everything that one run measured.

    recovery: rows {run, tokens, loss, ...} along recalibration; temperature: rows {length, beta, loss, ...};
    meta: command, seed, versions, hardware (see `describe_run`), and free notes.
    """

    model: str
    context: int
    measurements: list[Measurement] = field(default_factory=list)
    recovery: list[dict[str, Any]] = field(default_factory=list)
    temperature: list[dict[str, Any]] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """Write as JSON, atomically; each row of a list on a line of its own."""
        write_text(path, _by_line({"schema": SCHEMA, **asdict(self)}) + "\n")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Read a file that `save` wrote.

        Raises
        ------
        InputError : the file is missing, is no JSON, or has another schema
        """
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError("results", str(path), "a results.json written by drope", str(error)) from error
        if not isinstance(raw, dict) or raw.pop("schema", None) != SCHEMA:
            raise InputError("results", str(path), f"a results.json of schema {SCHEMA}")
        known = {f.name for f in fields(cls)}
        if not {"model", "context"} <= set(raw) <= known:
            raise InputError("results", str(path), f"the fields {', '.join(sorted(known))}")
        try:
            raw["measurements"] = [Measurement(**m) for m in raw.get("measurements", [])]
        except TypeError as error:
            raise InputError("results", str(path), "measurements of the documented fields", str(error)) from error
        return cls(**raw)

    def select(self, **wanted: Any) -> list[Measurement]:
        """The measurements whose fields equal `wanted`: `select(task="single", method="drope")`."""
        return [m for m in self.measurements if all(getattr(m, k) == v for k, v in wanted.items())]


def _by_line(value: Any, depth: int = 0) -> str:
    """JSON with fields on lines of their own down to two levels, as `meta` has, and one line a row of lists there.

    NaN and infinities are refused, so that every reader can read it.
    """
    margin = "  " * depth
    if isinstance(value, dict) and value and depth < 2:
        parts = [f"{json.dumps(str(k), ensure_ascii=False)}: {_by_line(v, depth + 1)}" for k, v in value.items()]
        opening, closing = "{", "}"
    elif isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
        parts = [_by_line(item, 2) for item in value]
        opening, closing = "[", "]"
    else:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    return f"{opening}\n" + ",\n".join(f"{margin}  {part}" for part in parts) + f"\n{margin}{closing}"


def wilson(successes: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's 95% score interval of a share (Wilson 1927); (0, 1) for no trials."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean, 95% interval from Student's t, and standard error. One value alone has the interval of its own value."""
    n = len(values)
    if n == 0:
        raise InputError("values", "none", "at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return mean, mean, mean, 0.0
    from scipy.stats import t

    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = float(t.ppf(0.975, n - 1)) * error
    return mean, mean - half, mean + half, error


def describe_run(command: str, seed: int | None = None) -> dict[str, Any]:
    """What made a result: command, commit, seed, versions and hardware. Never a path or a name of the machine."""
    import os
    import platform
    import subprocess
    from datetime import UTC, datetime
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    try:
        commit = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
            capture_output=True, text=True, timeout=5,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        commit = ""
    hardware: dict[str, Any] = {"cpu": platform.machine(), "cores": os.cpu_count()}
    import torch

    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    names = ("drope-llm", "torch", "transformers", "accelerate", "datasets", "tokenizers")
    return {
        "command": command,
        "commit": commit or None,
        "seed": seed,
        "versions": {"python": platform.python_version(), **{n: v for n in names if (v := installed(n))}},
        "hardware": hardware,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
