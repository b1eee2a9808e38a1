"""The root command: what it imports, what it prints, and the way from an exception to an exit code."""

from __future__ import annotations

import subprocess
import sys

import pytest

from drope.commands.app import COMMANDS, _exit_code, build, main
from drope.errors import DropeError, InputError, Interrupted

CALL = "import sys; from drope.commands import main; code = main(sys.argv[1:]); "


def run(*argv: str, check: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"{CALL}{check}; sys.exit(code)", *argv], capture_output=True, text=True
    )


def test_help_names_every_subcommand_and_imports_nothing_heavy() -> None:
    done = run("--help", check="assert not {'torch', 'transformers', 'matplotlib', 'datasets'} & set(sys.modules)")
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert name in done.stdout
    assert "drope extend bundled" in done.stdout


def test_help_is_fast() -> None:
    code = "import resource, sys; from drope.commands import main; main(['--help']); "
    code += "u = resource.getrusage(resource.RUSAGE_SELF); print(u.ru_utime + u.ru_stime, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert float(done.stderr.split()[-1]) < 1.0  # seconds of processor time, so that a busy machine does not count


@pytest.mark.parametrize("name", COMMANDS)
def test_each_subcommand_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"drope {name}" in out.split("Examples:")[1]
    for flag in ("--json", "--verbose", "-v", "--config"):
        assert flag in out


def test_each_subcommand_is_imported_only_when_called() -> None:
    done = run("report", "--help", check="assert 'drope.commands.convert' not in sys.modules")
    assert done.returncode == 0, done.stderr


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
