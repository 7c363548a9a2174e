"""Working through a recipe: several processes, resumable at any moment.

A sample is in its store completely or not at all, and its key names everything that decides it;
so a run that was stopped, by whatever means, goes on where it was, and a recipe with more
structures adds those. Structures that fail are written to ``failures.jsonl`` in the folder of the
store and left out until they are asked for again.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from ase import Atoms

from eac_ase.reference.recipe import Recipe, Settings, Split, Task
from eac_model.data import DensitySample, DensityStore
from eac_model.errors import ConfigurationError
from eac_model.files import alone, append_line, replacing

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

Calculate = Callable[[Atoms, Settings, str], DensitySample]
"""Makes a sample of a structure; has to be importable by its name in another process."""

FAILURES = "failures.jsonl"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Failure:
    """Why there is no sample."""

    reason: str
    fatal: bool = False
    """Whether every other structure would fail for the same reason."""


@dataclass(frozen=True)
class Outcome:
    """What became of a structure."""

    key: str
    """Key of the task."""
    seconds: float
    """Wall time, making of the structure included."""
    formula: str = ""
    """Chemical formula of the sample."""
    iterations: int | None = None
    """Iterations of the calculation, if it says so."""
    failure: str = ""
    """Why there is no sample; empty if there is one."""


@dataclass(frozen=True)
class Plan:
    """What a recipe asks for, and what of it is there."""

    recipe: Recipe
    output: Path
    """Folder of the store for training."""
    todo: tuple[Task, ...]
    """Structures to calculate."""
    present: int
    """Structures of the recipe whose samples are there."""
    failed: int
    """Structures that failed before and are left out."""
    stale: tuple[str, ...] = field(default=())
    """Keys of samples in the stores that the recipe no longer asks for."""


def store_path(output: Path, split: Split) -> Path:
    """Store of a split: ``si.store`` for training, ``si-test.store`` for testing."""
    return output if split == "train" else output.with_name(f"{output.stem}-{split}{output.suffix}")


def make_plan(recipe: Recipe, output: str | Path, *, retry_failed: bool = False) -> Plan:
    """Compare a recipe with what is there.

    Parameters
    ----------
    recipe
        The recipe.
    output
        Store of the training samples; those of other splits lie beside it (:func:`store_path`).
    retry_failed
        Try structures again that failed before.

    Raises
    ------
    ConfigurationError
        A structure has changed its split and lies in the store of the old one, where a model
        could learn from it.
    DensityFileError
        A store is damaged, or something else lies in its place.
    """
    output = Path(output)
    tasks = list(recipe.tasks())
    splits: tuple[Split, ...] = ("train", "validation", "test")
    known: dict[Split, set[str]] = {}
    for split in splits:
        path = store_path(output, split)
        entries = DensityStore.open(path).entries if path.exists() else ()
        known[split] = {entry.key for entry in entries}
    for task in tasks:
        for split in splits:
            if split != task.split and task.key in known[split]:
                raise ConfigurationError(
                    f"{task.key}: the recipe has it for {task.split}, but it lies in "
                    f"{store_path(output, split)}. Use a new output folder."
                )
    failures = set() if retry_failed else _read_failures(output / FAILURES)
    todo = [task for task in tasks if task.key not in known[task.split]]
    wanted = {task.key for task in tasks}
    return Plan(
        recipe=recipe,
        output=output,
        todo=tuple(task for task in todo if task.key not in failures),
        present=len(tasks) - len(todo),
        failed=sum(task.key in failures for task in todo),
        stale=tuple(sorted(set().union(*known.values()) - wanted)),
    )


def run_plan(
    plan: Plan,
    *,
    workers: int = 1,
    dask: str | None = None,
    calculate: Calculate | None = None,
) -> Iterator[Outcome]:
    """Make what is missing; stop it at any time.

    Parameters
    ----------
    plan
        What to do.
    workers
        Processes side by side, of one thread each; 0 calculates in this process, where the time
        limit is not enforced.
    dask
        Address of a dask scheduler whose workers calculate instead. The recipe's time limit is
        not enforced there.
    calculate
        Makes the samples; by default :func:`eac_ase.reference.gpaw.calculate`.

    Yields
    ------
    Outcome
        One a structure, after its sample or its failure has been written.

    Raises
    ------
    ConfigurationError
        Another run works on the same output, or a package is missing.
    """
    if calculate is None:
        from eac_ase.reference.gpaw import calculate as with_gpaw

        calculate = with_gpaw
    if not plan.output.exists():
        plan.output.parent.mkdir(parents=True, exist_ok=True)
        DensityStore.create(plan.output)
    with alone(plan.output / ".run.lock", f"{plan.output}: another run is working on this output."):
        _keep_recipe(plan)
        if dask is not None:
            results = _with_dask(plan.todo, dask, calculate)
        elif workers:
            results = _in_processes(plan.todo, workers, plan.recipe.time_limit, calculate)
        else:
            results = _here(plan.todo, calculate)
        stores: dict[Split, DensityStore] = {}
        for task, result, seconds in results:
            yield _keep(plan, stores, task, result, seconds)


def _timed(calculate: Calculate, task: Task) -> tuple[DensitySample | Failure, float]:
    began = monotonic()
    return compute(calculate, task), monotonic() - began


def compute(calculate: Calculate, task: Task) -> DensitySample | Failure:
    """Build a structure and calculate it."""
    from eac_ase.reference.structures import build

    try:
        return calculate(build(task), task.settings, task.key)
    except ConfigurationError as error:
        return Failure(str(error), fatal=True)
    except Exception as error:  # whatever it is, the other structures go on
        return Failure(f"{type(error).__name__}: {error}")


def _keep(
    plan: Plan,
    stores: dict[Split, DensityStore],
    task: Task,
    result: DensitySample | Failure,
    seconds: float,
) -> Outcome:
    if isinstance(result, Failure):
        if result.fatal:
            raise ConfigurationError(f"{task.key}: {result.reason}")
        line = {"key": task.key, "reason": result.reason, "seconds": round(seconds, 1)}
        append_line(plan.output / FAILURES, json.dumps(line, ensure_ascii=False))
        return Outcome(task.key, seconds, failure=result.reason)
    if task.split not in stores:
        path = store_path(plan.output, task.split)
        stores[task.split] = DensityStore.open(path) if path.exists() else DensityStore.create(path)
    stores[task.split].append(result, key=task.key)
    known = result.calculation
    return Outcome(
        task.key,
        seconds,
        formula=result.atoms.get_chemical_formula(),
        iterations=None if known is None else known.iterations,
    )


def _keep_recipe(plan: Plan) -> None:
    with replacing(plan.output / "recipe.json") as temporary:
        temporary.write_text(plan.recipe.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _read_failures(path: Path) -> set[str]:
    if not path.exists():
        return set()
    failed = set()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            failed.add(str(json.loads(line)["key"]))
        except (ValueError, KeyError, TypeError):
            continue  # a line that was cut short
    return failed


def _here(
    todo: tuple[Task, ...], calculate: Calculate
) -> Iterator[tuple[Task, DensitySample | Failure, float]]:
    for task in todo:
        began = monotonic()
        result = compute(calculate, task)
        yield task, result, monotonic() - began


# -- processes ---------------------------------------------------------------------------------


@dataclass
class _Worker:
    """A process and what it is at."""

    process: SpawnProcess
    connection: Connection
    task: Task
    began: float


def _in_processes(
    todo: tuple[Task, ...], workers: int, time_limit: float, calculate: Calculate
) -> Iterator[tuple[Task, DensitySample | Failure, float]]:
    """Hand tasks to processes; replace those that die."""
    waiting = list(reversed(todo))
    idle: list[_Worker] = []
    busy: list[_Worker] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                task = waiting.pop()
                worker = idle.pop() if idle else _start(task, time_limit, calculate)
                worker.task, worker.began = task, monotonic()
                try:
                    worker.connection.send(task)
                except OSError:  # it died while it waited
                    worker.process.join()
                    waiting.append(task)
                    continue
                busy.append(worker)
            ready = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in ready]:
                result: DensitySample | Failure
                try:
                    result = worker.connection.recv()
                    idle.append(worker)
                except (EOFError, OSError):
                    worker.process.join()
                    result = Failure(_cause_of_death(worker.process.exitcode, time_limit))
                busy.remove(worker)
                yield worker.task, result, monotonic() - worker.began
    finally:
        for worker in [*idle, *busy]:
            worker.process.kill()
        for worker in [*idle, *busy]:
            worker.process.join()


def _start(task: Task, time_limit: float, calculate: Calculate) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a fork would copy locks of running threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, time_limit, calculate), daemon=True)
    with _one_thread():
        process.start()
    theirs.close()  # so that the death of the process ends the pipe
    return _Worker(process, ours, task, monotonic())


def _work(connection: Connection, time_limit: float, calculate: Calculate) -> None:
    """Life of a worker process: tasks in, samples or failures out."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_the_parent, daemon=True).start()
    while True:
        try:
            task = connection.recv()
            _limit_cpu_time(time_limit)
            connection.send(compute(calculate, task))
        except (EOFError, BrokenPipeError):
            return


def _limit_cpu_time(seconds: float) -> None:
    """Let the system end this process when it has used so much more: no code can be stuck."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    limit = math.ceil(used.ru_utime + used.ru_stime + seconds)
    if hard == resource.RLIM_INFINITY or limit <= hard:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def _die_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for libraries that a process started now will load."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _cause_of_death(exitcode: int | None, time_limit: float) -> str:
    if exitcode == -signal.SIGXCPU:
        return f"took more than {time_limit:g} s of CPU time"
    if exitcode is not None and exitcode < 0:
        return f"the process was killed by {signal.Signals(-exitcode).name}"
    return f"the process ended with exit code {exitcode}"


def _with_dask(
    todo: tuple[Task, ...], scheduler: str, calculate: Calculate
) -> Iterator[tuple[Task, DensitySample | Failure, float]]:
    try:
        import distributed
    except ImportError as error:
        raise ConfigurationError(
            "--dask needs the package distributed: pip install distributed"
        ) from error
    from functools import partial

    try:
        client: Any = distributed.Client(scheduler, timeout=10)
    except OSError as error:
        raise ConfigurationError(f"--dask {scheduler}: {error}") from error
    with client:
        tasks = {task.key: task for task in todo}
        futures = client.map(partial(_timed, calculate), todo, key=list(tasks), retries=1)
        for future in distributed.as_completed(futures):
            problem = future.exception()
            lost = Failure(f"dask: {problem}"), 0.0
            result, seconds = future.result() if problem is None else lost
            yield tasks[future.key], result, seconds
            future.release()
