"""The ECD benchmark: its data layout, its seven tasks, their metrics and tables.

P. Chen et al., *ECD: A Machine Learning Benchmark for Predicting Enhanced-Precision Electronic
Charge Density in Crystalline Inorganic Materials*, ICLR 2025.
"""

from eac_ase.ecd.export import export_stores
from eac_ase.ecd.layout import EcdSet, write_set
from eac_ase.ecd.run import Budget, run_task
from eac_ase.ecd.tasks import TASKS, EcdTask, Stage

__all__ = [
    "TASKS",
    "Budget",
    "EcdSet",
    "EcdTask",
    "Stage",
    "export_stores",
    "run_task",
    "write_set",
]
