"""Errors of on-site data on left-out structures, block by block, with the descriptors of a model.

    python benchmarks/occupancies.py MODEL [MODEL ...] --frames data/water/*.h5 --left-out 5 0

Takes the descriptors of a model as they are, fits its readouts to all frames but one, and compares
on that one. MODEL k should not have been trained on frame k of `--left-out` (one model for all
will do if it has seen none of the frames, as a model of another code).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from runs import RESULTS, WATER, expand
from torch import Tensor

from eac_model.checkpoint import load_model
from eac_model.data.readers import read_density
from eac_model.files import write_bytes
from eac_model.neighbors import atom_graph
from eac_model.training.data import onsite_rows

NOWHERE = np.empty(0, dtype=np.int64)


def main() -> None:
    options = _options()
    frames = expand([str(frame) for frame in options.frames])
    models = options.models * (len(options.left_out) if len(options.models) == 1 else 1)
    if len(models) != len(options.left_out):
        raise SystemExit("Give one model for each frame of --left-out, or one for all.")
    found = {
        Path(frames[left_out]).stem: errors(model, frames, left_out)
        for model, left_out in zip(models, options.left_out, strict=True)
    }
    write_bytes(options.output, table(found).encode())
    print(table(found))


def errors(model: Path, frames: list[str], left_out: int) -> dict[str, float]:
    """Root mean square error by block, in percent of the spread over the other frames' atoms."""
    network, _ = load_model(model)
    head = network.onsite
    if head is None or network.config.spin:
        raise SystemExit(f"{model} has no on-site data of spin-paired densities.")
    samples = [read_density(frame).select(NOWHERE) for frame in frames]
    examples: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    with torch.no_grad():
        for sample in samples:
            graph = atom_graph(sample.atoms, network.config.atom_cutoff, network.dtype)
            rows = torch.as_tensor(onsite_rows(head.layout, sample)[0], dtype=network.dtype)
            found = network.descriptors(graph)
            averages = network.spherical_averages(found, graph)
            examples.append((found, averages, graph.numbers, rows))
        head.fit(sample for index, sample in enumerate(samples) if index != left_out)
        head.regress(example for index, example in enumerate(examples) if index != left_out)
        descriptors, averages, numbers, rows = examples[left_out]
        deviation = head(descriptors, averages, numbers) - rows.nan_to_num()
        squares = head.block_errors(deviation, numbers).square().nanmean(dim=0)
    return dict(zip(head.block_names(), (100 * squares.sqrt()).tolist(), strict=True))


def table(found: dict[str, dict[str, float]]) -> str:
    """Blocks down, left-out frames across."""
    columns = list(found.values())
    lines = [
        "# On-site data of left-out frames",
        "",
        "Root mean square error in percent of the block's spread over the training frames; written "
        "by `benchmarks/occupancies.py`.",
        "",
        f"| block | {' | '.join(f'frame {name}' for name in found)} |",
        "| --- |" + " ---: |" * len(found),
    ]
    blocks = list(columns[0])
    lines += [_row(block, [column[block] for column in columns]) for block in blocks]
    scalars = [block for block in blocks if block.endswith("L=0")]
    for title, chosen in (("**mean**", blocks), ("**mean of L = 0**", scalars)):
        lines.append(_row(title, [mean(column[b] for b in chosen) for column in columns]))
    return "\n".join(lines) + "\n"


def _row(title: str, percents: list[float]) -> str:
    return f"| {title} | {' | '.join(f'{percent:.1f}' for percent in percents)} |"


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("models", nargs="+", type=Path, help="model files with on-site data")
    options.add_argument("--frames", nargs="+", default=[str(WATER)], help="files or globs")
    options.add_argument("--left-out", nargs="+", type=int, default=[5], help="numbers of frames")
    options.add_argument("--output", type=Path, default=RESULTS / "occupancies.md")
    return options.parse_args()


if __name__ == "__main__":
    main()
