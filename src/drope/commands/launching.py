"""`--nproc N`: this very command in N processes of this machine, as torchrun would start them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from drope.commands import typed
from drope.errors import InputError


def check(nproc: int) -> None:
    """Refuse numbers of processes that this machine cannot run.

    Raises
    ------
    InputError : below 1, more than there are accelerators, or without accelerators more than there are cores
    """
    import torch

    if nproc < 1:
        raise InputError("--nproc", nproc, "a whole number of at least 1")
    if nproc > 1:
        gpus = torch.cuda.device_count()
        if nproc > (gpus or os.cpu_count() or 1):
            has = f"{gpus} GPUs" if gpus else f"{os.cpu_count()} processor cores and no GPU"
            raise InputError("--nproc", nproc, f"at most what this machine has: {has}")


def wanted(nproc: int) -> bool:
    """Whether processes are to be started: more than one is asked for, and no launcher has started this one."""
    return nproc > 1 and "WORLD_SIZE" not in os.environ


def handed_over(nproc: int) -> bool:
    """Have N processes do this command, where they are asked for; whether they did.

    Raises
    ------
    InputError : a number that this machine cannot run
    SystemExit : one of them failed; its exit code
    """
    check(nproc)
    if not wanted(nproc):
        return False
    if code := launch(nproc):
        raise SystemExit(code)
    return True


def launch(nproc: int, command: Sequence[str] | None = None) -> int:
    """Start the processes, hand signals on, and wait; the exit code of the first that failed, or 0.

    A failed process ends the others.
    """
    command = command or [sys.executable, "-m", "drope", *typed.arguments]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // nproc))
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": threads}
    shared |= {"WORLD_SIZE": str(nproc), "LOCAL_WORLD_SIZE": str(nproc)}
    running = [
        # A group of their own: a Ctrl-C reaches them through us, once.
        subprocess.Popen(command, env=shared | {"RANK": str(i), "LOCAL_RANK": str(i)}, start_new_session=True)
        for i in range(nproc)
    ]

    def hand_on(number: int, frame: object) -> None:
        for process in running:
            process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while True:
            codes = [process.poll() for process in running]
            failed = [code for code in codes if code]
            if failed:
                time.sleep(0.5)  # those that stop for the same reason say so themselves
                for process in running:
                    process.terminate()
                _end(running)
                return abs(failed[0])
            if all(code == 0 for code in codes):
                return 0
            time.sleep(0.1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _end(running)


def _end(running: list[subprocess.Popen], patience: float = 20.0) -> None:
    limit = time.monotonic() + patience
    for process in running:
        try:
            process.wait(max(0.0, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
