"""Several devices that share the blocks of one evaluation."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch

from eac_model.engine.kernels import fingerprint
from eac_model.network import DensityNetwork

if hasattr(os, "register_at_fork"):
    # Threads of OpenMP do not survive a fork, and a child of two or more waits for them for ever.
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))

Devices = Sequence[torch.device | str]
"""Devices that share the work, each named as often as it is to have workers."""

Worker = TypeVar("Worker")
Task = TypeVar("Task")

Copies = tuple[int, tuple[torch.device, ...], list[DensityNetwork]]
_copies: WeakKeyDictionary[DensityNetwork, Copies] = WeakKeyDictionary()


def replicas(network: DensityNetwork, devices: Devices) -> list[DensityNetwork]:
    """One network a device: the network itself once if it lies on one of them, copies else.

    Copies are kept as long as the parameters stay the same.
    """
    if not devices:
        return [network]
    wanted = tuple(_indexed(torch.device(device)) for device in devices)
    own = _indexed(network.device)
    if wanted == (own,):
        return [network]
    state = fingerprint(network)
    known = _copies.get(network)
    if known is None or known[:2] != (state, wanted):
        own_place = wanted.index(own) if own in wanted else -1
        # The network itself is left out: it would keep itself alive.
        made = [
            copy.deepcopy(network).to(device)
            for place, device in enumerate(wanted)
            if place != own_place
        ]
        known = _copies[network] = (state, wanted, made)
    found = list(known[2])
    if own in wanted:
        found.insert(wanted.index(own), network)
    return found


def share(
    tasks: Iterable[Task],
    workers: Sequence[Worker],
    do: Callable[[Worker, Task], int],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Let every worker take the next task until there are none.

    Parameters
    ----------
    do
        Does a task, and returns the number of points in it.
    progress
        Called with that number after every task, never by two workers at once.
    """
    if len(workers) == 1:
        for task in tasks:
            done = do(workers[0], task)
            if progress is not None:
                progress(done)
        return
    pending = iter(tasks)
    lock = threading.Lock()
    failures: list[BaseException] = []

    def drain(worker: Worker) -> None:
        while not failures:
            with lock:
                task = next(pending, None)
            if task is None:
                return
            try:
                done = do(worker, task)
                with lock:
                    if progress is not None:
                        progress(done)
            except BaseException as error:
                failures.append(error)  # the others stop after their task
                raise

    with ThreadPoolExecutor(len(workers)) as pool:
        futures = [pool.submit(drain, worker) for worker in workers]
        try:
            for future in futures:
                future.result()
        except BaseException as error:
            failures.append(error)  # an interrupt, say: leaving the pool waits for all workers
            raise


class _FullPrecision:
    """Matrix products in all digits of float32 on GPUs, whatever the program has set (TF32).

    The setting is one for all threads: the first that needs it sets it, the last puts it back.
    """

    def __init__(self) -> None:
        self.lock, self.users, self.before = threading.Lock(), 0, "highest"

    def __enter__(self) -> None:
        with self.lock:
            if self.users == 0:
                self.before = torch.get_float32_matmul_precision()
                torch.set_float32_matmul_precision("highest")
            self.users += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                torch.set_float32_matmul_precision(self.before)


full_precision = _FullPrecision()


def _indexed(device: torch.device) -> torch.device:
    """With its number: cuda means the current one."""
    if device == torch.device("cuda"):
        return torch.device("cuda", torch.cuda.current_device())
    return device
