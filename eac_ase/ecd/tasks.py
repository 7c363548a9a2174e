"""The seven tasks of ECD: which models learn what, and what they are tested on.

Numbers of entries (training / validation / test) in the published data: PBE-id 138,134 / 512 /
2,000; MP-id 2,000 for testing; HSE-id and PBE_HSE_tuning-id 5,647 / 500 / 1,000; PBE_HSE-id 1,000;
EXP-id 41; OOD-id 1,996 (README and lists of github.com/pincher-chen/ECDBench).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from eac_ase.ecd.layout import SetName

QUARTERS = 4


@dataclass(frozen=True)
class Stage:
    """A training."""

    data: SetName
    """Folder whose training split it sees."""
    quarters: int = QUARTERS
    """How many fourths of that split."""
    start: Stage | None = None
    """Training whose model it starts from: fine-tuning; None: from random weights."""

    @property
    def name(self) -> str:
        """``pbe``, ``hse-25``, ``pbe+hse-50``; names the folder of the run and rows of tables."""
        percent = 100 * self.quarters // QUARTERS
        own = self.data if percent == 100 else f"{self.data}-{percent}"
        return own if self.start is None else f"{self.start.name}+{own}"


PBE = Stage("pbe")
HSE = Stage("hse")
TUNED = tuple(Stage("hse", quarters, start=PBE) for quarters in range(1, QUARTERS + 1))


@dataclass(frozen=True)
class EcdTask:
    """What a task trains and measures."""

    name: str
    summary: str
    """What the task asks, in a line."""
    tested_on: SetName
    """Folder whose test split is predicted."""
    models: tuple[Stage, ...]
    """Trainings whose models are tested; empty: a model has to be given."""
    measures: Literal["density", "gap"] = "density"
    """Errors of densities (and iterations saved), or band gaps against experiment."""


TASKS: dict[str, EcdTask] = {
    task.name: task
    for task in (
        EcdTask("PBE-id", "trained on PBE densities, tested on others", "pbe", (PBE,)),
        EcdTask("MP-id", "a model of other data, tested on PBE densities", "pbe", ()),
        EcdTask("HSE-id", "trained on HSE densities alone, tested on others", "hse", (HSE,)),
        EcdTask("PBE_HSE-id", "trained on PBE densities, tested on HSE ones", "hse", (PBE,)),
        EcdTask(
            "PBE_HSE_tuning-id",
            "trained on PBE densities, fine-tuned on 25 … 100 % of the HSE ones",
            "hse",
            TUNED,
        ),
        EcdTask(
            "EXP-id",
            "band gaps from predicted densities, against experiment",
            "hse",
            (PBE, TUNED[-1]),
            "gap",
        ),
        EcdTask("OOD-id", "trained on PBE densities, tested on other chemistry", "gnome", (PBE,)),
    )
}
"""By name."""
