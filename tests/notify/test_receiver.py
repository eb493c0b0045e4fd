"""The file of a receiver: what it may say, and that no mistake shows a secret."""

from pathlib import Path

import pytest
from notify.alerts import KEY, SECRET, receiver_file, signal

from services.notify.receiver import load_receiver
from tickbus.errors import ConfigError
from tickbus.protocol.messages import SignalState
from tickbus.protocol.names import Stream
from tickbus.sanitize import hide_secrets
from tickbus.units import HOUR, MINUTE, SECOND

URL = "https://hooks.example.com/services/T0001/verysecretpath"


def test_values_and_defaults(tmp_path: Path) -> None:
    receiver = load_receiver(receiver_file(tmp_path, URL, backoff="1s", backoff_max="1m"))
    assert (receiver.name, receiver.service, receiver.url, receiver.secrets) == (
        "ops",
        "notify-ops",
        URL,
        (KEY,),
    )
    assert (receiver.max_age, receiver.retry_for, receiver.timeout) == (HOUR, HOUR, 10 * SECOND)
    assert (receiver.backoff, receiver.backoff_max, receiver.concurrency) == (SECOND, MINUTE, 8)
    other = load_receiver(receiver_file(tmp_path, URL, max_age="5m", secret=[SECRET, SECRET]), "desk")
    assert (other.service, other.max_age, other.retry_for) == ("notify-desk", 5 * MINUTE, 5 * MINUTE)
    assert other.secrets == (KEY, KEY)


def test_secrets_in_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(URL + "\n")
    (tmp_path / "secret").write_text(SECRET + "\n")
    path = tmp_path / "r.toml"
    path.write_text(f'name = "ops"\nurl_file = "{tmp_path}/url"\nsecret_file = "{tmp_path}/secret"\n')
    receiver = load_receiver(path)
    assert (receiver.url, receiver.secrets) == (URL, (KEY,))


def test_what_it_gets(tmp_path: Path) -> None:
    file = receiver_file(tmp_path, URL, names=["sigma.*", "spread"], symbols=["BTC-*"], feeds=["watch*"])
    receiver = load_receiver(file)
    assert receiver.wants(signal(1)) and receiver.wants(signal(2, name="sigma.price"))
    assert not receiver.wants(signal(1, name="trade_rate"))
    assert not receiver.wants(signal(1, state=SignalState.INDICATOR))
    followed = [("watch", "BTC-USDT"), ("watch-2", "BTC-EUR")]
    others = [("watch", "ETH-BTC"), ("other", "BTC-USDT")]
    assert all(receiver.follows(Stream("signal", feed, symbol)) for feed, symbol in followed)
    assert not any(receiver.follows(Stream("signal", feed, symbol)) for feed, symbol in others)


def test_nothing_shows_what_is_secret(tmp_path: Path) -> None:
    load_receiver(receiver_file(tmp_path, URL + "?sig=0123456789abcdef"))
    shown = hide_secrets(f"POST {URL}?sig=0123456789abcdef with {SECRET}")
    assert "verysecretpath" not in shown and "0123456789abcdef" not in shown and SECRET[6:] not in shown
    assert "hooks.example.com" in shown


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"url": ""}, "url is missing: expected e.g. https://"),
        ({"url": "https:///verysecretpath"}, "url has no host"),
        ({"url": "verysecretpath"}, "url has no scheme"),
        ({"url": "http://h:99999/verysecretpath"}, "invalid url: expected"),
        ({"secret": ""}, "secret is missing: expected whsec_<base64>"),
        ({"secret": "verysecretpath"}, "secret: invalid: expected whsec_<base64"),
        ({"name": ""}, 'name is missing: expected e.g. name = "ops"'),
        ({"name": "Ops!"}, "invalid name 'notify-Ops!'"),
        ({"max_age": "soon"}, "max_age: invalid duration 'soon'"),
        ({"timeout": "0s"}, "timeout: invalid duration '0s': expected more than zero"),
        ({"concurrency": 0}, "at `$.concurrency`"),
        ({"colour": "red"}, "unknown field `colour`"),
        ({"url_file": "/x"}, "give url or url_file, not both"),
        ({"names": "sigma.*"}, "Expected `array`, got `str`"),
    ],
)
def test_mistakes_are_one_line_without_secrets(
    tmp_path: Path, settings: dict[str, object], expected: str
) -> None:
    path = receiver_file(tmp_path, **({"url": URL} | settings))  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as refused:
        load_receiver(path)
    text = str(refused.value)
    assert expected in text and "\n" not in text
    assert "verysecretpath" not in text.replace(str(tmp_path), "") and SECRET not in text


def test_file_that_is_no_toml_is_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("url = https://verysecretpath\n")
    with pytest.raises(ConfigError, match="not valid TOML") as refused:
        load_receiver(path)
    assert "verysecretpath" not in str(refused.value)
    with pytest.raises(ConfigError, match="cannot read it: No such file"):
        load_receiver(tmp_path / "none.toml")
