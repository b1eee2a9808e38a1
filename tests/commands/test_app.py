"""The root command: what it imports, what it prints, and the way from an exception to an exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from drope.commands.app import COMMANDS, _exit_code, build, main
from drope.errors import DropeError, InputError, Interrupted

Process = Callable[..., subprocess.Popen[str]]


def test_help_names_every_subcommand_and_imports_nothing_heavy(process: Process) -> None:
    done = process("--help", check="assert not {'torch', 'transformers', 'matplotlib', 'datasets'} & set(sys.modules)")
    out, err = done.communicate()
    assert done.returncode == 0, err
    for name in COMMANDS:
        assert name in out
    assert "drope extend bundled" in out


def test_help_is_fast(process: Process) -> None:
    used = "import resource as r; u = r.getrusage(r.RUSAGE_SELF); print(u.ru_utime + u.ru_stime, file=sys.stderr)"
    err = process("--help", check=used).communicate()[1]
    assert float(err) < 1.0  # seconds of processor time, so that a busy machine does not count


@pytest.mark.parametrize("name", COMMANDS)
def test_each_subcommand_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"drope {name}" in out.split("Examples:")[1]
    for flag in ("--json", "--verbose", "-v", "--config"):
        assert flag in out


def test_each_subcommand_is_imported_only_when_called(process: Process) -> None:
    done = process("report", "--help", check="assert 'drope.commands.convert' not in sys.modules")
    err = done.communicate()[1]
    assert done.returncode == 0, err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("drope ")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["convret", "m"], ["convret", "convert"]),
        (["convert", "m", "--to", "8x"], ["--out"]),
        (["convert", "m", "--to", "8x", "--out", "o", "--qknorm"], ["--qknorm", "--qk-norm"]),
        (
            ["convert", "m", "--to", "8x", "--out", "o", "--qk-norm-init", "zeros"],
            ["--qk-norm-init", "zeros", "fitted", "ones"],
        ),
        (["recalibrate", "m", "--tokens", "5Q", "--data", "stdlib", "--out", "o"], ["--tokens", "5Q", "500M"]),
        (["report", "no/such/results.json"], ["no/such/results.json"]),
    ],
)
def test_bad_input_is_one_paragraph_that_names_it(
    argv: list[str], named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    for word in named:
        assert word in captured.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("--to", "4", "a length above 256"), 2),
        (DropeError("The disk is full."), 2),
        (Interrupted("Saved at 1M tokens. Go on with --resume."), 130),
        (KeyboardInterrupt(), 130),
        (RuntimeError("shapes differ"), 1),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(error, verbose=False) == code
    err = capsys.readouterr().err
    assert str(error) in err
    assert "Traceback" not in err
    assert ("-v for the traceback" in err) == (code == 1)


def test_verbose_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError("shapes differ")
    assert _exit_code(caught.value, verbose=True) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupted_keeps_its_resume_hint_on_its_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    _exit_code(Interrupted("Saved.\ndrope recalibrate ... --resume"), verbose=False)
    assert "\ndrope recalibrate ... --resume" in capsys.readouterr().err


def test_every_registered_subcommand_resolves() -> None:
    app = build()
    for name in COMMANDS:
        assert app[name].default_command is not None


def test_sigterm_leaves_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch) -> None:
    left = []

    def command(arguments: list[str]) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            left.append("in order")

    monkeypatch.setattr("drope.commands.app.build", lambda: command)
    assert main(["verify"]) == 130
    assert left == ["in order"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
