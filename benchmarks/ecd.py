"""All tasks of the ECD benchmark on ECD-mini, with small networks.

    eac data gpaw recipes/data/ecd-mini.yaml -o data/ecd-mini.store
    eac benchmark layout data/ecd-mini.store -o data/ecd-mini --gaps recipes/data/ecd-mini-gaps.csv
    python benchmarks/ecd.py data/ecd-mini

MP-id asks how a model does that was trained on other data: the bundled ``eac-pbe`` in place of the
published ones, which predict densities of VASP. Finished trainings and measurements are kept in the
folder of the run; the same call goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from runs import REPOSITORY, RESULTS, Help, show_progress

from eac_ase.ecd import TASKS, Budget, run_task
from eac_ase.ecd.report import table
from eac_model.files import write_bytes
from eac_model.training import TrainingConfig


def main() -> None:
    options = _options()
    budget = Budget(
        training=TrainingConfig.from_yaml(options.config),
        tuning=TrainingConfig.from_yaml(options.tuning),
        scf=options.scf,
    )
    contents = []
    for name in options.tasks:
        model = None if TASKS[name].models else options.other
        print(name, flush=True)
        contents.append(run_task(TASKS[name], options.data, options.runs, budget, model=model))
        print(table(contents[-1:]), flush=True)
        write(options.output, contents)


def write(path: Path, contents: list[dict[str, Any]]) -> None:
    """JSON with the figures of every structure, and the tables."""
    text = json.dumps({"tasks": contents}, indent=1, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode())
    write_bytes(path.with_suffix(".md"), table(contents).encode())


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    options.add_argument("data", type=Path, help="folder in ECD's layout")
    options.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    options.add_argument(
        "--other", default="eac-pbe", help="model of other PBE densities, for MP-id"
    )
    options.add_argument("--scf", type=int, default=5, help="structures to count iterations of")
    options.add_argument("--config", type=Path, default=REPOSITORY / "recipes" / "ecd-mini.yaml")
    options.add_argument(
        "--tuning", type=Path, default=REPOSITORY / "recipes" / "ecd-mini-tuning.yaml"
    )
    options.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "ecd-mini")
    options.add_argument("--output", type=Path, default=RESULTS / "ecd_mini.json")
    show_progress()
    return options.parse_args()


if __name__ == "__main__":
    main()
