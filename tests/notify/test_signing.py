"""Signatures against the example of the standard's own libraries, and against a second implementation."""

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notify.signing import parse_secret, signed_headers
from tickbus.errors import ConfigError


def test_the_example_of_the_standard() -> None:
    secret = parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "secret")
    body = b'{"test": 2432232314}'
    assert signed_headers([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@given(
    st.lists(st.binary(min_size=1, max_size=64), min_size=1, max_size=3), st.integers(0, 2**40), st.binary()
)
def test_each_secret_signs_alone(secrets: list[bytes], timestamp: int, body: bytes) -> None:
    header = signed_headers(secrets, "a:b:1-2", timestamp, body)["webhook-signature"]
    assert header.split(" ") == [
        "v1,"
        + base64.b64encode(hmac.digest(secret, b"a:b:1-2.%d.%b" % (timestamp, body), hashlib.sha256)).decode()
        for secret in secrets
    ]


@given(st.binary(min_size=1))
def test_secret_is_the_base64_behind_its_prefix(key: bytes) -> None:
    assert parse_secret("whsec_" + base64.b64encode(key).decode(), "secret") == key


@pytest.mark.parametrize(
    "text", ["", "whsec_", "MfKQ9r8GKYqrTwjU", "whsec_MfKQ9r8GKYq-wjU*", "whsk_MfKQ9r8G"]
)
def test_other_texts_are_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^secret: invalid: expected whsec_<base64") as refused:
        parse_secret(text, "secret")
    assert len(text) < 8 or text not in str(refused.value)
