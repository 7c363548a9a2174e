"""Sphinx configuration; nothing here needs a network."""

import os
import sys
from importlib.metadata import version as package_version
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
# Quiet, small and repeatable: pages execute code.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONWARNINGS"] = "ignore"

project = "EAC densities"
author = "EAC contributors"
copyright = "EAC contributors, MIT licence"
release = version = package_version("eac-density")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "numpydoc",
    "reference",
]
exclude_patterns = ["_build", "generated", "jupyter_execute"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
# GPAW has to be compiled; without it its page shows code only.
nb_execution_excludepatterns = [] if find_spec("gpaw") else ["gpaw.md"]

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
numpydoc_show_class_members = False

# Docstrings give shapes as types, which are no cross-references.
suppress_warnings = ["ref.python"]

templates_path: list[str] = []
html_theme = "pydata_sphinx_theme"
html_title = "EAC densities"
html_theme_options = {
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars: dict[str, list[str]] = {"**": []}
html_show_sourcelink = False
