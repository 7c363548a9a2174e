"""Which program wrote a checkpoint, and what model card goes with it."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from pathlib import Path

from ase.data import chemical_symbols

from eac_model.checkpoint import ModelCard
from eac_model.data.sample import Provenance
from eac_model.errors import ConfigurationError, ModelFileError
from eac_model.imports.charge3net import CUTOFF, import_charge3net, state_of
from eac_model.imports.eac_net import import_eac_net
from eac_model.imports.torch_file import read_torch_file
from eac_model.network import DensityNetwork

_EAC_NET = "X. Qin, T. Lv, Z. Zhong, J. Chem. Theory Comput. (2026), doi:10.1021/acs.jctc.6c00283"
_CHARGE3NET = (
    "T. Koker, K. Quigley, E. Taw, K. Tibbetts, L. Li, npj Comput. Mater. 10, 161 (2024), "
    "doi:10.1038/s41524-024-01343-1"
)


def import_model(
    path: str | Path,
    *,
    elements: Sequence[int] | None = None,
    name: str | None = None,
    functional: str = "unknown",
    cutoff: float = CUTOFF,
) -> tuple[DensityNetwork, ModelCard]:
    """Turn a checkpoint of another program into a model of this one.

    Parameters
    ----------
    path
        ``.pt`` file of the EAC-Net authors' code or of ChargE3Net. It is read without executing
        anything in it.
    elements
        Atomic numbers (1 … 118) the model is to know; all the checkpoint has if None.
    name
        Name on the card; that of the file if None.
    functional
        What the training data were computed with: ``"PBE"``. Neither program writes it.
    cutoff
        Å. ChargE3Net does not write it; EAC-Net does, and this is ignored.

    Returns
    -------
    network, card
        In float32, ready for :func:`eac_model.checkpoint.save_model`.

    Raises
    ------
    ModelFileError
        The file cannot be read without executing code in it, is of an unknown program, or of a
        network that has no counterpart here; or it does not know the elements.
    ConfigurationError
        Elements or cutoff mean nothing.
    """
    if elements is not None:
        try:
            elements = sorted({operator.index(number) for number in elements})
        except (TypeError, ValueError):
            elements = []
        if not elements or elements[0] < 1 or elements[-1] > 118:
            raise ConfigurationError("elements: atomic numbers from 1 to 118, as in [1, 8].")
    if not (math.isfinite(cutoff) and cutoff > 0):
        raise ConfigurationError(f"cutoff: a positive distance in Å, not {cutoff}.")
    content = read_torch_file(path)
    state = state_of(content)
    network: DensityNetwork
    if state is not None:
        network, program, citation = (
            import_charge3net(state, elements, cutoff),
            "ChargE3Net",
            _CHARGE3NET,
        )
    elif "settings" in content and "model_state" in content:
        network, program, citation = import_eac_net(content, elements), "EAC-Net", _EAC_NET
    else:
        found = ", ".join(map(str, list(content)[:8])) or "nothing"
        raise ModelFileError(
            f"{path} is no checkpoint of EAC-Net (settings, model_state) or ChargE3Net (model with "
            f"probe_model.readout): it holds {found}."
        )
    broken = [key for key, value in network.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise ModelFileError(f"{path} has weights that are no finite numbers ({broken[0]}).")
    card = ModelCard(
        name=name or Path(path).stem,
        summary=f"Imported from a checkpoint of the {program} authors' code.",
        elements=tuple(chemical_symbols[z] for z in network.config.elements),
        # Both programs learn from CHGCARs.
        provenance=Provenance(code="VASP", functional=functional, density_kind="valence"),
        citation=citation,
    )
    return network, card
