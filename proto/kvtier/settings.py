"""One frozen settings object per process, in layers: defaults < TOML < environment < flags.

A room declares pydantic models (frozen, extra="forbid") with `SettingsModel` as base; `load` builds
the outermost one. Unknown keys, bad units and impossible pairs end in one `SettingsError` that
lists all of them. Sizes are written "512MiB" (`ByteSize`), durations as seconds (float).

    KVTIER_CACHE_SSD__CAPACITY_BYTES=2GiB      environment: prefix, then keys joined by "__"
    --set ssd.capacity_bytes=2GiB              command line: keys joined by "."
    --config FILE                              TOML: tables and keys

Read once at start, on the main thread; nothing below reads the environment.
"""

import argparse
import json
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from kvtier.errors import KvtierError

__all__ = [
    "ListenAddress",
    "OptionalAddress",
    "OptionalListenAddress",
    "Seconds",
    "SettingsError",
    "SettingsModel",
    "load",
    "parse_command_line",
]


class SettingsError(KvtierError):
    """The settings are not usable; the message lists every problem."""

    reason = "INVALID_SETTINGS"


class SettingsModel(BaseModel):
    """Base of every settings model: frozen, no unknown keys, defaults checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


Model = TypeVar("Model", bound=SettingsModel)


def _host_and_port(address: str) -> str:
    # gRPC takes a port past 65535 for another one, and a path for a socket to replace.
    host, _, port = address.rpartition(":")
    numeric = port.isascii() and port.isdigit()
    if not host or not numeric or int(port) > 65535 or any(c.isspace() for c in address):
        raise ValueError(f"write it as HOST:PORT, not {address!r}")
    return address


def _host_and_port_or_none(address: str) -> str:
    return _host_and_port(address) if address else address


ListenAddress = Annotated[str, AfterValidator(_host_and_port)]
"""Where a server listens, as "HOST:PORT"; port 0 takes a free one."""

OptionalListenAddress = Annotated[str, AfterValidator(_host_and_port_or_none)]
"""The same; empty for none."""

OptionalAddress = Annotated[str, Field(pattern=r"^(\S+:\S+)?$")]
"""Of a service to call; empty for none."""

Seconds = Annotated[float, Field(gt=0, le=86_400)]
"""A duration that a process can really wait for."""


def load(
    model: type[Model],
    *,
    env_prefix: str,
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> tuple[Model, dict[str, str]]:
    """Builds `model`; also returns where each set key came from, for `--print-config`.

    `env_prefix` as "KVTIER_CACHE_"; `overrides` as "ssd.capacity_bytes=2GiB". Raises SettingsError.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if config_file is not None:
        _merge(values, sources, _flatten(_read_toml(config_file)), str(config_file))
    for name in sorted(environment):
        if name.startswith(env_prefix):
            key = name.removeprefix(env_prefix).lower().replace("__", ".")
            _merge(values, sources, {key: environment[name]}, f"environment {name}")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise SettingsError(f"--set {override}: write it as key=value")
        _merge(values, sources, {key.strip(): text}, "command line")
    try:
        return model.model_validate(_nest(values)), sources
    except ValidationError as error:
        raise SettingsError(_explain(error, sources)) from None


def parse_command_line(
    model: type[Model],
    *,
    program: str,
    description: str,
    env_prefix: str,
    argv: Sequence[str] | None = None,
) -> Model:
    """`--config FILE`, `--set key=value`, `--print-config`; bad settings end with exit status 2."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="one setting, for example ssd.capacity_bytes=2GiB; may be repeated",
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="show every setting and where its value comes from, then exit",
    )
    arguments = parser.parse_args(argv)
    try:
        settings, sources = load(
            model,
            env_prefix=env_prefix,
            config_file=arguments.config,
            overrides=arguments.overrides,
        )
    except SettingsError as error:
        print(f"{program}: {error.reason}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if arguments.print_config:
        for key, value in _flatten(settings.model_dump(mode="json")).items():
            print(f"{key} = {json.dumps(value)}    # {sources.get(key, 'default')}")
        raise SystemExit(0)
    return settings


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from None
    except RecursionError:
        raise SettingsError(f"{path} is not usable TOML: it is nested too deeply") from None


def _merge(
    values: dict[str, Any], sources: dict[str, str], layer: Mapping[str, Any], source: str
) -> None:
    for key, value in layer.items():
        values[key] = value
        sources[key] = source


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            below = node.setdefault(parent, {})
            if not isinstance(below, dict):
                raise SettingsError(f"{key}: {parent} has a value of its own already")
            node = below
        node[leaf] = value
    return tree


_WORDS = {
    "extra_forbidden": "there is no such setting; --print-config lists all of them",
    "missing": "has no default and must be set",
    "byte_size": "write a size from 0 up, such as 512MiB, 200GB or 4096",
    "byte_size_unit": "write a size from 0 up, such as 512MiB, 200GB or 4096",
}
"""For what pydantic says in words of its own world."""


def _explain(error: ValidationError, sources: Mapping[str, str]) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        source = next((sources[k] for k in sources if k == key or k.startswith(f"{key}.")), "")
        where = f" ({source})" if source else ""
        said = _WORDS.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        if problem["type"].startswith("byte_size"):
            said += f", not {problem['input']!r}"
        lines.append(f"  {key or 'settings'}{where}: {said}")
    return "the settings are not usable:\n" + "\n".join(lines)
