"""Rows as a CSV, JSON or Parquet file, with every digit of every decimal.

Parquet has decimals of the width that the file needs: 38 digits, or 76. Pure but for what it is
given to write to.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, TextIO

from kvtier.errors import KvtierError

__all__ = ["ExportError", "parquet_bytes", "write_csv", "write_json"]

Row = Mapping[str, Any]

_DIGITS = (38, 76)
"""Of decimal128 and decimal256."""


class ExportError(KvtierError):
    """A file that cannot hold what it should, or lacks its library. On the command line only."""

    reason = "EXPORT_FAILED"


def write_csv(out: TextIO, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """None is an empty cell."""
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def write_json(out: TextIO, rows: Sequence[Row], **beside: Any) -> None:
    """One object: `rows`, and what is beside them."""
    json.dump({"rows": list(rows), **beside}, out, indent=2, ensure_ascii=False)
    out.write("\n")


def parquet_bytes(
    columns: Mapping[str, type], rows: Sequence[Row], metadata: Mapping[str, str]
) -> bytes:
    """`columns`: str, int, Decimal (text in the rows), date or datetime (ISO text in the rows).

    Raises ExportError without the extra `parquet`, or where a column's decimals take more than 76
    digits.
    """
    try:
        import pyarrow  # an extra, and slow to load
        import pyarrow.parquet
    except ImportError:
        raise ExportError(
            "Parquet needs pyarrow, which the extra has: pip install 'kvtier[parquet]'"
        ) from None
    fields, arrays = [], []
    for name, kind in columns.items():
        values = [_value(kind, row[name]) for row in rows]
        arrow = _decimal_type(pyarrow, name, values) if kind is Decimal else _type(pyarrow, kind)
        fields.append(pyarrow.field(name, arrow))
        arrays.append(pyarrow.array(values, arrow))
    schema = pyarrow.schema(fields, metadata=dict(metadata))
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(arrays, schema=schema), sink, compression="zstd")
    written: bytes = sink.getvalue().to_pybytes()
    return written


def _value(kind: type, text: Any) -> Any:
    if text is None:
        return None
    if kind is Decimal:
        return Decimal(text)
    return kind.fromisoformat(text) if kind in (date, datetime) else text


def _type(pyarrow: Any, kind: type) -> Any:
    kinds = {
        str: pyarrow.string(),
        int: pyarrow.int64(),
        date: pyarrow.date32(),
        datetime: pyarrow.timestamp("us", tz="UTC"),
    }
    return kinds[kind]


def _decimal_type(pyarrow: Any, name: str, values: Sequence[Decimal | None]) -> Any:
    whole = scale = 1
    for value in values:
        if value is not None:
            exponent = value.as_tuple().exponent
            assert isinstance(exponent, int), "amounts are finite"
            scale = max(scale, -exponent)
            whole = max(whole, value.adjusted() + 1)
    for digits in _DIGITS:
        if whole + scale <= digits:
            kind = pyarrow.decimal128 if digits == _DIGITS[0] else pyarrow.decimal256
            return kind(digits, scale)
    raise ExportError(
        f"{name} has decimals of {whole + scale} digits and Parquet holds {_DIGITS[-1]}; choose csv"
        " or json"
    )
