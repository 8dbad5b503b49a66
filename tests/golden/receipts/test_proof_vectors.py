"""Digests of a prompt's tokens never change: a receipt must be checked years later.

`KVTIER_REWRITE_GOLDEN=1` writes the file anew; doing so needs a new PROOF_SCHEME.
"""

import json
import os
from pathlib import Path
from typing import Any

from kvtier.keys import NamespaceId
from kvtier.prompt_proof import (
    PROOF_SCHEME,
    commitment,
    namespace_mark,
    prefix_digests,
    proof_key,
    request_salt,
)

FILE = Path(__file__).with_name("proof.json")

SECRET = bytes(range(32))
TOKENS = [0, 1, 2**16, 2**32 - 1, *range(5, 200)]


def compute() -> dict[str, Any]:
    keys = {"/".join(names): proof_key(SECRET, names) for names in (("acme",), ("acme", "ü"))}
    salt = request_salt(keys["acme"], "req-00001")
    counts = [0, 1, 4, 64, 128, len(TOKENS)]
    return {
        "scheme": PROOF_SCHEME,
        "keys": {name: key.hex() for name, key in keys.items()},
        "salt": salt.hex(),
        "commitment": commitment(salt).hex(),
        "namespace_mark": namespace_mark(keys["acme"], NamespaceId(bytes(range(32)))).hex(),
        "digests": {
            str(count): digest.hex()
            for count, digest in zip(counts, prefix_digests(salt, TOKENS, counts), strict=True)
        },
    }


def test_vectors_are_what_they_were() -> None:
    if os.environ.get("KVTIER_REWRITE_GOLDEN"):
        FILE.write_text(json.dumps(compute(), indent=1, sort_keys=True) + "\n")
    assert compute() == json.loads(FILE.read_text())
