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

__all__ = ["ROOT", "make_base_image"]

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = "bookworm"
MARK = "kvtier.stand-in"
"""Label of a base image that was made here: the pins that its wheels are of."""

_FROM = re.compile(r"^FROM (\S+) AS ", re.MULTILINE)

STAND_IN = f"""\
FROM {{rootfs}}
RUN ln -sf python3 /usr/bin/python
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
    return digest.hexdigest()


def _stand_in(engine: Engine, name: str, directory: Path) -> None:
    if shutil.which("debootstrap") is None:
        raise EngineMissingError(f"{name} cannot be pulled and debootstrap is not installed")
    context, rootfs = directory / "base", directory / "rootfs"
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir(parents=True)
    if not (rootfs / "usr/bin/python3").exists():
        shutil.rmtree(rootfs, ignore_errors=True)
        packages = "python3,python3-venv,ca-certificates"
        run(
            *("debootstrap", "--variant=minbase", f"--include={packages}", DEBIAN, str(rootfs)),
            seconds_max=1200.0,
        )
    plain = f"{name.split(':')[0]}-debian:{DEBIAN}"
    with subprocess.Popen(["tar", "-C", str(rootfs), "-c", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run(
            ["docker", "import", "-", plain],
            stdin=tar.stdout,
            env={**os.environ, **engine.env},
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=600,
        )
    _fetch_wheels(context / "wheels")
    (context / "Dockerfile").write_text(STAND_IN.format(rootfs=plain, pins=_pins()))
    engine.docker("build", "--quiet", "--tag", name, str(context), seconds_max=600.0)
    shutil.rmtree(context)


def _fetch_wheels(into: Path) -> None:
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(into))
    pins = ("--constraint", str(ROOT / "constraints.txt"))
    wanted = ("torch==2.13.0", f"{ROOT}[worker,postgres]", "hatchling")
    run(*pip, *pins, *wanted, seconds_max=1200.0)
