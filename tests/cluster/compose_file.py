"""What docker-compose.yml says: tests go over its services, so that none is forgotten."""

from typing import Any

import yaml

from tests.cluster.images import ROOT

__all__ = ["CPU_SERVICES", "LONG_RUNNING", "RUN_ONCE", "SERVICES"]

SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())[
    "services"
]

CPU_SERVICES = sorted(
    name for name, said in SERVICES.items() if "cpu" in said.get("profiles", ["cpu"])
)
"""Those that start without a GPU."""

RUN_ONCE = [name for name in CPU_SERVICES if SERVICES[name].get("restart") == "no"]
"""They prepare something for the others and end."""

LONG_RUNNING = [name for name in CPU_SERVICES if name not in RUN_ONCE]
