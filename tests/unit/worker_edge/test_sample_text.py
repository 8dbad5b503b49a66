"""Text in pieces says the same as text at once: detokenizer, stop strings, samples."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from worker.detokenizer import Detokenizer
from worker.logprobs import TokenLogprob
from worker.requests import FinishReason
from worker.sample_text import LikelyToken, Sample, SampleFinished, TextDelta
from worker.stop_strings import StopStrings


def byte_decode(token_ids) -> str:
    """Tokens 0-255 are bytes; the real tokenizers' rule for broken UTF-8."""
    return bytes(token_ids).decode("utf-8", errors="replace")


def pieces_of(token_ids, decode=byte_decode) -> list[str]:
    detokenizer = Detokenizer(decode)
    return [*(detokenizer.push(t) for t in token_ids), detokenizer.flush()]


@given(st.text())
def test_pieces_join_to_the_text_and_never_split_a_character(text):
    pieces = pieces_of(text.encode())
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.binary(max_size=30))
def test_pieces_of_any_bytes_join_to_what_decoding_at_once_gives(raw):
    assert "".join(pieces_of(raw)) == byte_decode(raw)


@given(st.lists(st.sampled_from([0x41, 0x80, 0xE4, 0xBD, 0xA0, 0xF0, 0xFF]), max_size=31))
def test_broken_characters_are_delivered_as_soon_as_they_are_known_broken(raw):
    assert "".join(pieces_of(raw)) == byte_decode(raw)


def test_endless_broken_bytes_do_not_pile_up():
    pieces = pieces_of([0x80] * 10_000)
    assert "".join(pieces) == "\ufffd" * 10_000
    assert max(len(piece) for piece in pieces) <= 2


def test_a_space_that_a_token_brings_is_kept_where_the_first_one_loses_it():
    """Tokenizers of the SentencePiece family drop the space of the first token only."""
    tokenizer = Tokenizer(models.WordLevel({"▁hello": 0, "▁you": 1, "!": 2}, unk_token="!"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    assert pieces_of([0, 1, 1, 2], tokenizer.decode) == ["hello", " you", " you", "!", ""]


@given(
    st.text(alphabet="abc", max_size=40),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(min_value=1, max_value=5), min_size=1),
)
def test_what_is_delivered_does_not_depend_on_how_the_text_was_cut(text, stops, cuts):
    at_once = StopStrings(stops)
    expected = at_once.push(text) + at_once.flush()
    cut = StopStrings(stops)
    delivered, start, index = "", 0, 0
    while start < len(text):
        size = cuts[index % len(cuts)]
        delivered += cut.push(text[start : start + size])
        start, index = start + size, index + 1
    delivered += cut.flush()
    assert delivered == expected
    assert cut.matched == at_once.matched == any(stop in text for stop in stops)
    assert text.startswith(delivered)
    assert not any(stop in delivered for stop in stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "delivered"),
    [
        (["END"], ["abcE", "N", "Dxyz"], "abc"),
        (["END"], ["abcE", "N", "X"], "abcENX"),
        (["END"], ["abcE"], "abcE"),
        (["abcd", "bc"], ["a", "b", "c", "d"], "a"),
        (["c", "abc"], ["abc"], ""),
        (["aab"], ["a", "a", "a", "b"], "a"),
        ([], ["anything"], "anything"),
    ],
)
def test_text_before_the_match_that_completes_first(stops, pieces, delivered):
    stop_strings = StopStrings(stops)
    assert "".join(stop_strings.push(p) for p in pieces) + stop_strings.flush() == delivered


def test_a_sample_ends_at_its_stop_string_and_counts_what_came_too_late():
    sample = Sample(3, byte_decode, ["ST"])
    outputs = [output for byte in b"abSTcd" for output in sample.push(byte)]
    outputs += sample.end(FinishReason.LENGTH)
    assert "".join(o.text for o in outputs if isinstance(o, TextDelta)) == "ab"
    assert outputs[-1] == SampleFinished(3, FinishReason.STOP)
    assert sum(isinstance(o, SampleFinished) for o in outputs) == 1
    assert [t for o in outputs if isinstance(o, TextDelta) for t in o.token_ids] == list(b"abST")
    assert sample.undelivered_tokens == 2


def test_each_delivered_token_comes_with_its_own_logprob_and_text():
    sample = Sample(0, byte_decode, ["ST"])
    told = TokenLogprob(-0.5, ((0x41, -0.25), (0xE4, -2.0)))
    pushed = [output for byte in "aäS".encode() for output in sample.push(byte, told)]
    deltas = [output for output in pushed if isinstance(output, TextDelta)]
    assert [(d.text, d.token_ids[0], d.logprobs[0].own.text) for d in deltas] == [
        ("a", 0x61, "a"),
        ("", 0xC3, "\ufffd"),
        ("ä", 0xA4, "\ufffd"),
        ("", 0x53, "S"),
    ]
    assert deltas[0].logprobs[0].top == (
        LikelyToken(0x41, "A", -0.25),
        LikelyToken(0xE4, "\ufffd", -2.0),
    )
    (rest, _) = sample.end(FinishReason.LENGTH)
    assert isinstance(rest, TextDelta)
    assert (rest.text, rest.token_ids, rest.logprobs) == ("S", (), ())


def test_what_was_held_back_comes_when_the_engine_ends_the_sample():
    sample = Sample(0, byte_decode, ["STOP"])
    outputs = [o for byte in b"aST" for o in sample.push(byte)] + sample.end(FinishReason.LENGTH)
    assert "".join(o.text for o in outputs if isinstance(o, TextDelta)) == "aST"
    assert outputs[-1] == SampleFinished(0, FinishReason.LENGTH)
