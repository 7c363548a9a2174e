"""Tables of the tasks: a row a model, mean and spread over structures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eac_ase.ecd.measure import Spread
from eac_ase.ecd.tasks import EcdTask


def summary(task: EcdTask, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Figures of every model.

    Parameters
    ----------
    task
        Says what was measured.
    rows
        Figures of every structure.

    Returns
    -------
    list of dict
        Of densities: ``nmae_percent`` (mean of the structures' ε_mae), ``achieved_ratio`` and
        ``optimal_ratio`` (iterations over those of the default start). Of gaps: ``mae_ev`` of
        predicted and of self-consistent ones against experiment, ``mae_to_converged_ev``.
        Mean, deviation, largest and count each.
    """
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        all_of_model = [row for row in rows if row["model"] == model]
        of_model = [row for row in all_of_model if "error" not in row]
        figures = _gaps(of_model) if task.measures == "gap" else _densities(of_model)
        kept = {name: vars(spread) for name, spread in figures.items() if spread is not None}
        extra = {}
        if task.measures == "gap":
            extra = {
                "functional": of_model[0]["functional"],
                "unseen": None
                if of_model[0]["seen"] is None
                else sum(not row["seen"] for row in of_model),
            }
        counts = {
            "failed": sum("achieved" in row and row["achieved"] is None for row in of_model),
            "left_out": len(all_of_model) - len(of_model),
        }
        found.append({"model": model, **kept, **extra, **{k: v for k, v in counts.items() if v}})
    return found


def _densities(rows: Sequence[dict[str, Any]]) -> dict[str, Spread | None]:
    begun = [row for row in rows if "achieved" in row]
    converged = [row for row in begun if row["achieved"] is not None]
    return {
        "nmae_percent": Spread.of([row["nmae_percent"] for row in rows]),
        "achieved_ratio": Spread.of([row["achieved"] / row["default"] for row in converged]),
        "optimal_ratio": Spread.of(
            [row["optimal"] / row["default"] for row in begun if row["optimal"] is not None]
        ),
    }


def _gaps(rows: Sequence[dict[str, Any]]) -> dict[str, Spread | None]:
    return {
        "mae_ev": Spread.of([abs(row["predicted"] - row["measured"]) for row in rows]),
        "converged_mae_ev": Spread.of([abs(row["converged"] - row["measured"]) for row in rows]),
        "mae_to_converged_ev": Spread.of(
            [abs(row["predicted"] - row["converged"]) for row in rows]
        ),
    }


def table(contents: Sequence[dict[str, Any]]) -> str:
    """Markdown of one or several tasks (contents of their JSON files)."""
    densities, gaps = [], []
    for content in contents:
        facts = {model["model"]: model for model in content["models"]}
        for row in content["rows"]:
            seen = facts[row["model"]]["training"].get("structures", "–")
            start = f"| {content['task']} | {row['model']} | {seen} "
            if "mae_ev" in row:
                gaps.append(
                    f"{start}| {row['functional']} | {_materials(row)} | "
                    f"{_text(row, 'mae_ev')} | {_text(row, 'converged_mae_ev')} | "
                    f"{_text(row, 'mae_to_converged_ev')} |"
                )
            else:
                densities.append(
                    f"{start}| {content['tested_on']}, {row['nmae_percent']['count']}"
                    f"{_left_out(row)} | "
                    f"{_text(row, 'nmae_percent', '.2f')} | {_text(row, 'achieved_ratio')} | "
                    f"{_text(row, 'optimal_ratio')} | {_converged(row)} |"
                )
    lines = []
    if densities:
        lines += [
            "| task | model | trained on | tested on | ε_mae / % | achieved ratio | optimal ratio "
            "| converged |",
            "|---|---|---|---|---|---|---|---|",
            *densities,
        ]
    if gaps:
        lines += [
            *([""] if densities else []),
            "| task | model | trained on | functional | materials (unseen) | MAE of the gap / eV | "
            "self-consistent / eV | predicted − self-consistent / eV |",
            "|---|---|---|---|---|---|---|---|",
            *gaps,
        ]
    return "\n".join(lines) + "\n"


def _text(row: dict[str, Any], name: str, form: str = ".3f") -> str:
    return Spread(**row[name]).text(form) if name in row else "–"


def _materials(row: dict[str, Any]) -> str:
    unseen = "–" if row["unseen"] is None else row["unseen"]
    return f"{row['mae_ev']['count']} ({unseen}){_left_out(row)}"


def _left_out(row: dict[str, Any]) -> str:
    """How many structures could not be measured; the JSON file says why."""
    return f" ({row['left_out']} left out)" if "left_out" in row else ""


def _converged(row: dict[str, Any]) -> str:
    """How many of the structures that were begun from predictions converged."""
    converged = row.get("achieved_ratio", {}).get("count", 0)
    begun = converged + row.get("failed", 0)
    return f"{converged} of {begun}" if begun else "–"
