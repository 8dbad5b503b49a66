"""A ledger keeps the hours that were promised when a machine's zone data is renewed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import SecretStr

from billing.errors import PriceBookError
from billing.price_book import PriceBook
from billing.price_book_file import parse_price_book
from billing.server import start_billing
from billing.settings import BillingSettings
from billing.usage import UsageEvent
from kvtier.tls import SecuritySettings
from kvtier.v1 import usage_pb2, usage_pb2_grpc
from tests.unit.billing.price_books import HEAD, NIGHT, PRICE

BOOK = HEAD + NIGHT + PRICE + '[[versions.prices.windows]]\nwindow = "night"\ntimes = "0.5"\n'


async def test_a_version_that_was_used_stays_as_it_was_promised(
    open_till: Any, usage_event: Callable[..., UsageEvent], tmp_path: Path, database_url: str
) -> None:
    # As a machine with other zone data read the same file: 08:00 UTC is in its night.
    (version,) = parse_price_book(BOOK, "b").versions
    moved = replace(version, calendars=(replace(version.calendars[0], offsets=((0, 15 * 3600),)),))
    till = open_till(PriceBook((moved,)))
    event = usage_event("a", hit=0, miss=2_000_000, output=0)
    till.record(event)
    till.close()
    with pytest.raises(PriceBookError, match="has changed since"):
        open_till(PriceBook((version,)))

    book = tmp_path / "book.toml"
    book.write_text(BOOK)
    billing = await start_billing(
        BillingSettings(
            listen="127.0.0.1:0",
            data_directory=tmp_path / "ledger",
            database_url=SecretStr(database_url),
            price_book=book,
            security=SecuritySettings(development=True),
        )
    )
    async with grpc.aio.insecure_channel(billing.listen) as channel:
        stub: Any = usage_pb2_grpc.UsageServiceStub(channel)
        request = usage_pb2.RateUsageRequest(
            model="m", tokens=usage_pb2.TokenUsage(prompt_tokens=10**6, miss_tokens=10**6)
        )
        request.end_time.FromNanoseconds(event.end_time_ns or 0)
        rated = await stub.RateUsage(request)
        assert (rated.amount, rated.lines[0].rule) == ("0.5", "window night")
        found = await stub.VerifyLedger(usage_pb2.VerifyLedgerRequest())
        assert found.verified, found.problem
    await billing.drain()
