"""Which module may know which: checked on the imports that stand in the source.

An import under `if TYPE_CHECKING` never happens and does not count; one inside a function does. A package's `__init__` counts
for those who import the package by name, not for those who import a module of it.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PURE = {
    "tickbus": "address assignment authors delivered errors gaps messages names outputs reads slots specs streams units wire",
    "services.gateway": "feeds.* catching_up delays frames segment sequencer symbols together hours backoff",
    "services.bars": "sessions digits cells tally stretch holes watermark time_bars timeline count_bars builder state",
    "services.recorder": "manifest sheet draft buffer records",
    "services.recorded": "columns",
    "services.tools": "lines rewriting",
    "services.simulator": "protocols.* market synthetic faults tampering ledger",
}
"""Arithmetic on what they are given: they run without a network, a loop or a server. A pattern covers a folder of plug-ins."""

IMPURE = {"asyncio", "redis", "hiredis", "websockets", "socket", "ssl", "selectors", "threading", "subprocess", "http", "prometheus_client"}

LIBRARIES = {"recorded"}
"""Folders under services/ that several services use; they start nothing."""

CONTRACT = {"tickbus.errors", "tickbus.units", "tickbus.messages", "tickbus.names", "tickbus.wire"}
"""What is said on the bus, and nothing about how it gets there."""


def sources() -> Iterator[tuple[str, Path]]:
    for top, base in (("shared/tickbus", ROOT / "shared"), ("services", ROOT)):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


FILES = dict(sources())


class _Imports(ast.NodeVisitor):
    """Names that a module imports, each as far as it is a module: `from a.b import c` gives a.b.c if that is one, else a.b."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for child in node.orelse:
                self.visit(child)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.names.update(alias.name for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0 and node.module, "imports are absolute"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            self.names.add(inner if inner in FILES else node.module)


def imports_of(path: Path) -> set[str]:
    visitor = _Imports()
    visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
    return visitor.names


IMPORTS = {module: imports_of(path) for module, path in FILES.items()}


def reached_from(module: str) -> dict[str, str]:
    """Every module that `module` pulls in, ours and others', with the one of ours that imports it."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        at = waiting.pop()
        for name in IMPORTS.get(at, ()):
            if name not in found:
                found[name] = at
                waiting.append(name)
    return found


def service_of(module: str) -> str | None:
    """`gateway` of services.gateway.feeds.json; None of what is no service's own."""
    top, _, rest = module.partition(".")
    name = rest.partition(".")[0]
    return name if top == "services" and name not in LIBRARIES and f"services.{name}" in FILES and (ROOT / "services" / name).is_dir() else None


@pytest.mark.parametrize("pattern", [f"{package}.{name}" for package, names in PURE.items() for name in names.split()])
def test_a_pure_core_reaches_no_loop_no_network_and_no_server(pattern: str) -> None:
    modules = [module for module in FILES if fnmatchcase(module, pattern)]
    assert modules, f"no module is named {pattern}: this list says what is so"
    for module in modules:
        for name, importer in reached_from(module).items():
            assert name.partition(".")[0] not in IMPURE, f"{module} reaches {name} through {importer}"


def test_the_contract_knows_only_itself() -> None:
    for module in CONTRACT:
        assert {name for name in IMPORTS[module] if name.startswith(("tickbus", "services"))} <= CONTRACT, module


def test_the_library_knows_no_service_and_only_services_know_the_runner() -> None:
    for module, names in IMPORTS.items():
        if module.startswith("tickbus"):
            assert not any(name.split(".")[0] == "services" for name in names), module
            assert "tickbus.service" not in names, module


def test_an_app_that_installs_the_library_needs_no_more_than_its_dependencies() -> None:
    third = {
        name.partition(".")[0] for module, names in IMPORTS.items() if module.startswith("tickbus") and module != "tickbus.service" for name in names
    }
    outside = third - sys.stdlib_module_names - {"tickbus"}
    # prometheus_client is the extra `service`: tickbus.metrics imports it when a service makes its meters
    assert outside <= {"msgspec", "redis", "hiredis", "prometheus_client"}


def test_services_never_import_each_other() -> None:
    for module, names in IMPORTS.items():
        if own := service_of(module):
            others = {name for name in names if service_of(name) not in (None, own)}
            assert not others, f"{module} imports {others}: services meet only on the bus; what two need belongs into shared/tickbus"
            assert "services.cli" not in names, module


def test_no_module_goes_in_circles() -> None:
    for module in FILES:
        assert module not in reached_from(module), f"{module} imports itself through {reached_from(module).get(module)}"


_WATCH = """
import importlib, os, sys
events = []
FORBIDDEN = {"socket.bind", "socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "_thread.start_new_thread",
             "os.mkdir", "os.remove", "os.rename", "tempfile.mkdtemp", "tempfile.mkstemp", "os.putenv"}
def watch(event, args):
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and args[0] != os.devnull
    if (event in FORBIDDEN or writes) and current[0]:
        events.append((current[0], event, str(args)[:100]))
ours = sys.argv[1:]
current = [None]
# what packages of others do when they are imported is theirs
for name in sorted(THIRD):
    importlib.import_module(name)
sys.addaudithook(watch)
for name in ours:
    current[0] = name
    importlib.import_module(name)
current[0] = None
for event in events:
    print(*event)
"""


def test_importing_a_module_starts_nothing() -> None:
    """No thread, no process, no socket, no file: a program that imports a name has asked for nothing yet."""
    third = {name for names in IMPORTS.values() for name in names if name.partition(".")[0] not in sys.stdlib_module_names | {"tickbus", "services"}}
    command = [sys.executable, "-B", "-c", f"THIRD = {third!r}\n{_WATCH}", *FILES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
