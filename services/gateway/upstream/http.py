"""One HTTP request at a time, for what a vendor requires before the connection."""

import asyncio
import urllib.error
import urllib.request

from services.vendors.feed import HttpRequest, HttpResponse

_SECONDS = 10.0
_MAX_BODY = 1 << 20


async def fetch(request: HttpRequest) -> HttpResponse:
    """Send the request, in a thread. OSError or TimeoutError if there is no answer; a body is cut at 1 MB."""
    return await asyncio.to_thread(_fetch, request)


def _fetch(request: HttpRequest) -> HttpResponse:
    prepared = urllib.request.Request(
        request.url, request.body or None, dict(request.headers), method=request.method
    )
    try:
        with urllib.request.urlopen(prepared, timeout=_SECONDS) as response:
            return HttpResponse(response.status, _lower(response.headers), response.read(_MAX_BODY))
    except urllib.error.HTTPError as error:  # a response like any other
        with error:
            return HttpResponse(error.code, _lower(error.headers), error.read(_MAX_BODY))


def _lower(headers: object) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}  # type: ignore[attr-defined]  # an email.message.Message
