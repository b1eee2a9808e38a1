"""What comes along with weights and config."""

from __future__ import annotations

import shutil
from pathlib import Path


def copy_side_files(folder: Path, out: Path) -> None:
    """Tokenizer, generation config, licence and index of a checkpoint."""
    from drope.models.convert import side_files

    for file in side_files(folder):
        if file.name not in ("config.json", "drope.json", "README.md"):
            shutil.copyfile(file, out / file.name)
