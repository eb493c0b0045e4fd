"""The URLs of Sentinel and Cluster: parsing, one-line errors, and that no secret is shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickbus.errors import ConfigError
from tickbus.redis.urls import Node, parse_address
from tickbus.sanitize import redact

SENTINEL = (
    "redis+sentinel://ann:p%40ss@10.0.0.1:26379,[::1],sen.tinel:1/mymaster/3"
    "?sentinel_password=w%26tch&ssl_ca_certs=/ca"
)


def test_full_sentinel_url() -> None:
    address = parse_address(SENTINEL)
    assert address.nodes == (Node("10.0.0.1", 26379), Node("::1", 26379), Node("sen.tinel", 1))
    assert (address.master, address.database) == ("mymaster", 3)
    assert address.server(Node("::2", 7)) == "redis://ann:p%40ss@[::2]:7/3?ssl_ca_certs=%2Fca"
    assert address.sentinel(Node("h", 8)) == "redis://:w%26tch@h:8/0?ssl_ca_certs=%2Fca"
    named = parse_address("redis+sentinel://s/m?sentinel_username=eve&sentinel_password=w/tch")
    assert named.sentinel(Node("h", 8)) == "redis://eve:w%2Ftch@h:8/0"
    assert address.redacted == "redis+sentinel://***@10.0.0.1:26379,[::1],sen.tinel:1/mymaster/3"


def test_cluster_url_and_minimal_urls() -> None:
    address = parse_address("rediss+cluster://:word@one,two:7001")
    assert address.nodes == (Node("one", 6379), Node("two", 7001))
    assert address.server(Node("one", 6379)) == "rediss://:word@one:6379/0"
    minimal = parse_address("redis+sentinel://one/m")
    assert (minimal.server(Node("a", 1)), minimal.sentinel(Node("b", 2))) == (
        "redis://a:1/0",
        "redis://b:2/0",
    )


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis+sentinel://host:26379", "master name is missing"),
        ("redis+sentinel://host:26379/", "master name is missing"),
        ("redis+sentinel://host/master/one", "the database is not a number"),
        ("redis+sentinel:///master", "invalid host:port ''"),
        ("redis+sentinel://a,,b/master", "invalid host:port ''"),
        ("redis+sentinel://a:port/master", "invalid host:port 'a:port'"),
        ("redis+sentinel://a:70000/master", "invalid host:port 'a:70000'"),
        ("redis+cluster://", "invalid host:port ''"),
        ("redis+cluster://a:0", "invalid host:port 'a:0'"),
        ("redis+cluster://a:7001/1", "a cluster has no database '1', only 0"),
        ("redis+cluster://[::1:7001", "malformed URL"),
        ("redis+cluster://ann:se/cret@a:7001", "%2F %3F %23 %40"),
        ("redis+cluster://ann:se#cret@a:7001", "%2F %3F %23 %40"),
        ("redis+cluster://a:7001?x", "malformed URL"),
        ("redis+cluster://a:7001?password=secret", "belong before the hosts"),
        ("redis+sentinel://a/m?username=ann&password=secret", "belong before the hosts"),
    ],
)
def test_invalid_url_is_rejected_in_one_line(url: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_address(url)
    text = str(error.value)
    assert text.startswith("--redis redis+") and message in text and "; expected redis+" in text
    assert "\n" not in text and "cret" not in text


@given(st.sampled_from(["redis+sentinel://", "rediss+cluster://"]), st.text("ab:/@?#[],%1=&\n ", max_size=30))
def test_any_text_parses_or_raises_config_error(scheme: str, rest: str) -> None:
    try:
        address = parse_address(scheme + rest)
    except ConfigError:
        return
    assert address.nodes and all(node.host and 0 < node.port < 65536 for node in address.nodes)


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://ann:SECRET@a:1,b:2/m?sentinel_password=x",
        "redis+sentinel://a:1,b:2/m?sentinel_password=SECRET",
        "redis+sentinel://a:1,b:2/m?sentinel_password=x@SECRET",
        "redis+cluster://ann:x@SECRET?y=SECRET@a:1",
        "redis+cluster://ann:SEC@RET?SECRET@a:1",
    ],
)
def test_no_secret_is_shown(url: str) -> None:
    assert "SECRET" not in redact(url) and "RET" not in redact(url)
