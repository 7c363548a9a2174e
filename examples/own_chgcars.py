"""Your own CHGCARs: collect them, fine-tune a model on them, check it, predict.

    python examples/own_chgcars.py MODEL CHGCAR CHGCAR ...

Needs two CHGCARs or more; the last one is left out for checking. A start from the bundled model
(water-scan) needs structures of H and O; other elements start from eac-pbe. 30 steps show the way;
real runs take thousands (`eac train`, docs: training).
"""

import sys
from pathlib import Path

from eac_ase import EACDensity, evaluate_sample
from eac_model.data import DensityStore, convert, read_density
from eac_model.training import TrainingConfig, train

if len(sys.argv) < 4:
    sys.exit(__doc__)
model, *training_files, left_out = sys.argv[1:]

report = convert(training_files, "own.store")
for failure in report.failures:
    print("skipped:", failure.message)
print(len(DensityStore.open("own.store")), "densities in own.store")

config = TrainingConfig.from_mapping(
    {
        "data": {"train": "own.store", "points_per_structure": 500},
        "initialize_from": model,
        "optimisation": {"steps": 30, "warmup_steps": 5, "learning_rate": 1e-3},
        "card": {"name": "own", "valence_electrons": EACDensity(model).card.valence_electrons},
    }
)
tuned = EACDensity(train(config, Path("own-run"), resume=True))  # started again, it goes on

reference = read_density(left_out)
for name, calculator in (("before", EACDensity(model)), ("after", tuned)):
    errors = evaluate_sample(calculator, reference)
    print(f"{name}: error {errors.density.nmae_percent:.2f} % on {left_out}")
tuned.get_density_grid(reference.atoms, shape=reference.density.shape).write("CHGCAR_predicted")
