from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from eac_ase.reference import Recipe, make_plan, run_plan
from eac_ase.reference.run import FAILURES, store_path
from eac_model.data import DensitySample, DensityStore, Provenance
from eac_model.errors import ConfigurationError

# Run as a program, so that its worker processes find the calculation by name.
PROGRAM = """
import os, signal, sys
from pathlib import Path
import numpy as np
from eac_ase.reference import Recipe, make_plan, run_plan
from eac_model.data import DensitySample, Provenance

# Where the tests run as a background job, Ctrl-C is ignored from birth.
signal.signal(signal.SIGINT, signal.default_int_handler)

def calculate(atoms, settings, source):
    if "slow" in source:
        Path(f"at-{os.getpid()}").touch()
        while True:
            pass
    if "crash" in source:
        os._exit(9)
    if "kill" in source:
        os.kill(os.getpid(), 9)
    if "threads" in source:
        assert os.environ["OMP_NUM_THREADS"] == "1"
    if "wrong" in source:
        raise ValueError("no such luck")
    return DensitySample(atoms, np.ones((8, 8, 8)), provenance=Provenance(source=source))

if __name__ == "__main__":
    plan = make_plan(Recipe.from_yaml("recipe.yaml"), "x.store")
    try:
        for outcome in run_plan(plan, workers=int(sys.argv[1]), calculate=calculate):
            print(outcome.key.split("/")[0], outcome.failure or "made", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def entry(name="c", **changes):
    return {"name": name, "kind": "crystal", "lattices": "fcc", "formulas": {"Al": 4.0}, **changes}


def recipe(*entries, **rest):
    return Recipe.model_validate({"structures": list(entries), **rest})


def constant(atoms, settings, source):
    density = np.ones((8, 8, 8), dtype=np.float32)
    return DensitySample(atoms, density, provenance=Provenance(source=source))


def run_here(plan, calculate=constant):
    return list(run_plan(plan, workers=0, calculate=calculate))


def keys(path):
    return {entry.key for entry in DensityStore.open(path).entries}


@pytest.fixture
def program(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)

    def start(*entries, workers=1, **rest):
        content = {"structures": list(entries), **rest}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
        return subprocess.Popen(
            [sys.executable, "program.py", str(workers)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().split()[2] != "Z"


def test_a_second_run_adds_only_what_is_new(tmp_path):
    output = tmp_path / "x.store"
    plan = make_plan(recipe(entry(count=2)), output)
    outcomes = run_here(plan)
    assert [outcome.formula for outcome in outcomes] == ["Al", "Al"]
    assert keys(output) == {task.key for task in plan.todo}
    larger = make_plan(recipe(entry(count=3), entry("d")), output)
    assert (len(larger.todo), larger.present, larger.stale) == (2, 2, ())
    run_here(larger)
    assert len(DensityStore.open(output)) == 4
    assert not make_plan(recipe(entry(count=3), entry("d")), output).todo


def test_held_out_structures_lie_in_a_store_beside(tmp_path):
    output = tmp_path / "x.store"
    run_here(make_plan(recipe(entry(), entry("t", split="test")), output))
    assert store_path(output, "test") == tmp_path / "x-test.store"
    assert [key.split("/")[0] for key in keys(output)] == ["c"]
    assert [key.split("/")[0] for key in keys(tmp_path / "x-test.store")] == ["t"]
    with pytest.raises(ConfigurationError, match=r"t/.* for train, but it lies in .*x-test"):
        make_plan(recipe(entry(), entry("t", split="train")), output)


def test_samples_that_the_recipe_has_no_more_are_named(tmp_path):
    output = tmp_path / "x.store"
    run_here(make_plan(recipe(entry(count=2)), output))
    plan = make_plan(recipe(entry(count=2, rattle=0.1)), output)
    assert (len(plan.todo), plan.present, len(plan.stale)) == (2, 0, 2)


def test_failures_are_recorded_skipped_and_retried_when_asked(tmp_path):
    def fail_on_second(atoms, settings, source):
        if "/0001" in source:
            raise RuntimeError("diverged")
        return constant(atoms, settings, source)

    output = tmp_path / "x.store"
    plan = make_plan(recipe(entry(count=3)), output)
    outcomes = run_here(plan, fail_on_second)
    assert [outcome.failure for outcome in outcomes] == ["", "RuntimeError: diverged", ""]
    [line] = (output / FAILURES).read_text().splitlines()
    assert json.loads(line)["reason"] == "RuntimeError: diverged"
    with (output / FAILURES).open("a") as file:
        file.write('{"key": "cut sh')
    again = make_plan(recipe(entry(count=3)), output)
    assert (len(again.todo), again.present, again.failed) == (0, 2, 1)
    retry = make_plan(recipe(entry(count=3)), output, retry_failed=True)
    assert [task.key for task in retry.todo] == [plan.todo[1].key]
    run_here(retry)
    assert len(DensityStore.open(output)) == 3
    assert make_plan(recipe(entry(count=3)), output).failed == 0


def test_a_structure_that_cannot_be_made_fails_alone(tmp_path):
    output = tmp_path / "x.store"
    outcomes = run_here(make_plan(recipe(entry(scale=0.2), entry("d")), output))
    failures = {outcome.key.split("/")[0]: outcome.failure for outcome in outcomes}
    assert "StructureError" in failures["c"]
    assert not failures["d"]


def test_what_would_fail_for_all_stops_the_run(tmp_path):
    def missing(atoms, settings, source):
        raise ConfigurationError("install GPAW")

    plan = make_plan(recipe(entry()), tmp_path / "x.store")
    with pytest.raises(ConfigurationError, match="install GPAW"):
        run_here(plan, missing)
    assert not (tmp_path / "x.store" / FAILURES).exists()


def test_two_runs_on_one_output_are_refused(tmp_path):
    plan = make_plan(recipe(entry(count=2)), tmp_path / "x.store")
    first = run_plan(plan, workers=0, calculate=constant)
    next(first)
    with pytest.raises(ConfigurationError, match="another run"):
        next(run_plan(plan, workers=0, calculate=constant))
    first.close()
    run_here(make_plan(recipe(entry(count=2)), tmp_path / "x.store"))


def test_the_recipe_is_kept_with_the_data(tmp_path):
    made = recipe(entry(), seed=7)
    run_here(make_plan(made, tmp_path / "x.store"))
    kept = (tmp_path / "x.store" / "recipe.json").read_text()
    assert Recipe.model_validate_json(kept) == made


def test_several_processes_survive_crashes_errors_and_time_limits(tmp_path, program):
    names = ["a", "crash", "kill", "wrong", "slow", "threads", "b"]
    process = program(*map(entry, names), workers=2, time_limit=5.0)
    output, _ = process.communicate(timeout=100)
    results = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert {name for name in names if results[name] == "made"} == {"a", "threads", "b"}
    assert results["wrong"] == "ValueError: no such luck"
    assert results["crash"] == "the process ended with exit code 9"
    assert results["kill"] == "the process was killed by SIGKILL"
    assert results["slow"] == "took more than 5 s of CPU time"
    assert len(keys(tmp_path / "x.store")) == 3


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_leaves_complete_records_and_no_processes(tmp_path, program, how):
    process = program(entry("a", count=2), entry("slow"), entry("b"))
    wait_for(lambda: list(tmp_path.glob("at-*")))
    [mark] = tmp_path.glob("at-*")
    worker = int(mark.name.removeprefix("at-"))
    assert alive(worker)
    # to the group as a terminal does, or to the process alone as the kernel does
    (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
    output, _ = process.communicate(timeout=30)
    if how == signal.SIGINT:
        assert output.splitlines()[-1] == "interrupted"
    wait_for(lambda: not alive(worker))
    plan = make_plan(Recipe.from_yaml(tmp_path / "recipe.yaml"), tmp_path / "x.store")
    assert [task.key.split("/")[0] for task in plan.todo] == ["slow", "a", "a"]
    assert plan.present == 1
    DensityStore.open(tmp_path / "x.store").read(0)
    run_here(plan)
    assert len(DensityStore.open(tmp_path / "x.store")) == 4


def test_the_command_says_what_is_to_do_and_where_a_recipe_is_wrong(tmp_path):
    from eac_ase.cli import app

    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"structures": [entry(count=3)]}))
    run_here(make_plan(recipe(entry(count=1)), tmp_path / "x.store"))
    arguments = ["data", "gpaw", str(path), "-o", str(tmp_path / "x.store"), "--dry-run"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert (report["todo"], report["present"]) == (2, 1)
    path.write_text(yaml.safe_dump({"structures": [entry(cout=3)]}))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "structures[c].cout: there is no such key" in " ".join(result.output.split())


def test_samples_are_replaced_by_key_not_doubled(tmp_path):
    output = tmp_path / "x.store"
    plan = make_plan(recipe(entry()), output)
    run_here(plan)
    run_here(replace(plan))
    assert len(DensityStore.open(output)) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_workers_of_a_dask_scheduler_calculate(tmp_path):
    distributed = pytest.importorskip("distributed")

    def fail_on_second(atoms, settings, source):
        if "/0001" in source:
            raise RuntimeError("diverged")
        return constant(atoms, settings, source)

    plan = make_plan(recipe(entry(count=3)), tmp_path / "x.store")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        outcomes = list(run_plan(plan, dask=address, calculate=fail_on_second))
    assert sorted(outcome.failure for outcome in outcomes) == ["", "", "RuntimeError: diverged"]
    assert len(DensityStore.open(tmp_path / "x.store")) == 2


def test_a_dask_scheduler_that_is_not_there_is_named(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")

    def refuse(*address, **options):
        raise OSError("timed out")

    monkeypatch.setattr(distributed, "Client", refuse)
    plan = make_plan(recipe(entry()), tmp_path / "x.store")
    with pytest.raises(ConfigurationError, match=r"--dask nowhere:1: timed out"):
        list(run_plan(plan, dask="nowhere:1", calculate=constant))
