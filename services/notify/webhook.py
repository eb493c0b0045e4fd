"""POSTs of signed JSON. One connection pool for the receiver; redirects are refused, answers are not read."""

import time
from collections.abc import Callable

import aiohttp

from services.notify.notifications import Notification
from services.notify.outcomes import Outcome, Verdict, judge
from services.notify.receiver import Receiver
from services.notify.signing import signed_headers
from tickbus.sanitize import clean
from tickbus.units import SECOND, format_duration
from tickbus.version import VERSION

_HEADERS = {
    "content-type": "application/json",
    "user-agent": f"tickbus/{VERSION}",
    "accept-encoding": "identity",
}


class WebhookSender:
    def __init__(self, receiver: Receiver, now: Callable[[], float] = time.time) -> None:
        """`now`: seconds since the epoch, by the clock that receivers compare with theirs."""
        self._receiver = receiver
        self._now = now
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=receiver.timeout / SECOND),
            connector=aiohttp.TCPConnector(limit=receiver.concurrency),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
        )

    async def send(self, notification: Notification) -> Outcome:
        now = self._now()
        headers = signed_headers(self._receiver.secrets, notification.key, int(now), notification.body)
        try:
            async with self._session.post(
                self._receiver.url, data=notification.body, headers=headers, allow_redirects=False
            ) as answer:
                return judge(answer.status, answer.headers.get("retry-after"), now)
        # their texts may hold the URL: only what the system said is repeated
        except TimeoutError:
            limit = format_duration(self._receiver.timeout)
            return Outcome(Verdict.RETRY, "timeout", f"no answer within {limit}")
        except aiohttp.ClientConnectorCertificateError:
            return Outcome(
                Verdict.RETRY, "connect", "its certificate is not valid for its name, or not trusted"
            )
        except (aiohttp.ClientError, OSError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            return Outcome(Verdict.RETRY, "connect", f"no connection: {clean(why)}")

    async def close(self) -> None:
        await self._session.close()
