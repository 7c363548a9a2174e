"""Pages that are generated from the code, so that they cannot fall behind it.

Three directives::

    .. config-fields:: package.module.Model      keys of a pydantic model, from field docstrings
    .. command-help:: predict                    output of ``eac predict --help``
    .. model-cards::                             cards of the bundled models
"""

from __future__ import annotations

import re
import types
from importlib import import_module
from inspect import cleandoc
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sphinx.application import Sphinx

NAMES = {int: "integer", float: "number", bool: "true or false", str: "text", type(None): "null"}
BOUNDS = {
    annotated_types.Ge: ("ge", "≥"),
    annotated_types.Gt: ("gt", ">"),
    annotated_types.Le: ("le", "≤"),
    annotated_types.Lt: ("lt", "<"),
}


def type_text(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """What may be written for a key, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0], (*arguments[1:], *metadata))
    if origin is Literal:
        text = " or ".join(f"``{choice}``" for choice in arguments)
    elif origin in (Union, types.UnionType):
        text = ", or ".join(type_text(argument) for argument in arguments)
    elif origin is tuple:
        text = f"list of {type_text(arguments[0])}"
    elif origin is dict:
        text = f"mapping from {type_text(arguments[0])} to {type_text(arguments[1])}"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        text = f":ref:`mapping <config-{annotation.__name__.lower()}>`"
    else:
        text = NAMES.get(annotation, str(annotation))
    bounds = [
        f"{sign} {getattr(item, name)}"
        for entry in metadata
        for item in (entry.metadata if isinstance(entry, FieldInfo) else (entry,))
        for kind, (name, sign) in BOUNDS.items()
        if isinstance(item, kind)
    ]
    return f"{text} {' and '.join(bounds)}" if bounds else text


def default_text(field: FieldInfo) -> str:
    """The default as it would stand in a YAML file."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        changed = value.model_dump(mode="json", exclude_unset=True)
        text = yaml.safe_dump(changed, default_flow_style=True, width=1000).strip()
        return f"default ``{text}``" if changed else "may be left out"
    if isinstance(value, tuple):
        value = [
            v.model_dump(mode="json", exclude_unset=True) if isinstance(v, BaseModel) else v
            for v in value
        ]
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    return f"default ``{text.removesuffix('...' + chr(10)).strip()}``"


def escape_bars(text: str) -> str:
    """Docstrings write |ρ| for an absolute value; RST would take it for a substitution."""
    parts = re.split("(``.*?``)", text)
    parts[::2] = [re.sub(r"(?<!\\)\|", r"\\|", part) for part in parts[::2]]
    return "".join(parts)


class RSTDirective(Directive):
    """A directive whose content is RST text that it makes up."""

    has_content = False

    def lines(self) -> list[str]:
        """RST source."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """Parse the text where the directive stands."""
        container = nodes.container()
        self.state.nested_parse(StringList(self.lines(), source=self.name), 0, container)
        return container.children


class ConfigFields(RSTDirective):
    """Every key of a pydantic model: type, default, docstring."""

    required_arguments = 1

    def lines(self) -> list[str]:
        """One definition per key, in the order of the source."""
        module, _, name = self.arguments[0].rpartition(".")
        model: type[BaseModel] = getattr(import_module(module), name)
        lines = []
        for key, field in model.model_fields.items():
            if field.description is None:
                raise ValueError(f"{self.arguments[0]}.{key} has no docstring")
            text = escape_bars(cleandoc(field.description))
            kind = type_text(field.annotation, tuple(field.metadata))
            lines += [f"``{key}``"]
            lines += [f"    {kind}; {default_text(field)}"]
            lines += ["", *(f"    {line}" for line in text.splitlines()), ""]
        return lines


class CommandHelp(RSTDirective):
    """Help of a command of ``eac``."""

    optional_arguments = 3

    def lines(self) -> list[str]:
        """A literal block."""
        from typer.testing import CliRunner

        from eac_ase.cli import app

        plain = {"COLUMNS": "88", "TERMINAL_WIDTH": "88", "NO_COLOR": "1", "TERM": "dumb"}
        result = CliRunner().invoke(app, [*self.arguments, "--help"], prog_name="eac", env=plain)
        if result.exit_code:
            raise ValueError(f"eac {' '.join(self.arguments)} --help failed: {result.output}")
        output = [line.rstrip() for line in result.output.strip("\n").splitlines()]
        return ["::", "", *(f"    {line}" for line in output), ""]


class ModelCards(RSTDirective):
    """Cards of the bundled models."""

    def lines(self) -> list[str]:
        """A definition list a model."""
        from eac_model.checkpoint import read_header
        from eac_model.registry import bundled_models, find_model

        lines: list[str] = []
        for name in bundled_models():
            path = find_model(name)
            header = read_header(path)
            config, card = header.config, header.card
            origin = card.provenance
            facts = {
                "Elements": ", ".join(card.elements),
                "Density": origin.density_kind,
                "Reference": " ".join(
                    text for text in (origin.code, origin.functional) if text != "unknown"
                ),
                "PAW data sets": ", ".join(origin.paw_datasets),
                "Spin": "ρ↑ and ρ↓" if config.spin else "total density only",
                "On-site data": config.onsite.code if config.onsite else "",
                "Decoder": config.decoder,
                "Electrons counted": ", ".join(
                    f"{element} {count:g}" for element, count in card.valence_electrons.items()
                ),
                **{
                    key.replace("_", " ").capitalize(): f"{value:.4g}"
                    if isinstance(value, float)
                    else str(value)
                    for key, value in card.training.items()
                    if isinstance(value, int | float | str)
                },
                "Size": f"{header.parameters:,} parameters, {path.stat().st_size / 1e6:.2f} MB",
                "Licence": card.licence,
                "Cite": card.citation,
            }
            lines += [f"**{name}**: {card.summary}", ""]
            lines += [f":{key}: {value}" for key, value in facts.items() if value]
            lines += [""]
            if blocks := card.training.get("validation_onsite_blocks_percent"):
                lines += [".. list-table:: Error of on-site data, left out, in % of their spread"]
                lines += ["   :header-rows: 1", "", "   * - block", "     - %"]
                for block, percent in blocks.items():
                    lines += [f"   * - {block}", f"     - {percent:.1f}"]
                lines += [""]
        return lines or ["This installation holds no bundled model."]


def escape_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Escape the bars of a docstring in place; Sphinx calls it."""
    lines[:] = [escape_bars(line) for line in lines]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.connect("autodoc-process-docstring", escape_docstring)
    # Sphinx 9 stumbles over what numpydoc returns for compiled classes that a module imports.
    for listener in list(app.events.listeners["autodoc-process-signature"]):
        if listener.handler.__module__ == "numpydoc.numpydoc":
            app.disconnect(listener.id)
    app.add_directive("config-fields", ConfigFields)
    app.add_directive("command-help", CommandHelp)
    app.add_directive("model-cards", ModelCards)
    return {"parallel_read_safe": True, "version": "1"}
