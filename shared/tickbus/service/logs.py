"""Log lines of a service: one record is one line, whatever it quotes; secrets of this process are hidden."""

import logging
import sys
import threading
import traceback
from types import TracebackType

from tickbus.sanitize import clean_lines, escape, hide_secrets


class SafeFormatter(logging.Formatter):
    """Hides secrets, escapes what is invisible, and indents tracebacks."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: D102
        # hidden once here, while the text is whole: escapes would split a secret
        return escape(hide_secrets(super().formatMessage(record)))

    def formatException(self, ei: object) -> str:  # noqa: D102
        return clean_lines("\n" + super().formatException(ei)).lstrip("\n")  # type: ignore[arg-type]

    def formatStack(self, stack_info: str) -> str:  # noqa: D102
        return clean_lines("\n" + stack_info).lstrip("\n")


def configure(level: str) -> None:
    """Log to standard error, and report errors that nobody catches in the same way."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(SafeFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    sys.excepthook = _report_uncaught
    threading.excepthook = lambda failed: _report_uncaught(
        failed.exc_type, failed.exc_value, failed.exc_traceback
    )


def _report_uncaught(
    kind: type[BaseException], error: BaseException | None, where: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, where)).rstrip()
    print(clean_lines(text), file=sys.stderr)  # noqa: T201
