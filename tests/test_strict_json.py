"""JSON is accepted only when every parser reads it alike."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends_app.utils.strict_json import InvalidJSON, loads

plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | plain_text,
    lambda inner: st.lists(inner) | st.dictionaries(plain_text, inner),
)


@given(documents)
def test_unambiguous_json_is_parsed_unchanged(document):
    assert loads(json.dumps(document)) == document
    assert loads(json.dumps(document, ensure_ascii=False).encode()) == document


@given(st.text() | st.binary())
def test_any_input_is_parsed_or_refused(text):
    with suppress(InvalidJSON):
        loads(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("{", "line 1, column 2"),
        ("[1] 2", "Extra data"),
        ("NaN", "NaN"),
        ("[-Infinity]", "-Infinity"),
        ("1e999", "too large"),
        ("9" * 400, "308 digits"),
        ("-" + "9" * 5000, "308 digits"),
        ('{"a": 1, "b": 2, "a": 3}', "duplicate key 'a'"),
        ('{"a": {"b": 1, "b": 1}}', "duplicate key 'b'"),
        ("[" * 100_000, "deeper than 64"),
        ('{"a":' * 100_000, "deeper than 64"),
        ("[" * 65 + "]" * 65, "deeper than 64"),
        (r'"\ud800"', "U+D800"),
        (r'["\udfff\ud800"]', "U+DFFF"),
        (r'{"\ud800": 1}', "U+D800"),
        (r'"\u0000"', "U+0000"),
        (b"\xff", "not UTF-8 (byte 0)"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        ("'a'", "Expecting value"),
        ("\ufeff[]", "BOM"),
        ("[" + "0," * 600_000 + "0]", "600,000 values"),
        ("{" + ",".join(f'"{n}":[]' for n in range(300_001)) + "}", "600,000 values"),
    ],
)
def test_refused_json_has_a_reason(text, reason):
    with pytest.raises(InvalidJSON) as raised:
        loads(text)
    assert reason in str(raised.value)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[" * 64 + "]" * 64, None),
        (json.dumps("[" * 100_000), "[" * 100_000),
        (r'"\\[[[\"[[["', '\\[[["[[['),
        ("9" * 308, int("9" * 308)),
        (r'"\ud83d\ude00"', "😀"),
    ],
)
def test_json_that_only_looks_suspicious_is_accepted(text, value):
    taken = loads(text)
    assert value is None or taken == value
