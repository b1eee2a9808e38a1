"""The public face: every name resolves, again and again, and importing drope imports no torch."""

import subprocess
import sys

import pytest

import drope


@pytest.mark.parametrize("name", drope.__all__)
def test_every_public_name_is_a_function_each_time(name):
    assert callable(getattr(drope, name))
    assert callable(getattr(drope, name))  # a submodule of the same name would take its place after the first import


def test_unknown_names_say_what_there_is():
    with pytest.raises(AttributeError, match="recalibrate"):
        drope.recalibrat  # noqa: B018


def test_import_is_light():
    code = "import sys, drope; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
