"""Every error that a user can cause or mend. The command line prints them as one paragraph and exits with 2."""

from __future__ import annotations


class DropeError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 2


class InputError(DropeError):
    """A setting or an input that cannot be used.

    Parameters
    ----------
    field : the setting as the user wrote it, such as `--to` or `learning_rate`
    value : what was given
    allowed : what would have been accepted
    hint : what to do about it
    """

    def __init__(self, field: str, value: object, allowed: str, hint: str = ""):
        self.field, self.value, self.allowed, self.hint = field, value, allowed, hint
        shown = repr(value) if isinstance(value, str) else str(value)
        super().__init__(f"{field} is {shown}; allowed: {allowed}." + (f" {hint}" if hint else ""))


class UnsupportedModelError(DropeError):
    """A model family that cannot be converted; the message names it and says why."""


class VerificationError(DropeError):
    """A conversion did not prove itself (gapped positions, cached decoding)."""


class ParityError(DropeError):
    """An engine does not compute what the model does."""

    exit_code = 1


class Interrupted(DropeError):
    """Work was stopped by a signal and saved; the message says how to resume."""
