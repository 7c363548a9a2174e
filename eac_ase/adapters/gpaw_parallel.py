"""One prediction for all processes that share a calculation."""

from __future__ import annotations

from typing import Any

from ase import Atoms

from eac_ase.adapters.gpaw_state import DensityModel, PawState, predict_state
from eac_model.lattice import Shape


def predict_once(model: DensityModel, atoms: Atoms, shape: Shape, comm: Any) -> PawState:
    """:func:`predict_state` on the first process, for all of them.

    Parameters
    ----------
    comm
        GPAW's communicator of the calculation.

    Raises
    ------
    EACError
        As :func:`predict_state`, on every process: none is left waiting.
    """
    from gpaw.mpi import broadcast, broadcast_exception

    state = None
    with broadcast_exception(comm):
        if comm.rank == 0:
            state = predict_state(model, atoms, shape)
    state = broadcast(state, comm=comm)
    assert isinstance(state, PawState)
    return state
