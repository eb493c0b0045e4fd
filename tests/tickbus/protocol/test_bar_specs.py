import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickbus.errors import ConfigError
from tickbus.protocol.bar_specs import parse, parse_all

CANONICAL = {
    "time:1s": "time:1s",
    "time:60s": "time:1m",
    "time:90s": "time:90s",
    "time:120m": "time:2h",
    "time:24h": "time:1d",
    "time:86400s": "time:1d",
    "time:36h": "time:36h",
    " time:05m ": "time:5m",
    "tick:100": "tick:100",
    "tick:0100": "tick:100",
    "tick:100.0": "tick:100",
    "volume:0.50": "volume:0.5",
    "volume:10": "volume:10",
    "value:1000000": "value:1000000",
}


@pytest.mark.parametrize(("text", "canonical"), CANONICAL.items())
def test_spec_text_is_canonical(text: str, canonical: str) -> None:
    assert parse(text).text == canonical
    assert parse(canonical) == parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "time", "time:", "time:1", "time:0s", "time:500ms", "time:1.5h", "time:-1s", "time:1M", "time:367d",
     "time:99999999d", "1m", "TIME:1m", "tick:0", "tick:-1", "tick:1.5", "tick:1e3", "volume:", "volume:0.0",
     "volume:x", "value:NaN", "value:inf", "renko:5", "time:1m:2", "tick:１"],
)  # fmt: skip
def test_invalid_spec_is_rejected_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as rejected:
        parse(text)
    assert "\n" not in str(rejected.value)
    assert repr(text) in str(rejected.value)


@given(
    st.one_of(
        st.text(max_size=20), st.from_regex(r"(time|tick|volume|value):[0-9.]{1,40}[smhd]?", fullmatch=True)
    )
)
def test_any_text_parses_or_raises_config_error(text: str) -> None:
    try:
        spec = parse(text)
    except ConfigError:
        return
    assert parse(spec.text) == spec
    assert spec.size > 0


def test_equal_specs_are_merged() -> None:
    assert [spec.text for spec in parse_all(["time:60s", "tick:5", "time:1m"])] == ["time:1m", "tick:5"]
