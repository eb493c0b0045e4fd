"""Receivers of other kinds by their URL: mail, chats, pagers, whatever apprise knows.

It says only whether it worked, so every failure is tried again. It runs in threads of its own, which nobody
can cancel: apprise's own timeouts end them, and there are no more of them than requests in flight.
"""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

import apprise

from services.notify.notifications import ALERT, Notification, for_people
from services.notify.outcomes import Outcome, Verdict
from services.notify.receiver import Receiver
from tickbus.errors import ConfigError
from tickbus.units import SECOND, format_duration

_FAILED = Outcome(Verdict.RETRY, "apprise", "apprise could not deliver it")


class AppriseSender:
    def __init__(self, receiver: Receiver) -> None:
        """ConfigError if apprise does not understand the URL."""
        # it logs URLs, and with them their secrets
        logging.getLogger("apprise").disabled = True
        self._receiver = receiver
        self._target = apprise.Apprise()
        if not self._target.add(receiver.url):
            raise ConfigError(
                f"receiver {receiver.name}: apprise does not understand its URL: see "
                "https://github.com/caronc/apprise/wiki for the form of each service's"
            )
        self._threads = ThreadPoolExecutor(receiver.concurrency, "apprise")

    async def send(self, notification: Notification) -> Outcome:
        seconds = self._receiver.timeout / SECOND
        try:
            async with asyncio.timeout(seconds):
                sent = await asyncio.get_running_loop().run_in_executor(
                    self._threads, self._notify, notification
                )
        except TimeoutError:
            limit = format_duration(self._receiver.timeout)
            return Outcome(Verdict.RETRY, "timeout", f"not delivered within {limit}")
        return Outcome(Verdict.DELIVERED) if sent else _FAILED

    def _notify(self, notification: Notification) -> bool:
        title, text = for_people(notification)
        kind = apprise.NotifyType.INFO if notification.kind == ALERT else apprise.NotifyType.WARNING
        return bool(self._target.notify(body=text, title=title, notify_type=kind))

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
