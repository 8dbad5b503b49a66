from decimal import Decimal
from pathlib import Path

import pytest

from billing.errors import PriceBookError
from billing.price_book import PriceBook, version_from_text
from billing.price_book_file import load_price_book, parse_price_book
from billing.price_card import Selection

JANUARY_15 = 1_799_971_200 * 10**9


def test_the_events_time_picks_the_version(book: PriceBook) -> None:
    def name(time_ns: int) -> str | None:
        version = book.version_at(time_ns)
        return version.name if version else None

    assert name(0) is None
    assert name(JANUARY_15 - 1) == "first"
    assert name(JANUARY_15) == "second"
    assert name(JANUARY_15 * 2) == "second"


def test_the_first_pattern_that_fits_holds(book: PriceBook) -> None:
    first = book.versions[0]
    for model, miss in (("big-1", "4"), ("big-", "4"), ("small", "1"), ("a big-1", "1")):
        card = first.card_of(model)
        assert card is not None
        assert card.rates(Selection())["miss"] == Decimal(miss)


def test_a_pattern_takes_letters_as_they_are() -> None:
    text = _book(model='"m.[1]?"')
    version = parse_price_book(text, "b").versions[0]
    assert version.card_of("m.[1]x") is not None
    assert version.card_of("m.1x") is None
    assert version.card_of("mx[1]x") is None


def test_a_model_without_a_price_has_no_version() -> None:
    book = parse_price_book(_book(model='"only"'), "b")
    assert book.version_for(JANUARY_15, "only") is book.versions[0]
    assert book.version_for(JANUARY_15, "other") is None


def test_a_version_is_the_same_after_being_stored(book: PriceBook) -> None:
    for version in book.versions:
        stored = version_from_text(version.text)
        assert stored == version
        assert stored.id == version.id


def test_any_change_of_a_version_changes_its_name_in_the_ledger(book_text: str) -> None:
    def id_of(text: str) -> str:
        return parse_price_book(text, "b").versions[0].id

    original = id_of(book_text)
    assert id_of(book_text.replace('"0.5"', '"0.50"')) == original
    for change in (('"0.5"', '"0.51"'), ('"first"', '"1st"'), ("CNY", "USD"), ("big-*", "big*")):
        assert id_of(book_text.replace(*change)) != original


def test_the_book_that_ships_is_an_example_and_says_so() -> None:
    version = load_price_book(None).versions[0]
    card = version.card_of("any model")
    assert card is not None
    rates = card.rates(Selection())
    assert rates == {"hit": Decimal("0.1"), "miss": Decimal(1), "output": Decimal(2)}
    assert version.currency == "CNY"
    assert "EXAMPLE" in version.source


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PriceBookError, match=r"no\.toml"):
        load_price_book(tmp_path / "no.toml")


@pytest.mark.parametrize(
    ("changes", "line", "words"),
    [
        ({"hit": "0.1"}, 10, ["versions[1].prices[1].hit", "float", '"0.1"']),
        ({"hit": "1"}, 10, ["hit", "as text"]),
        ({"miss": '"-1"'}, 11, ["miss", "not a price"]),
        ({"output": '"1e2"'}, 12, ["output", "not a price"]),
        ({"model": '""'}, 9, ["model"]),
        ({"currency": '"yuan"'}, 5, ["currency", "ISO 4217"]),
        ({"effective_time": "2025-01-01"}, 4, ["effective_time", "zone"]),
        ({"effective_time": "2025-01-01T00:00:00"}, 4, ["effective_time", "zone"]),
        ({"effective_time": '"2025-01-01T00:00:00Z"'}, 4, ["effective_time"]),
        ({"invoice_decimals": "13"}, 6, ["invoice_decimals"]),
        ({"invoice_decimals": "true"}, 6, ["invoice_decimals"]),
        ({"hitt": '"1"'}, 13, ["hitt", "is not a key here"]),
    ],
)
def test_a_problem_names_file_line_and_key(
    changes: dict[str, str], line: int, words: list[str]
) -> None:
    with pytest.raises(PriceBookError) as problem:
        parse_price_book(_book(**changes), "prices.toml")
    assert f"prices.toml:{line}: " in str(problem.value)
    for word in words:
        assert word in str(problem.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(PriceBookError) as problem:
        parse_price_book(_book(hit="0.1", miss="1.5", currency='"x"'), "prices.toml")
    assert str(problem.value).count("prices.toml:") == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "format = 1",
        "format = 2\nversions = []",
        "format = 1\nversions = 3",
        "format = 1\n[a",
        "versions = " + "[" * 100_000,
    ],
    ids=range(6),
)
def test_a_file_that_is_no_book_is_refused(text: str) -> None:
    with pytest.raises(PriceBookError, match=r"prices\.toml"):
        parse_price_book(text, "prices.toml")


def test_versions_must_be_in_order_and_have_names_of_their_own(book_text: str) -> None:
    swapped = book_text.replace("2027-01-15", "2024-01-15")
    with pytest.raises(PriceBookError, match="later than"):
        parse_price_book(swapped, "b")
    twins = book_text.replace('"second"', '"first"')
    with pytest.raises(PriceBookError, match="used twice"):
        parse_price_book(twins, "b")


def test_a_price_behind_a_star_is_never_reached_and_refused() -> None:
    text = _book() + '[[versions.prices]]\nmodel = "x"\nhit = "1"\nmiss = "1"\noutput = "1"\n'
    with pytest.raises(PriceBookError, match=r"b:14: .*never reached"):
        parse_price_book(text, "b")


def _book(**changes: str) -> str:
    version = {
        "name": '"v"',
        "effective_time": "2025-01-01T00:00:00Z",
        "currency": '"CNY"',
        "invoice_decimals": "6",
        "source": '"s"',
    }
    price = {"model": '"*"', "hit": '"0.1"', "miss": '"1"', "output": '"2"'}
    version |= {key: changes.pop(key) for key in list(changes) if key in version}
    lines = ["format = 1", "[[versions]]"]
    lines += [f"{key} = {value}" for key, value in version.items()]
    lines.append("[[versions.prices]]")
    lines += [f"{key} = {value}" for key, value in (price | changes).items()]
    return "\n".join(lines) + "\n"
