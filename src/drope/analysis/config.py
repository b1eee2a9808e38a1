"""What an analysis looks at, and on how much text."""

from __future__ import annotations

from dataclasses import dataclass

from drope.errors import InputError

PARTS = ("frequencies", "theory", "initial", "heads", "crop", "spread", "changes", "entropy")
NO_WEIGHTS = ("frequencies", "theory", "initial")  # from the config alone


@dataclass(frozen=True)
class AnalysisConfig:
    """Settings of `analyze`.

    Parameters
    ----------
    parts : which figures, of PARTS
    length : tokens of the text that attention is watched on, within the trained context
    beyond : tokens of the text for what happens beyond it (`crop`, `entropy`); 0 leaves that out
    initial_length : tokens for gradients at initialisation
    factor : extension factor s of PI, NTK and YaRN
    offsets : largest offset among the patterns by which a head counts as positional
    depths : of the needle probes, 0 to 1
    text : spec of a source, its held-out part where it has one
    """

    parts: tuple[str, ...] = PARTS
    length: int = 2048
    beyond: int = 0
    initial_length: int = 256
    factor: float = 2.0
    offsets: int = 8
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    text: str = "stdlib:heldout"
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [p for p in self.parts if p not in PARTS]
        if unknown or not self.parts:
            raise InputError("--parts", " ".join(unknown) or "none", ", ".join(PARTS))
        for name, least in (("length", 16), ("initial_length", 8)):
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')}", getattr(self, name), f"at least {least} tokens")
        if not 1 < self.factor < float("inf"):
            raise InputError("--factor", self.factor, "a finite number above 1, such as 2")
        if self.offsets < 1:
            raise InputError("--offsets", self.offsets, "at least 1: the previous token")
        if not self.depths or any(not 0 <= d <= 1 for d in self.depths):
            raise InputError("--depths", self.depths, "numbers from 0 (start) to 1 (end)")

    @property
    def needs_weights(self) -> bool:
        return any(part not in NO_WEIGHTS for part in self.parts)
