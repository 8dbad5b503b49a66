"""Books of format 2: reading, problems with their lines, canonical text."""

import json
from dataclasses import replace

import pytest

from billing.errors import PriceBookError
from billing.price_book import PriceBook, settled, version_from_text
from billing.price_book_file import parse_price_book
from billing.price_words import rules_of
from tests.unit.billing.price_books import HEAD, NIGHT, PRICE, version_of

FULL = (
    HEAD
    + NIGHT
    + PRICE
    + """per = 1000
request = "0.01"
hit_ssd = "0.2"
cache_write = { "1h" = { times = "2", of = "miss" }, "*" = "1.25" }
cache_write_mode = "instead"
minimum_prompt_tokens = 1024
minimum_hit_tokens = 512
hit_step_tokens = 128
storage = { price = "4.5", meter = "started_hour" }
quota = { hit = "0.1", miss = "1" }
  [[versions.prices.steps]]
  prompt_above = 200000
  miss = "2"
  [[versions.prices.windows]]
  window = "night"
  times = "0.5"
  [[versions.prices.classes]]
  class = "batch"
  hit = { times = "0.5" }
  [[versions.prices.promotions]]
  name = "launch"
  from = 2025-02-01T00:00:00+08:00
  until = 2025-03-01T00:00:00+08:00
  times = "0.25"
"""
)


def problems(text: str) -> list[str]:
    with pytest.raises(PriceBookError) as raised:
        parse_price_book(text, "b")
    return [line.strip() for line in str(raised.value).splitlines()[1:]]


def test_everything_that_a_card_can_say_survives_being_stored() -> None:
    (version,) = parse_price_book(FULL, "b").versions
    stored = version_from_text(version.text)
    assert stored == version
    assert stored.id == version.id
    assert version.text.isascii()
    assert "\n" not in version.text


def test_spelling_and_order_of_keys_change_no_name_and_content_does() -> None:
    def id_of(text: str) -> str:
        return parse_price_book(text, "b").versions[0].id

    original = id_of(FULL)
    swapped = FULL.replace('hit = "0.1"\nmiss = "1"', 'miss = "1.0"\nhit = "0.10"')
    assert swapped != FULL
    assert id_of(swapped) == original
    for old, new in (
        ('price = "4.5"', 'price = "4.6"'),
        ("22:00-06:00", "22:00-06:01"),
        ("2025-10-02", "2025-10-03"),
        ('hit = "0.1", miss', 'hit = "0.2", miss'),
        ('"batch"', '"bulk"'),
        ("hit_step_tokens = 128", "hit_step_tokens = 64"),
    ):
        assert old in FULL
        assert id_of(FULL.replace(old, new)) != original


def test_the_least_of_format_2_is_as_linear_as_format_1() -> None:
    assert version_of("").linear
    assert not parse_price_book(FULL, "b").versions[0].linear


def test_words_name_every_rule() -> None:
    words = "\n".join(rules_of(parse_price_book(FULL, "b").versions[0].cards[0]))
    for each in (
        "no hits in prompts under 1024 tokens",
        "no hits under 512 tokens",
        "hits in steps of 128 tokens",
        "cache writes of the prompt in place of miss",
        "prompt over 200000: miss 2",
        "window night: all x 0.5",
        "class batch: hit x 0.5",
        "promotion launch, 2025-01-31T16:00:00Z to 2025-02-28T16:00:00Z: all x 0.25",
        "storage: 4.5 an hour, started hour",
        "request: 0.01",
        "hit_ssd: 0.2",
    ):
        assert each in words


def test_the_stored_version_stays_when_only_zone_data_changed() -> None:
    book = parse_price_book(FULL, "b")
    (version,) = book.versions
    (calendar,) = version.calendars
    moved = replace(version, calendars=(replace(calendar, offsets=((0, 3600),)),))
    assert moved.id != version.id
    assert settled(book, [moved.text, "no text of a version"]).versions == (moved,)
    changed = replace(moved, source="another")
    assert settled(book, [changed.text]).versions == (version,)
    assert settled(PriceBook(()), [moved.text]).versions == ()


@pytest.mark.parametrize(
    "change",
    [
        ("format", 3),
        ("cards", [{}]),
        ("cards", 7),
        ("calendars", [{"name": "x"}]),
        ("windows", None),
        ("effective_time_ns", "0"),
    ],
)
def test_a_text_that_is_no_version_is_a_value_error(change: tuple[str, object]) -> None:
    fields = json.loads(parse_price_book(FULL, "b").versions[0].text)
    fields[change[0]] = change[1]
    text = json.dumps(fields, separators=(",", ":"), sort_keys=True)
    with pytest.raises(ValueError, match=r"price version|newer kvtier"):
        version_from_text(text)


@pytest.mark.parametrize(
    ("more", "line", "words"),
    [
        ("per = 3", 12, ["prices[1].per", "power of ten"]),
        ('hit_gpu = { times = "0.5" }', 12, ["hit_gpu", 'of = "miss"']),
        ('hit_gpu = { times = "0.5", of = "hit" }', 12, ["hit_gpu", "miss"]),
        ('hit_gpu = { times = 0.5, of = "miss" }', 12, ["hit_gpu.times", "float"]),
        ('request = "1e3"', 12, ["request", "not a price"]),
        ('currency = "USD"', 12, ["currency", "mixed currencies"]),
        ('embedding = "1"', 12, ["embedding", "is not a key here"]),
        ('cache_write = { "1h" = -1 }', 12, ["cache_write.1h", "as text"]),
        ('cache_write_mode = "both"', 12, ['"on_top", "instead"']),
        ("hit_step_tokens = 0", 12, ["from 1 to"]),
        ('steps_apply = "marginal"', 12, ["no steps"]),
        ('storage = { price = "1", meter = "weekly" }', 12, ["storage.meter"]),
        ('quota = { hits = "1" }', 12, ["quota.hits", "is not a key"]),
        ('quota = { hit = "-1" }', 12, ["quota.hit", "not a factor"]),
        ("steps = 3", 12, ["[[versions.prices.steps]]"]),
    ],
)
def test_a_problem_of_a_price_names_its_line(more: str, line: int, words: list[str]) -> None:
    found = "\n".join(problems(HEAD + PRICE + more + "\n"))
    assert f"b:{line}: " in found
    for word in words:
        assert word in found


LAYER = "[[versions.prices.{}]]\n{}\n"


@pytest.mark.parametrize(
    ("layers", "line", "words"),
    [
        ([("steps", 'miss = "2"')], 12, ["give prompt_above or output_above"]),
        ([("steps", "prompt_above = 5")], 12, ["changes nothing"]),
        ([("steps", 'prompt_above = 5\nhit_ssd = "1"')], 14, ["no base rate"]),
        (
            [
                ("steps", 'prompt_above = 5\ntimes = "2"'),
                ("steps", 'prompt_above = 5\ntimes = "3"'),
            ],
            15,
            ["steps[2]", "out of order"],
        ),
        ([("windows", 'window = "day"\ntimes = "2"')], 13, ['no window "day"']),
        (
            [("classes", 'class = "a"\ntimes = "2"'), ("classes", 'class = "a"\ntimes = "3"')],
            16,
            ['"a" is used twice'],
        ),
        (
            [
                (
                    "promotions",
                    'name = "a"\nfrom = 2025-02-01T00:00:00Z\nuntil = 2025-01-31T00:00:00Z\n'
                    'times = "2"',
                )
            ],
            15,
            ["later than from"],
        ),
        (
            [
                (
                    "promotions",
                    'name = "a"\nfrom = 2024-02-01T00:00:00Z\nuntil = 2024-03-01T00:00:00Z\n'
                    'times = "2"',
                )
            ],
            15,
            ["ends before the version starts"],
        ),
        (
            [
                (
                    "promotions",
                    f'name = "{name}"\nfrom = 2025-0{month}-01T00:00:00Z\n'
                    f'until = 2025-0{month + 2}-01T00:00:00Z\ntimes = "2"',
                )
                for name, month in (("a", 1), ("b", 2))
            ],
            17,
            ['"b" overlaps "a"'],
        ),
        ([("promotions", 'name = "a"\nuntil = 1\ntimes = "2"')], 14, ["until", "no quotes"]),
        ([("classes", 'class = "a"\ntimes = "12345"')], 14, ["times", "not a factor"]),
    ],
)
def test_a_problem_of_a_layer_names_its_line(
    layers: list[tuple[str, str]], line: int, words: list[str]
) -> None:
    text = HEAD + PRICE + "".join(LAYER.format(*layer) for layer in layers)
    found = "\n".join(problems(text))
    assert f"b:{line}: " in found
    for word in words:
        assert word in found


DAY = NIGHT + '[[versions.windows]]\nname = "day"\ncalendar = "cn"\nhours = ["{}"]\n'


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (DAY.format("05:59-07:00"), ['"day" overlaps "night": mon 05:59']),
        (DAY.format("12:00-22:01"), ['"day" overlaps "night": mon 22:00']),
        (
            DAY.format("12:00-13:00").replace('"cn"\nhours = ["12', '"us"\nhours = ["12')
            + '[[versions.calendars]]\nname = "us"\nzone = "America/New_York"\n',
            ["different calendars"],
        ),
        (NIGHT.replace("Asia/Shanghai", "Asia/Nowhere") + DAY, ["b:9: ", '"Asia/Nowhere"']),
        (NIGHT.replace("2025-09-28", "2025-10-01"), ["b:11: ", "is a holiday as well"]),
        (NIGHT.replace("2025-10-01, ", '"2025-10-01", '), ["b:10: ", "days without quotes"]),
        (NIGHT.replace("2025-10-01", "2025-10-02"), ["b:10: ", "names a day twice"]),
        (NIGHT.replace("22:00-06:00", "22:00-22:00"), ["b:15: ", "22:00-22:00"]),
        (NIGHT.replace("22:00-06:00", "24:00-06:00"), ["b:15: ", "24:00-06:00"]),
        (NIGHT.replace("22:00-06:00", "22:00-24:30"), ["b:15: ", "24:30"]),
        (NIGHT.replace('calendar = "cn"', 'calendar = "us"'), ["b:14: ", 'no calendar "us"']),
        (NIGHT + 'days = ["monday"]\n', ["b:16: ", "must be a list of mon"]),
        (NIGHT + DAY.format("12:00-13:00"), ["is used twice"]),
    ],
    ids=range(13),
)
def test_a_problem_of_windows_and_calendars_is_named(times: str, words: list[str]) -> None:
    text = HEAD + times + PRICE
    for name in ("night", "day"):
        text += LAYER.format("windows", f'window = "{name}"\ntimes = "2"')
    found = "\n".join(problems(text))
    for word in words:
        assert word in found


def test_windows_that_touch_or_are_on_other_days_do_not_overlap() -> None:
    times = DAY.format("06:00-22:00") + 'days = ["workday"]\n'
    rest = '[[versions.windows]]\nname = "rest"\ncalendar = "cn"\nhours = ["06:00-22:00"]\n'
    text = HEAD + times + rest + 'days = ["offday"]\n' + PRICE
    for name in ("night", "day", "rest"):
        text += LAYER.format("windows", f'window = "{name}"\ntimes = "2"')
    assert len(parse_price_book(text, "b").versions[0].windows) == 3


def test_a_holiday_can_be_where_two_windows_meet() -> None:
    times = DAY.format("08:00-09:00") + 'days = ["wed"]\n'
    rest = '[[versions.windows]]\nname = "rest"\ncalendar = "cn"\ndays = ["holiday"]\n'
    text = HEAD + times + rest + PRICE
    for name in ("day", "rest", "night"):
        text += LAYER.format("windows", f'window = "{name}"\ntimes = "2"')
    # 1 October 2025 is a Wednesday.
    assert any('"rest" overlaps "day": wed 08:00' in each for each in problems(text))


def test_what_nothing_uses_is_a_problem() -> None:
    found = problems(HEAD + NIGHT + PRICE)
    assert found == ['b:12: versions[1].windows[1]: "night" is used by no price']
    calendar = NIGHT.split("[[versions.windows]]")[0]
    assert ['"cn" is used by no window' in each for each in problems(HEAD + calendar + PRICE)] == [
        True
    ]


def test_a_price_that_an_earlier_pattern_covers_is_never_reached() -> None:
    first = PRICE.replace('"*"', '"big-*"')
    found = problems(HEAD + first + PRICE.replace('"*"', '"big-1"') + PRICE)
    assert found == ['b:13: versions[1].prices[2].model: "big-1" is never reached: see above it']


def test_problems_of_one_thing_are_not_told_of_another() -> None:
    found = problems(HEAD.replace("effective_time = 2025-01-01T00:00:00Z\n", "") + PRICE)
    assert len(found) == 1
    assert "effective_time" in found[0]
