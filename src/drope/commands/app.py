"""The root command, the way from an exception to an exit code, and nothing that imports torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts import App

# In the order of the work. The module and its `app` have the subcommand's name.
COMMANDS = {
    "inspect": "Say what a model is, how it sees positions, and what an extension would take. Loads no weights.",
    "convert": "Drop the rotary embeddings of a model and write it as a stock checkpoint. No training.",
    "recalibrate": "Drop the rotary embeddings and train briefly at the original context, to recover the model.",
    "plan": "Say what a recalibration takes on given GPUs: memory, a split that fits, time. Loads no weights.",
    "pretrain": "Train a new model, with positions up to some point and without them from there on.",
    "temperature": "Fit the softmax temperature β for each target length on held-out text.",
    "longrope2": "Search the rescale factors of LongRoPE2 for one model, by the perplexity of a distant needle.",
    "evaluate": "Measure one model: needles in haystacks, and perplexity by position.",
    "compare": "Measure several models and methods on the same trials, and write a report.",
    "analyze": "Show what positions do in a model: heads, frequencies, gradients, and what recalibration changed.",
    "extend": "All of it in order: drop, recalibrate, fit the temperature, measure, write checkpoint and report.",
    "export": "Write a converted model for one engine: vLLM, SGLang, llama.cpp, mlx-lm, transformers.",
    "verify": "Check that engines compute what the model does: transformers, llama.cpp, mlx-lm, any OpenAI server.",
    "report": "Turn a results.json into one self-contained HTML page.",
}

EXAMPLES = """Examples:

  # what it is, and what an extension takes
  drope inspect bundled
  # the whole pipeline on the model that ships with drope
  drope extend bundled --data stdlib --tokens 2M --to 8x --out out/demo
  # drop the positions only, and train elsewhere
  drope convert org/model --to 32k --out out/nope
  # settings from a file; flags win over it
  drope extend --config recipe.yaml --tokens 5B

Lengths: 16k is 16384, 8x is eight times the model's own context.
Amounts of tokens: 500M, 5B. Each subcommand's --help has more examples."""


def build() -> App:
    """The cyclopts application, with every subcommand registered by its import path only."""
    from cyclopts import App

    from drope.commands.config import from_yaml

    app = App(
        name="drope",
        help="Longer context for pretrained RoPE language models, by dropping their positional embeddings (DroPE).",
        help_epilogue=EXAMPLES,
        help_format="plaintext",
        version=_version,
        config=from_yaml,
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    for place, (name, summary) in enumerate(COMMANDS.items()):
        app.command(f"drope.commands.{name}:app", name=name, help=summary, sort_key=place)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run `drope` with `argv` (without the program's name) and return its exit code.

    0: done. 1: an unexpected error, or a check that failed. 2: bad input or an error that the user can mend.
    130: interrupted.
    """
    from drope.commands import typed

    arguments = list(sys.argv[1:] if argv is None else argv)
    typed.arguments[:] = arguments
    try:
        with _sigterm_as_ctrl_c():
            build()(arguments)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return _exit_code(error, verbose=not {"-v", "--verbose"}.isdisjoint(arguments))


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Leave on SIGTERM as on Ctrl-C, so that servers are stopped and temporary files go.

    Recalibration listens by itself. One of several processes ends at once: it may be waiting for another.
    """
    import os
    import signal
    import threading

    def leave(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    alone = "WORLD_SIZE" not in os.environ and threading.current_thread() is threading.main_thread()
    mine = alone and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if mine:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit_code(error: BaseException, verbose: bool) -> int:
    """Print `error` on stderr, in one paragraph and without a traceback unless `verbose`, and name its exit code."""
    from cyclopts import CycloptsError

    from drope.errors import DropeError, InputError, Interrupted
    from drope.training.processes import FailedElsewhere, rank

    if isinstance(error, FailedElsewhere) or rank() and isinstance(error, InputError | Interrupted):
        return 130 if isinstance(error, Interrupted) else 2  # the first process says it
    if isinstance(error, BrokenPipeError):  # the reader of our output, such as `head`, has gone: no fault of anyone's
        sys.stderr.close()
        return 0
    if verbose and not isinstance(error, CycloptsError):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt | Interrupted):
        _say(str(error) or "Stopped.")
        return 130
    if isinstance(error, DropeError | CycloptsError):
        _say(f"drope: {_paragraph(str(error))}")
        return error.exit_code if isinstance(error, DropeError) else 2
    _say(f"drope: unexpected {type(error).__name__}: {_paragraph(str(error))}")
    if not verbose:
        _say("Run the same command with -v for the traceback.")
    return 1


def _paragraph(text: str) -> str:
    return " ".join(text.split())


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"drope {version('drope-llm')}"
    except PackageNotFoundError:  # run from a source folder that was never installed
        return "drope (not installed)"
