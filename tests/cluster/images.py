"""Images for the tests: those of the Dockerfile, on the base image that it names.

Where that cannot be pulled, a base image of the same name is made of Debian's packages, with the
pinned wheels in it, which this machine's pip fetches: containers then need no way to an index. So
what is tested is the Dockerfile and what it makes, and not the base image of others.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cluster.engine import Engine, EngineMissingError, run

__all__ = ["MARK", "ROOT", "debian_image", "make_base_image"]

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = "bookworm"
PACKAGES = "python3,python3-venv,ca-certificates,libcurl4,libibverbs1,libnuma1"
"""What the base image has, and what the Dockerfile installs."""

MARK = "kvtier.stand-in"
"""Label of an image that was made here: what it is made of."""

_FROM = re.compile(r"^FROM (\S+) AS ", re.MULTILINE)

STAND_IN = f"""\
FROM {{rootfs}}
# With nothing to fetch, apt finds what the Dockerfile asks for installed.
RUN ln -sf python3 /usr/bin/python && rm -rf /etc/apt/sources.list*
COPY wheels /wheels
ENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels
LABEL {MARK}={{pins}}
"""


def make_base_image(engine: Engine, directory: Path) -> str:
    """Sees to it that the engine has the Dockerfile's base image; its name. Raises
    EngineMissingError where it can neither be pulled nor made."""
    name = base_image_name()
    if _usable(engine, name):
        return name
    try:
        engine.docker("pull", "--quiet", name, seconds_max=300.0)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as unpulled:
        try:
            _stand_in(engine, name, directory)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            why = f"{name} can neither be pulled ({unpulled}) nor made ({error})"
            raise EngineMissingError(why) from error
    return name


def base_image_name() -> str:
    """What the Dockerfile begins from."""
    found: list[str] = _FROM.findall((ROOT / "Dockerfile").read_text())
    names = {name for name in found if ":" in name}
    assert len(names) == 1, f"one base image is known here, not {names}"
    return names.pop()


def _usable(engine: Engine, name: str) -> bool:
    label = '{{index .Config.Labels "' + MARK + '"}}'
    said = engine.docker("image", "inspect", "--format", label, name, check=False)
    images = engine.docker("image", "ls", "--quiet", name)
    return bool(images) and said in ("", "<no value>", _pins())


def _pins() -> str:
    """Changes with what is to be in the wheels."""
    digest = hashlib.sha256()
    for name in ("constraints.txt", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    digest.update(PACKAGES.encode())
    return digest.hexdigest()


def _stand_in(engine: Engine, name: str, directory: Path) -> None:
    context = directory / "base"
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir(parents=True)
    plain = debian_image(engine, directory, PACKAGES)
    _fetch_wheels(context / "wheels")
    (context / "Dockerfile").write_text(STAND_IN.format(rootfs=plain, pins=_pins()))
    engine.docker("build", "--quiet", "--tag", name, str(context), seconds_max=600.0)
    shutil.rmtree(context)


def debian_image(engine: Engine, directory: Path, packages: str) -> str:
    """An image of Debian with these packages, separated by commas; its name. Raises
    EngineMissingError, CalledProcessError, TimeoutExpired."""
    if shutil.which("debootstrap") is None:
        raise EngineMissingError("images cannot be pulled and debootstrap is not installed")
    mark = hashlib.sha256(packages.encode()).hexdigest()[:12]
    name = f"kvtier-test-debian:{mark}"
    if engine.docker("image", "ls", "--quiet", name):
        return name
    rootfs = directory / f"rootfs-{mark}"
    shutil.rmtree(rootfs, ignore_errors=True)
    command = ("debootstrap", "--variant=minbase", f"--include={packages}", DEBIAN, str(rootfs))
    run(*command, seconds_max=1200.0)
    with subprocess.Popen(["tar", "-C", str(rootfs), "-c", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run(
            ["docker", "import", "-", name],
            stdin=tar.stdout,
            env={**os.environ, **engine.env},
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=600,
        )
    shutil.rmtree(rootfs)
    return name


def _fetch_wheels(into: Path) -> None:
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(into))
    pins = ("--constraint", str(ROOT / "constraints.txt"))
    wanted = ("torch==2.13.0", f"{ROOT}[worker,postgres,shared,mooncake]", "hatchling")
    run(*pip, *pins, *wanted, seconds_max=1200.0)
