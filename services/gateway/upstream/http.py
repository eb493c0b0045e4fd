"""One HTTP request at a time, for what a vendor requires before the connection."""

import asyncio
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from typing import cast

from services.gateway.upstream.proxy import Proxy
from services.vendors.feed import HttpRequest, HttpResponse

_SECONDS = 10.0
_MAX_BODY = 1 << 20


async def fetch(request: HttpRequest, proxy: Proxy | None = None) -> HttpResponse:
    """Send the request, in a thread. OSError or TimeoutError if there is no answer; a body is cut at 1 MB.

    `proxy`: the one of the WebSocket connection; the environment is not read again.
    """
    return await asyncio.to_thread(_fetch, request, proxy)


def _fetch(request: HttpRequest, proxy: Proxy | None) -> HttpResponse:
    prepared = urllib.request.Request(
        request.url, request.body or None, dict(request.headers), method=request.method
    )
    deadline = time.monotonic() + _SECONDS
    try:
        with _opener(proxy).open(prepared, timeout=_SECONDS) as response:
            return HttpResponse(response.status, _lower(response.headers), _body(response, deadline))
    except urllib.error.HTTPError as error:  # a response like any other
        with error:
            return HttpResponse(
                error.code, _lower(error.headers), _body(cast(HTTPResponse, error.fp), deadline)
            )
    except HTTPException as error:
        raise ConnectionError(f"not an HTTP server: {error!r}") from None


def _opener(proxy: Proxy | None) -> urllib.request.OpenerDirector:
    address = {} if proxy is None else {"http": proxy.url, "https": proxy.url}
    return urllib.request.build_opener(urllib.request.ProxyHandler(address))


def _body(response: HTTPResponse, deadline: float) -> bytes:
    """Return the beginning of the body, up to 1 MB. TimeoutError if it arrives too slowly."""
    body = b""
    while len(body) < _MAX_BODY and (piece := response.read1(_MAX_BODY - len(body))):
        body += piece
        if time.monotonic() > deadline:
            raise TimeoutError(f"the response took longer than {_SECONDS:.0f} s")
    return body


def _lower(headers: object) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}  # type: ignore[attr-defined]  # an email.message.Message
