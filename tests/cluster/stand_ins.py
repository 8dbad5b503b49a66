"""Stand-ins for other people's images where these cannot be pulled, of Debian's packages.

They run the real PostgreSQL and the real Prometheus under the name, the user and the paths of the
image that docker-compose.yml asks for. Grafana is no package of Debian's: without its image it is
left out, and a test that is skipped says so.
"""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.engine import Engine
from tests.cluster.images import MARK, ROOT, debian_image

__all__ = ["GRAFANA", "make_other_images"]

GRAFANA = "grafana"
PACKAGES = "ca-certificates,postgresql,prometheus"

POSTGRES = """\
FROM {debian}
# The uid of the image that this is for; Debian gives the next that is free.
RUN usermod --uid 999 postgres && install -d -m 3777 -o postgres /var/run/postgresql \\
 && install -d -m 0700 -o postgres /var/lib/postgresql/data
COPY entrypoint.sh /entrypoint.sh
ENV LANG=C.UTF-8
ENV PGDATA=/var/lib/postgresql/data
ENV PATH=/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENTRYPOINT ["sh", "/entrypoint.sh"]
"""

ENTRYPOINT = """\
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" \\
        --auth-local=trust --auth-host=scram-sha-256
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    pg_ctl --wait --options="-c listen_addresses=''" start
    createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl --wait --mode=fast stop
fi
exec postgres -c listen_addresses='*'
"""

PROMETHEUS = """\
FROM {debian}
RUN install -d -o nobody -g nogroup /prometheus
USER nobody
ENTRYPOINT ["/usr/bin/prometheus"]
"""

FILES = {"postgres": POSTGRES, "prometheus": PROMETHEUS}


def make_other_images(engine: Engine, directory: Path) -> set[str]:
    """Sees to it that the engine has what docker-compose.yml names and no Dockerfile here makes.
    The services that have to be left out. Raises EngineMissingError."""
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    left_out = set()
    for name, service in services.items():
        if "build" in service or _there(engine, service["image"], name):
            continue
        if name == GRAFANA:
            left_out.add(name)
        else:
            _make(engine, directory / name, service["image"], name)
    return left_out


def _there(engine: Engine, image: str, service: str) -> bool:
    if engine.docker("image", "ls", "--quiet", image):
        label = '{{index .Config.Labels "' + MARK + '"}}'
        said = engine.docker("image", "inspect", "--format", label, image)
        return said in ("", "<no value>", _mark(service))
    try:
        engine.docker("pull", "--quiet", image, seconds_max=300.0)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return False
    return True


def _mark(service: str) -> str:
    """Changes with what the stand-in is made of."""
    made_of = PACKAGES + FILES.get(service, "") + ENTRYPOINT
    return hashlib.sha256(made_of.encode()).hexdigest()


def _make(engine: Engine, context: Path, image: str, service: str) -> None:
    context.mkdir(parents=True, exist_ok=True)
    debian = debian_image(engine, context.parent, PACKAGES)
    (context / "Dockerfile").write_text(FILES[service].format(debian=debian))
    (context / "entrypoint.sh").write_text(ENTRYPOINT)
    words = ("--label", f"{MARK}={_mark(service)}", "--tag", image)
    engine.docker("build", "--quiet", *words, str(context), seconds_max=600.0)
