"""The command line ``eac``: one module a group of commands.

Everything that imports torch or SciPy is imported inside the commands: ``eac --help`` is instant.
"""

# Help lists the commands in the order of these imports.
from eac_ase.cli import predict, partition, vasp, training, data, models, benchmark  # isort: skip
from eac_ase.cli.app import app

__all__ = ["app", "benchmark", "data", "models", "partition", "predict", "training", "vasp"]
