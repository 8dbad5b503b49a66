"""What terms make of a month's list amounts, line by line."""

from decimal import Decimal

import pytest

from billing.errors import TermsError
from billing.line import LineKey
from billing.settlement import AdjustmentKind, CreditState, Settlement, UsageCharge, settle
from billing.terms import Terms, TermsSheet
from billing.terms_file import parse_terms

HEAD = """format = 1
[[terms]]
name = "contract"
tenant = "acme"
from = 2026-11-01T00:00:00Z
currency = "CNY"
decimals = 2
"""
NOVEMBER = 1_793_491_200 * 10**9


def terms_of(more: str, head: str = HEAD) -> Terms:
    (terms,) = parse_terms(head + more, "t").terms
    return terms


def used(meter: str, price: str, quantity: int, model: str = "m") -> UsageCharge:
    return UsageCharge(model, LineKey(meter, "", Decimal(price), 1, Decimal(price)), quantity)


def settled(
    terms: Terms, *usage: UsageCharge, listed: str | None = None, **left: str
) -> Settlement:
    exact = sum(each.key.amount(each.quantity) for each in usage)
    states = [CreditState(c, Decimal(left.get(c.name, str(c.amount)))) for c in terms.credits]
    return settle(usage, [], Decimal(listed or str(exact)), terms, states)


def lines(found: Settlement) -> list[tuple[str, str, str, int]]:
    return [(x.kind.value, x.name, format(x.amount, "f"), x.quantity) for x in found.adjustments]


FREE = """[[terms.allowances]]
name = "free"
model = "*"
meters = ["miss", "output"]
quantity = 100
"""


def test_an_allowance_frees_the_dearest_first() -> None:
    found = settled(terms_of(FREE), used("miss", "1", 80), used("output", "2", 70))
    assert lines(found) == [("allowance", "free", "-170.00", 100)]
    assert lines(settled(terms_of(FREE), used("hit", "1", 80))) == []
    assert lines(settled(terms_of(FREE), used("miss", "0", 30))) == [
        ("allowance", "free", "0.00", 30)
    ]


def test_what_one_allowance_freed_the_next_one_does_not() -> None:
    more = FREE.replace('"free"', '"more"').replace("100", "1000")
    found = settled(terms_of(FREE + more), used("miss", "1", 150))
    assert lines(found) == [
        ("allowance", "free", "-100.00", 100),
        ("allowance", "more", "-50.00", 50),
    ]


def test_a_discount_is_of_what_allowances_left_and_the_first_that_fits_counts() -> None:
    more = (
        '[[terms.discounts]]\nname = "big"\nmodel = "big-*"\ntimes = "0.5"\n'
        '[[terms.discounts]]\nname = "all"\ntimes = "0.9"\nmeters = ["miss", "hit"]\n'
    )
    found = settled(
        terms_of(FREE + more),
        used("miss", "1", 150),
        used("hit", "1", 50, "big-1"),
        used("output", "1", 0),
    )
    assert lines(found) == [
        ("allowance", "free", "-100.00", 100),
        ("discount", "big", "-25.00", 0),
        ("discount", "all", "-5.00", 0),
    ]


def test_less_than_the_minimum_is_filled_up_and_credits_pay_it() -> None:
    terms = terms_of(
        '[[terms.credits]]\nname = "late"\namount = "100"\nfrom = 2026-11-01T00:00:00Z\n'
        "until = 2027-11-01T00:00:00Z\n"
        '[[terms.credits]]\nname = "soon"\namount = "7"\nfrom = 2026-11-01T00:00:00Z\n'
        "until = 2026-12-01T00:00:00Z\n",
        HEAD + 'minimum_charge = "20"\n',
    )
    found = settled(terms, used("miss", "1", 12))
    assert lines(found) == [
        ("minimum_charge", "contract", "8", 0),
        ("credit", "soon", "-7", 0),
        ("credit", "late", "-13", 0),
    ]
    assert {x.credit.name: x.left for x in found.credits} == {"soon": 0, "late": 87}
    assert [x[0] for x in lines(settled(terms, used("miss", "1", 20), soon="0", late="0"))] == []


def test_each_line_is_rounded_once_and_nobody_is_owed_a_rounding() -> None:
    more = '[[terms.discounts]]\nname = "d"\ntimes = "0.5"\n'
    usage = [used("miss", "0.003", 1, f"m{number}") for number in range(10)]
    # Ten lines of 0.003 were printed as ten of 0.00; half of their exact sum is 0.015.
    found = settled(terms_of(more), *usage, listed="0.00")
    assert lines(found) == []
    found = settled(terms_of(more), *usage, listed="0.10")
    assert lines(found) == [("discount", "d", "-0.02", 0)]


def test_the_order_of_usage_changes_nothing() -> None:
    usage = [used("miss", "1", 80), used("output", "1", 70), used("miss", "1", 60, "a")]
    terms = terms_of(FREE + '[[terms.discounts]]\nname = "d"\nmodel = "a"\ntimes = "0.5"\n')
    assert settled(terms, *usage) == settled(terms, *reversed(usage))


def test_a_tenants_own_terms_go_before_patterns_and_later_ones_before_earlier() -> None:
    def named(name: str, tenant: str, month: int) -> str:
        text = HEAD.split("\n", 1)[1].replace('"contract"', f'"{name}"')
        return text.replace('"acme"', f'"{tenant}"').replace("-11-", f"-{month}-")

    sheet = parse_terms(
        "format = 1\n" + named("own", "acme", 11) + named("all", "*", 11) + named("new", "*", 12),
        "t",
    )

    def name(tenant: str, time_ns: int) -> str | None:
        found = sheet.of(tenant, time_ns)
        return found.name if found else None

    december = NOVEMBER + 30 * 86_400 * 10**9
    assert [name("acme", december), name("beta", december)] == ["own", "new"]
    assert [name("beta", NOVEMBER), name("beta", NOVEMBER - 1)] == ["all", None]
    assert TermsSheet().of("acme", december) is None


def test_terms_have_a_name_by_content() -> None:
    assert terms_of(FREE).id == terms_of(FREE.replace("quantity = 100", "quantity =   100")).id
    assert terms_of(FREE).id != terms_of(FREE.replace("quantity = 100", "quantity = 101")).id


@pytest.mark.parametrize(
    ("more", "line", "words"),
    [
        (FREE.replace('"miss", ', '"tokens", '), 11, ["'tokens' is no meter"]),
        (FREE.replace('["miss", "output"]', "[]"), 11, ["must be a list of hit"]),
        (FREE.replace("100", "0"), 12, ["quantity", "from 1"]),
        (FREE + FREE, 14, ['"free" is used twice']),
        ('[[terms.discounts]]\nname = "d"\ntimes = "1"', 10, ["less than 1"]),
        ('[[terms.discounts]]\nname = "d"\ntimes = 0.5', 10, ["float"]),
        (
            '[[terms.discounts]]\nname = "d"\ntimes = "0.5"\n'
            '[[terms.discounts]]\nname = "e"\nmodel = "x"\nmeters = ["hit"]\ntimes = "0.5"',
            11,
            ['"e" is never reached'],
        ),
        (
            '[[terms.credits]]\nname = "c"\namount = "1"\nfrom = 2026-11-02T00:00:00Z\n'
            "until = 2026-11-01T00:00:00Z",
            12,
            ["later than from"],
        ),
        (
            '[[terms.credits]]\nname = "c"\namount = "1"\nfrom = 2026-11-02T00:00:00Z\n'
            'until = 2026-12-01T00:00:00Z\ncurrency = "USD"',
            13,
            ["mixed currencies"],
        ),
        ('minimum = "3"', 8, ["is not a key here"]),
        (HEAD.split("\n", 1)[1], 11, ['"acme" has terms from then on']),
    ],
)
def test_a_problem_of_terms_names_its_line(more: str, line: int, words: list[str]) -> None:
    with pytest.raises(TermsError) as raised:
        parse_terms(HEAD + more + "\n", "t")
    assert f"t:{line}: " in str(raised.value)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize("text", ["", "format = 2", "format = 1\nterms = 3", "x"])
def test_a_file_that_has_no_terms_is_refused(text: str) -> None:
    with pytest.raises(TermsError):
        parse_terms(text, "t")


def test_terms_begin_with_a_month() -> None:
    with pytest.raises(TermsError, match="beginning of a month"):
        parse_terms(HEAD.replace("11-01T", "11-02T"), "t")


def test_kinds_are_frozen() -> None:
    assert [kind.value for kind in AdjustmentKind] == [
        "storage",
        "allowance",
        "discount",
        "minimum_charge",
        "credit",
    ]
