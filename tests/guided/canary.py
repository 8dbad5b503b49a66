"""A fault that only a fuzzer guided by coverage finds in seconds: three bytes in a row."""

import atheris

from tests.guided.running import fuzz


@atheris.instrument_func
def one_input(data: bytes) -> None:
    """Raises for inputs that begin with `kvt`."""
    if data[:1] == b"k" and data[1:2] == b"v":
        assert data[2:3] != b"t", "found"


if __name__ == "__main__":
    fuzz(one_input)
