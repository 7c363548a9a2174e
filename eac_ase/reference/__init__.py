"""Reference data: structures from a recipe, calculations with GPAW, samples in stores."""

from eac_ase.reference.recipe import Recipe
from eac_ase.reference.run import Outcome, Plan, make_plan, run_plan

__all__ = ["Outcome", "Plan", "Recipe", "make_plan", "run_plan"]
