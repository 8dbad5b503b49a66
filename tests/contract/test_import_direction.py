"""Rooms know only the rooms below them, and no room's private names."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ALLOWED = {
    "kvtier": {"kvtier"},
    "storage": {"storage", "kvtier"},
    "journal": {"journal", "kvtier"},
    "cache_service": {"cache_service", "storage", "journal", "kvtier"},
    "worker": {"worker", "journal", "kvtier"},
    "billing": {"billing", "kvtier"},
    "gateway": {"gateway", "kvtier"},
}
HEAVY = {"torch", "transformers", "numba", "llvmlite"}
FOLDERS = {name: ROOT / ("proto/kvtier" if name == "kvtier" else name) for name in ALLOWED}


def sources(room: str) -> list[Path]:
    return [p for p in FOLDERS[room].rglob("*.py") if "_pb2" not in p.name]


def imports(path: Path) -> Iterator[tuple[str, list[str], int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, [], node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module or "", [alias.name for alias in node.names], node.lineno


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_room_imports_only_what_lies_below_it(room: str) -> None:
    files = sources(room)
    assert files
    for path in files:
        for module, names, line in imports(path):
            top = module.split(".")[0]
            if top in ALLOWED:
                assert top in ALLOWED[room], f"{path}:{line} imports {module}"
            if top in ALLOWED and top != room:
                private = [n for n in [*module.split("."), *names] if n.startswith("_")]
                assert not private, f"{path}:{line} takes a private name of {top}: {private}"


def test_proto_is_a_source_root_and_never_a_package() -> None:
    assert not (ROOT / "proto" / "__init__.py").exists()


@pytest.mark.parametrize(
    "room", ["storage", "cache_service", "billing", "gateway", "journal", "kvtier"]
)
def test_room_does_without_torch(room: str) -> None:
    for path in sources(room):
        for module, _, line in imports(path):
            assert module.split(".")[0] not in HEAVY, f"{path}:{line}"
