"""What all holders want together, whether its absence is known, and who may want what."""

import os
from pathlib import Path

import pytest

from services.gateway.subscriptions.policy import WantsPolicy
from services.gateway.subscriptions.wants import WantBook
from tickbus.errors import ConfigError
from tickbus.protocol.wants import WANT_TTL_MS, Topic

T0 = 1_700_000_000_000
A, B, Q = Topic("trade", "A"), Topic("trade", "B"), Topic("quote", "A")
RULES = """
[[holder]]
holder = "desk-*"
kinds = ["trade"]
symbols = ["BTC-*", "A"]
most = 2
new_per_hour = 3

[[holder]]
holder = "relay-*"
"""


def book(policy: WantsPolicy | None = None, kinds: tuple[str, ...] = ("trade", "quote")) -> WantBook:
    return WantBook(policy or WantsPolicy(), kinds)


def test_union_keeps_the_oldest_want_of_each_topic() -> None:
    one = book()
    one.put("x", {A: 30, B: 20}, T0)
    one.put("y", {A: 10, Q: 40}, T0)
    assert one.wanted() == ({A: 10, B: 20, Q: 40}, {})
    one.forget("y")
    one.put("x", {B: 20}, T0)
    assert one.wanted() == ({B: 20}, {})


def test_absence_counts_after_a_whole_ttl_without_interruption() -> None:
    one = book()
    assert not one.settled(T0)
    one.read(T0)
    assert not one.settled(T0 + WANT_TTL_MS - 1)
    assert one.settled(T0 + WANT_TTL_MS)
    one.interrupt()
    one.read(T0 + WANT_TTL_MS + 1)
    assert not one.settled(T0 + 2 * WANT_TTL_MS)
    assert one.settled(T0 + 2 * WANT_TTL_MS + 1)


def test_kind_that_the_feed_does_not_have_is_rejected() -> None:
    one = book(kinds=("trade",))
    one.put("x", {Q: 1, A: 1}, T0)
    assert one.wanted() == ({A: 1}, {Q: "this feed has no quotes"})


def test_rules_say_who_may_want_what_and_how_much(tmp_path: Path) -> None:
    path = tmp_path / "wants.toml"
    path.write_text(RULES)
    one = book(WantsPolicy(str(path)))
    btc = [Topic("trade", f"BTC-{number}") for number in range(3)]
    one.put("desk-1", {btc[0]: 1, B: 1, Q: 1, btc[1]: 1, btc[2]: 1}, T0)
    wanted = one.wanted()
    assert wanted.topics == {btc[0]: 1, btc[1]: 1}
    assert wanted.rejected == {
        B: "holder desk-1 may not want trade B (--wants)",
        Q: "holder desk-1 may not want quote A (--wants)",
        btc[2]: "holder desk-1 may want at most 2 (--wants)",
    }
    one.put("relay-1", {B: 5}, T0)
    one.put("stranger", {A: 5}, T0)
    assert one.wanted().topics == {btc[0]: 1, btc[1]: 1, B: 5}
    assert one.wanted().rejected[A] == "holder stranger may not want anything (--wants)"
    one.put("desk-1", {A: 2, btc[2]: 2}, T0 + 1)
    assert one.wanted().rejected[btc[2]] == "holder desk-1 may want at most 3 new ones an hour (--wants)"
    one.put("desk-1", {A: 2, btc[2]: 2}, T0 + 3_600_000)
    assert btc[2] in one.wanted().topics


def test_rules_are_read_again_and_a_bad_file_leaves_them(tmp_path: Path) -> None:
    path = tmp_path / "wants.toml"
    path.write_text(RULES)
    policy = WantsPolicy(str(path))
    assert not policy.reload()
    path.write_text('[[holder]]\nholder = "x"\n')
    assert policy.reload()
    assert (policy.rule_of("x") is None, policy.rule_of("relay-1")) == (False, None)
    path.write_text("[[holder]]\nholders = 1\n")
    os.utime(path, ns=(1, 1))
    assert not policy.reload()
    assert policy.rule_of("x") is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "holder"),
        ("[[holder]]\nkinds = ['bar']", "kinds are trade, quote"),
        ("[[holder]]\nsymbols = ['*a*b*']", "at most 64 characters and 2"),
        ("[[holder", "expected \\[\\[holder\\]\\] tables"),
    ],
)
def test_bad_rules_end_the_start_with_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wants.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        WantsPolicy(str(path))


def test_missing_file_and_none() -> None:
    with pytest.raises(ConfigError, match="expected any, none or a file"):
        WantsPolicy("/no/such/file")
    assert not WantsPolicy("none").enabled
