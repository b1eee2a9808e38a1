"""`drope convert`: a position-free checkpoint without training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from drope.commands.options import General, GeneralFlags, Loading, LoadingFlags

app = App(
    name="convert",
    help_format="plaintext",
    help_epilogue="""Examples:

  drope convert org/model --to 8x --out out/nope
  drope convert ./llama --to 128k --qk-norm --data text/ --out out/nope-qknorm""",
)


@dataclass(frozen=True)
class ConvertOptions:
    """What to write.

    Parameters
    ----------
    to
        Context of the new checkpoint, such as 32k or 8x.
    out
        Folder for the new checkpoint.
    qk_norm
        Add per-head query and key normalisation (Llama-shaped models become Qwen3).
    qk_norm_init
        Gains of that normalisation: fitted on a few batches of --data, or ones as in the paper.
    data
        Text to fit the gains on: stdlib, a file, a folder or a hub dataset.
    overwrite
        Replace the folder if it exists.
    """

    to: str
    out: Path
    qk_norm: Annotated[bool, Parameter(negative="")] = False
    qk_norm_init: Literal["fitted", "ones"] = "fitted"
    data: str = "stdlib"
    overwrite: Annotated[bool, Parameter(negative="")] = False


@app.default
def convert(
    model: str,
    options: Annotated[ConvertOptions, Parameter(name="*")],
    loading: LoadingFlags = Loading(),
    general: GeneralFlags = General(),
) -> None:
    """Drop.

    Parameters
    ----------
    model
        Hub id, folder, GGUF file, or bundled.
    """
    print(model, options, loading, general)
