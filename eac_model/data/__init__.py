"""Densities as training and reference data: one sample type, readers, one store, sampling."""

from eac_model.data.chgcar import read_all_electron, read_chgcar, write_chgcar
from eac_model.data.cube import read_cube, write_cube
from eac_model.data.gpw import read_gpw
from eac_model.data.readers import ConversionFailure, ConversionReport, convert, read_density
from eac_model.data.sample import (
    Calculation,
    DensityKind,
    DensitySample,
    FreeAtoms,
    Magnetization,
    PawDataset,
    Provenance,
)
from eac_model.data.sample_file import read_sample, write_sample
from eac_model.data.sampled_h5 import read_sampled_h5
from eac_model.data.sampling import SamplingMap, SamplingMixture, draw_points
from eac_model.data.store import DensityStore, StoreEntry
from eac_model.data.vaspwave import read_vaspwave

__all__ = [
    "Calculation",
    "ConversionFailure",
    "ConversionReport",
    "DensityKind",
    "DensitySample",
    "DensityStore",
    "FreeAtoms",
    "Magnetization",
    "PawDataset",
    "Provenance",
    "SamplingMap",
    "SamplingMixture",
    "StoreEntry",
    "convert",
    "draw_points",
    "read_all_electron",
    "read_chgcar",
    "read_cube",
    "read_density",
    "read_gpw",
    "read_sample",
    "read_sampled_h5",
    "read_vaspwave",
    "write_chgcar",
    "write_cube",
    "write_sample",
]
