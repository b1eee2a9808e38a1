"""Several processes that work on one run: who goes first, what all of them must agree on.

Launchers (`torchrun`, `accelerate launch`, SLURM) describe the processes in the environment. Everything here is a plain
call in a run of one process.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from drope.errors import DropeError

T = TypeVar("T")


class FailedElsewhere(DropeError):
    """Another process of the run has failed, and says why."""


_LONGEST_WAIT = timedelta(
    days=7
)  # others wait while the first tokenises; a dead process ends the others by its launcher
_waiting: Any = None  # a gloo group of its own, for waits that NCCL would take for a hang


def count() -> int:
    """Processes in this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number, from 0 to `count() - 1`."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def set_device() -> None:
    """Give each process of a machine an accelerator of its own; to be called before the model is loaded."""
    import torch

    if count() > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def start(device: Any) -> None:
    """Join the process group of the run, once; accelerate then uses it."""
    global _waiting
    if count() == 1:
        return
    import torch.distributed as dist

    if not dist.is_initialized():
        atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)
        dist.init_process_group("gloo" if device.type == "cpu" else f"{device.type}:nccl,cpu:gloo")
    if _waiting is None:
        _waiting = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)


def wait() -> None:
    """Until every process is here."""
    if count() > 1:
        import torch.distributed as dist

        dist.barrier(group=_waiting)


def gathered(value: T) -> list[T]:
    """The values of all processes, by rank."""
    if count() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value, group=_waiting)
    return values


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if count() == 1:
        return flag
    import torch
    import torch.distributed as dist

    found = torch.tensor(int(flag))
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_waiting)
    return bool(found.item())


def by_first(work: Callable[[], T]) -> T:
    """What `work` returns in the first process, or the error that it raises there, in every process."""
    if count() == 1:
        return work()
    import torch.distributed as dist

    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = work()
        except DropeError as error:
            outcome[1] = error
    message = [outcome[0], None if outcome[1] is None else str(outcome[1])]
    dist.broadcast_object_list(message, src=0, group=_waiting)
    if outcome[1] is not None:
        raise outcome[1]
    if message[1] is not None:
        raise FailedElsewhere(message[1])
    return message[0]


def first_then_all(work: Callable[[], T]) -> T:
    """`work` in the first process, then in one process of each machine, then in the others: all but the first find what
    it left in a cache, shared or not."""
    if count() == 1:
        return work()
    local = int(os.environ.get("LOCAL_RANK", str(rank())))
    turn = 0 if rank() == 0 else 1 if local == 0 else 2
    result: Any = None
    for now in range(3):
        error: DropeError | None = None
        if turn == now:
            try:
                result = work()
            except DropeError as caught:
                error = caught
        failures = [message for message in gathered(None if error is None else str(error)) if message]
        if error is not None:
            raise error
        if failures:
            raise FailedElsewhere(failures[0])
    return result


def agreed(values: dict[str, Any]) -> None:
    """Stop a run whose processes see different things.

    Raises
    ------
    DropeError : a value differs between processes; names it
    """
    everyones = gathered(values)
    for name in values:
        found = [theirs.get(name) for theirs in everyones]
        if any(value != found[0] for value in found):
            raise DropeError(
                f"The processes of this run differ in {name}: {', '.join(map(str, found))}. Give every machine "
                "the same files, versions and command."
            )
