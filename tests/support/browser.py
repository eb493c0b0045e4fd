"""A real Chromium, driven over its DevTools protocol."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect

from support.redis_server import require_program

SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--remote-debugging-port=0", "--enable-precise-memory-info",
)  # fmt: skip
_WATCH = """
window.__reports = [];
document.addEventListener("securitypolicyviolation", (event) => {
  __reports.push(event.violatedDirective + " " + event.blockedURI);
});
window.__paints = [];
new PerformanceObserver((list) => {
  for (const { startTime } of list.getEntriesByName("tickbus-paint")) __paints.push(startTime);
}).observe({ type: "mark", buffered: true });
"""


class Browser:
    """One tab. `errors`: what pages threw, or wrote to the console as an error."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.requested: list[str] = []
        """Addresses that the page asked for, sockets too."""
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._process: subprocess.Popen[bytes]
        self._socket: ClientConnection
        self._listening: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        profile = Path(self._folder.name)
        self._process = subprocess.Popen(  # noqa: ASYNC220  # it waits for nothing
            [require_program("chromium"), *SWITCHES, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        port_file = profile / "DevToolsActivePort"
        await self._until(lambda: port_file.exists() and port_file.read_text().count("\n"), "Chromium starts")
        port = port_file.read_text().split()[0]
        self._socket = await connect(
            f"ws://127.0.0.1:{port}{port_file.read_text().split()[1]}", max_size=None
        )
        self._listening = asyncio.create_task(self._listen())
        self._session = ""
        targets = (await self.call("Target.getTargets"))["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = await self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.addScriptToEvaluateOnNewDocument", source=_WATCH)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.cancel()
        await self._socket.close()
        with contextlib.suppress(ProcessLookupError):
            # the process group that we started, and nothing else
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()

    async def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps(message))
        return await asyncio.wait_for(answer, 30)

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)

    async def run(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        found = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def wait_for(self, expression: str, seconds: float = 20.0) -> Any:
        """Return the value of an expression as soon as it is true; what cannot be found yet is not."""
        attempt = f"(() => {{ try {{ return {expression} }} catch {{ return null }} }})()"
        async with asyncio.timeout(seconds + 5):
            for _ in range(int(seconds / 0.05)):
                if value := await self.run(attempt):
                    return value
                await asyncio.sleep(0.05)
        shown = await self.run("document.body?.innerText")
        raise AssertionError(f"never true: {expression}; errors: {self.errors}; shown: {shown}")

    async def text(self, selector: str) -> str:
        """Return what is shown."""
        return str(await self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    async def press(self, key: str) -> None:
        """Press a key."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = {"Enter": 13, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38, "Home": 36, "End": 35}.get(key, 0)
        common = {"key": key, "windowsVirtualKeyCode": code}
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def screenshot(self, path: Path) -> None:
        found = await self.call("Page.captureScreenshot", format="png")
        await asyncio.to_thread(path.write_bytes, base64.b64decode(found["data"]))

    async def resize(self, width: int, height: int, scale: float = 1, mobile: bool = False) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=mobile,
        )

    async def prefer(self, scheme: str) -> None:
        """Let the system prefer `dark` or `light`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def _until(self, found: Callable[[], object], what: str) -> None:
        for _ in range(600):
            if found():
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"it does not happen: {what}")

    async def _listen(self) -> None:
        async for text in self._socket:
            message = json.loads(text)
            if "id" in message:
                answer = self._answers.pop(message["id"])
                if answer.done():
                    continue
                if "error" in message:
                    answer.set_exception(AssertionError(message["error"]))
                else:
                    answer.set_result(message["result"])
                continue
            match message["method"], message["params"]:
                case "Runtime.exceptionThrown", params:
                    details = params["exceptionDetails"]
                    self.errors.append(details.get("exception", {}).get("description", details["text"]))
                case "Log.entryAdded", {"entry": {"level": "error"} as entry}:
                    self.errors.append(f"{entry['text']} {entry.get('url', '')}")
                case "Network.requestWillBeSent", params:
                    self.requested.append(params["request"]["url"])
                case "Network.webSocketCreated", params:
                    self.requested.append(params["url"])
