"""What sends notifications: aiohttp for webhooks, apprise for all else, each loaded only if needed."""

from typing import Protocol

from services.notify.notifications import Notification
from services.notify.outcomes import Outcome
from services.notify.receiver import Receiver
from tickbus.errors import ConfigError


class Sender(Protocol):
    async def send(self, notification: Notification) -> Outcome:
        """Try once, for as long as the receiver's timeout."""
        ...

    async def close(self) -> None: ...


def open_sender(receiver: Receiver) -> Sender:
    """ConfigError if a package is missing, or the URL is one that nobody understands."""
    if receiver.is_webhook:
        try:
            from services.notify.webhook import WebhookSender
        except ImportError:
            raise ConfigError("webhooks need aiohttp: pip install 'tickbus-services[notify]'") from None
        return WebhookSender(receiver)
    try:
        from services.notify.apprise_sender import AppriseSender
    except ImportError:
        raise ConfigError(
            f"receiver {receiver.name}: a URL that is not http or https needs apprise: "
            "pip install 'tickbus-services[apprise]'"
        ) from None
    return AppriseSender(receiver)
