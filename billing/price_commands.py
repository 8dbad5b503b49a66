"""`kvtier usage prices`, `rate` and `rerate`: the price book, what it makes of tokens, and what
another one would have made of a period.
"""

from pathlib import Path
from typing import Annotated

import typer

from billing.client import call_billing
from billing.command_line import (
    DEFAULT_ADDRESS,
    Address,
    From,
    JsonOption,
    To,
    console,
    print_json,
)
from billing.command_values import option_text, option_time, set_period
from billing.errors import BillingError, PriceBookError, TermsError
from billing.price_book import PriceBook
from billing.price_book_file import load_price_book
from billing.price_statement import check_data, rate_data, rerate_data
from billing.price_tables import show_check, show_rate, show_rerate
from billing.quote import quote
from billing.rating import Facts
from billing.report import DIMENSIONS
from billing.statement import book_data
from billing.tables import show_book
from billing.terms_file import load_terms
from billing.toml_file import read_text
from billing.wire import end_time_of, quote_message, tokens_of, version_message
from kvtier.v1 import usage_pb2

__all__ = ["add_price_commands"]

RERATE_SECONDS_MAX = 3_600.0

Book = Annotated[Path, typer.Option("--book", help="A price book, TOML.")]


def add_price_commands(app: typer.Typer) -> None:
    app.command(short_help="The price book, or a check of one.")(prices)
    app.command(short_help="What tokens cost, and why.")(rate)
    app.command(short_help="A period under another price book.")(rerate)


def prices(
    check: Annotated[
        Path | None, typer.Option("--check", help="Check this file instead; asks no service.")
    ] = None,
    terms: Annotated[
        Path | None, typer.Option("--terms", help="Check this file of terms too.")
    ] = None,
    json_: JsonOption = False,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """The price book that new events are rated with; or a check of a file before it is used, with
    every problem by file, line and key and exit status 1."""
    if check is not None or terms is not None:
        _check(check, terms, json_)
        return
    request = usage_pb2.GetPriceBookRequest()
    response = call_billing(address, lambda stub, wait: stub.GetPriceBook(request, timeout=wait))
    data = book_data(response)
    if json_:
        print_json(data)
    else:
        show_book(console(), data)


def rate(
    model: Annotated[str, typer.Option(help="The model's name.")],
    hit: Annotated[int, typer.Option(help="Prompt tokens from the cache.")] = 0,
    miss: Annotated[int, typer.Option(help="Prompt tokens computed.")] = 0,
    output: Annotated[int, typer.Option(help="Tokens generated.")] = 0,
    cache_write: Annotated[int, typer.Option(help="Of miss and output, new in the cache.")] = 0,
    ttl: Annotated[str, typer.Option(help="TTL class of these.")] = "",
    service_class: Annotated[str, typer.Option("--class", help="Service class.")] = "",
    at: Annotated[str, typer.Option(help="When the request ended; default now.")] = "",
    book: Annotated[
        Path | None, typer.Option("--book", help="Rate with this file; asks no service.")
    ] = None,
    json_: JsonOption = False,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """What tokens of one request cost, line by line, and which rates and rules made each price."""
    request = usage_pb2.RateUsageRequest(
        model=option_text("--model", model),
        tokens=usage_pb2.TokenUsage(
            prompt_tokens=hit + miss,
            hit_tokens=hit,
            hit_tokens_by_tier=usage_pb2.HitTokensByTier(host=hit),
            miss_tokens=miss,
            completion_tokens=output,
            cache_write_tokens=cache_write,
            cache_write_ttl_class=option_text("--ttl", ttl),
        ),
        service_class=option_text("--class", service_class),
    )
    if at:
        request.end_time.CopyFrom(option_time("--at", at))
    elif book is not None:
        request.end_time.GetCurrentTime()
    if book is not None:
        response = _rated(request, _loaded(book))
    else:
        response = call_billing(address, lambda stub, wait: stub.RateUsage(request, timeout=wait))
    data = rate_data(response)
    if json_:
        print_json(data)
    else:
        show_rate(console(), data)


def rerate(
    book: Book,
    tenant: Annotated[str, typer.Option(help="Only this tenant.")] = "",
    from_: From = "",
    to: To = "",
    by: Annotated[
        str, typer.Option(help=f"Columns to group by, of {', '.join(DIMENSIONS)}.")
    ] = "tenant,model",
    json_: JsonOption = False,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """What the events of a period cost, and would have cost under another book. Changes nothing."""
    group_by = [name.strip() for name in option_text("--by", by).split(",") if name.strip()]
    try:
        text = read_text(book, "price book", PriceBookError)
    except PriceBookError as error:
        raise _failed(error) from None
    request = usage_pb2.RerateUsageRequest(
        tenant_id=option_text("--tenant", tenant),
        group_by=group_by,
        price_book=text,
        price_book_name=str(book),
    )
    set_period(request, from_, to)
    response = call_billing(
        address, lambda stub, wait: stub.RerateUsage(request, timeout=wait), RERATE_SECONDS_MAX
    )
    data = rerate_data(response, group_by)
    if json_:
        print_json(data)
    else:
        show_rerate(console(), data, group_by)


def _check(book: Path | None, terms: Path | None, json_: bool) -> None:
    problems: list[str] = []
    found = None
    try:
        found = load_price_book(book) if book is not None else None
    except PriceBookError as error:
        problems += str(error).splitlines()
    try:
        sheet = load_terms(terms)
    except TermsError as error:
        problems += str(error).splitlines()
        sheet = None
    response = usage_pb2.GetPriceBookResponse(
        versions=map(version_message, found.versions if found is not None else ())
    )
    data = check_data(problems, book_data(response), sheet.terms if sheet is not None else ())
    if json_:
        print_json(data)
    else:
        show_check(console(), data)
    if problems:
        raise typer.Exit(1)


def _loaded(path: Path) -> PriceBook:
    try:
        return load_price_book(path)
    except PriceBookError as error:
        raise _failed(error) from None


def _rated(request: usage_pb2.RateUsageRequest, book: PriceBook) -> usage_pb2.RateUsageResponse:
    try:
        time_ns = end_time_of(request)
        assert time_ns is not None, "it was filled in"
        tokens = tokens_of(request.tokens)
        facts = Facts(request.model, tokens, time_ns, request.service_class)
        return quote_message(quote(book, facts))
    except BillingError as error:
        raise _failed(error) from None


def _failed(error: BillingError) -> typer.Exit:
    typer.echo(f"kvtier usage: {error.reason}: {error}", err=True)
    return typer.Exit(1)
