from decimal import Decimal, Inexact

import pytest

from billing.money import EXACT, amount_of, parse_price, round_line, to_text


@pytest.mark.parametrize("text", ["0", "0.1", "1", "2.50", "999999999999.999999999999"])
def test_a_plain_decimal_is_a_price(text: str) -> None:
    assert parse_price(text) == Decimal(text)


@pytest.mark.parametrize("text", ["", "-1", "+1", "1e3", ".5", "1.", "01", "NaN", "1,5", " 1", "٣"])
def test_anything_else_is_no_price_and_the_problem_quotes_it(text: str) -> None:
    with pytest.raises(ValueError, match="is not a price") as problem:
        parse_price(text)
    assert f'"{text}"' in str(problem.value)


def test_an_amount_keeps_every_digit() -> None:
    price = Decimal("999999999999.999999999999")
    assert to_text(amount_of(10**10, price)) == "9999999999999999.99999999"
    assert to_text(amount_of(1, price)) == "999999.999999999999999999"
    assert to_text(amount_of(1, Decimal("0.1"))) == "0.0000001"


def test_exact_arithmetic_refuses_to_lose_a_digit() -> None:
    with pytest.raises(Inexact):
        EXACT.divide(Decimal(1), Decimal(3))


@pytest.mark.parametrize(
    ("amount", "rounded"),
    [("0.0000005", "0.000000"), ("0.0000015", "0.000002"), ("0.00000150001", "0.000002")],
)
def test_a_line_is_rounded_half_to_even(amount: str, rounded: str) -> None:
    assert format(round_line(Decimal(amount), 6), "f") == rounded


def test_rounding_never_gives_a_negative_zero() -> None:
    assert format(round_line(Decimal("-0.0000001"), 6), "f") == "0.000000"


@pytest.mark.parametrize(
    ("amount", "text"), [("1E+3", "1000"), ("-0", "0"), ("1.2300", "1.23"), ("100", "100")]
)
def test_text_is_canonical(amount: str, text: str) -> None:
    assert to_text(Decimal(amount)) == text
