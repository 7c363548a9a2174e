"""Models of other programs, turned into models of this one."""

from eac_model.imports.models import import_model
from eac_model.imports.torch_file import read_torch_file

__all__ = ["import_model", "read_torch_file"]
