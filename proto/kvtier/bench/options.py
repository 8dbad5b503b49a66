"""Which of a benchmark's options somebody really gave. Pure, but for the context it reads."""

from collections.abc import Mapping
from typing import Any

import typer

__all__ = ["given"]


def given(
    context: typer.Context, fields: Mapping[str, str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Those of `settings` whose option was on the command line; `fields` has the setting of each
    parameter of the command."""
    sources = {name: context.get_parameter_source(name) for name in fields}
    named = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    return {fields[name]: settings[fields[name]] for name in named}
