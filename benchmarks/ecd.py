"""All tasks of the ECD benchmark on ECD-mini, with small networks.

    eac data gpaw recipes/data/ecd-mini.yaml -o data/ecd-mini.store
    eac benchmark layout data/ecd-mini.store -o data/ecd-mini --gaps recipes/data/ecd-mini-gaps.csv
    python benchmarks/ecd.py data/ecd-mini --other data/eac-pbe.store --scf 5

MP-id asks how a model does that was trained on other data. In place of the published one, which
predicts densities of VASP, the network of recipes/ecd-mini.yaml is trained on --other, a store of
GPAW's PBE densities, for as many steps. Finished trainings and measurements are kept in the folder
of the run; the same call goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from runs import REPOSITORY, RESULTS, Help, show_progress

from eac_ase.ecd import TASKS, Budget, run_task
from eac_ase.ecd.report import table
from eac_model.data import DensityStore
from eac_model.errors import EACError
from eac_model.files import write_bytes
from eac_model.training import TrainingConfig, train


def main() -> None:
    options = _options()
    budget = Budget(
        training=TrainingConfig.from_yaml(options.config),
        tuning=TrainingConfig.from_yaml(options.tuning),
        scf=options.scf,
    )
    contents = []
    for name in options.tasks:
        model = None
        if not TASKS[name].models:
            if options.other is None:
                print(f"{name}: left out, it needs --other", flush=True)
                continue
            model = str(model_of_other_data(options, budget))
        print(name, flush=True)
        contents.append(run_task(TASKS[name], options.data, options.runs, budget, model=model))
        print(table(contents[-1:]), flush=True)
        write(options.output, contents)


def model_of_other_data(options: argparse.Namespace, budget: Budget) -> Path:
    """The same network after the same number of steps on other densities."""
    assert budget.training is not None
    config = budget.training.model_dump(mode="json")
    config["data"] |= {"train": [str(options.other)], "validation": 0}
    # Its elements are others, and of many there is too little for the matrices D.
    config["network"] |= {"elements": [], "onsite": None}
    config["card"]["name"] = "other data"
    try:
        return train(
            TrainingConfig.from_mapping(config), options.runs / "models" / "other", resume=True
        )
    except EACError as error:
        raise SystemExit(f"--other {options.other}: {error}") from error


def write(path: Path, contents: list[dict[str, Any]]) -> None:
    """JSON with the figures of every structure, and the tables."""
    text = json.dumps({"tasks": contents}, indent=1, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode())
    write_bytes(path.with_suffix(".md"), table(contents).encode())


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    options.add_argument("data", type=Path, help="folder in ECD's layout")
    options.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    options.add_argument("--other", type=Path, help="store of other PBE densities, for MP-id")
    options.add_argument("--scf", type=int, default=5, help="structures to count iterations of")
    options.add_argument("--config", type=Path, default=REPOSITORY / "recipes" / "ecd-mini.yaml")
    options.add_argument(
        "--tuning", type=Path, default=REPOSITORY / "recipes" / "ecd-mini-tuning.yaml"
    )
    options.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "ecd-mini")
    options.add_argument("--output", type=Path, default=RESULTS / "ecd_mini.json")
    found = options.parse_args()
    if found.other is not None:
        found.other = DensityStore.open(found.other).path.absolute()
    show_progress()
    return found


if __name__ == "__main__":
    main()
