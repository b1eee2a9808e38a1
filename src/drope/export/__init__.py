"""What leaves runs everywhere: folders for serving engines, and the proof that they compute what the model does."""

from __future__ import annotations

from drope.export.engines import ENGINES
from drope.export.verify import Parity, verify
from drope.export.write import export

__all__ = ["ENGINES", "Parity", "export", "verify"]
