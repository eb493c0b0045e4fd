"""The layers of the code base, checked on the imports in the source; docs/architecture.md draws them.

An import under `if TYPE_CHECKING` counts like any other: it never happens, but a reader follows it all the
same. One inside a function counts too.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

# each layer may import from the layers above it in this list, and nothing from beside or below it
LAYERS = """
tickbus.errors tickbus.version tickbus.sanitize services
tickbus.units tickbus.durable
tickbus.fixed_point
tickbus.clock tickbus.protocol
tickbus.redis tickbus.trading_days
tickbus.reader tickbus.writer tickbus.wants
tickbus.consumer
tickbus.subscription tickbus.monitoring
tickbus.readable
tickbus.bus tickbus.remote
tickbus
tickbus.service
services.vendors services.archive services.output services.trading_hours services.frames
services.gateway.batching services.gateway.sequencing
services.gateway.spill
services.gateway.delivery
services.gateway.upstream
services.gateway.subscriptions
services.relay.selection
services.relay.conflation services.relay.requests
services.relay.followed
services.relay.styles
services.relay.delivery
services.gateway services.bars services.recorder services.relay services.signals services.notify
services.simulator services.demo services.tools
services.cli
"""

PURE = "tickbus.protocol services.vendors services.gateway.sequencing services.bars services.signals"
"""Packages that run without loop, network or server, as does every module whose docstring says `Pure.`"""
EDGES = """services.bars.main services.bars.service services.bars.metrics
services.signals.main services.signals.service services.signals.metrics services.signals.parameter_store"""
"""Modules of pure packages that are not pure."""

IMPURE = {
    "asyncio",
    "redis",
    "websockets",
    "socket",
    "ssl",
    "selectors",
    "threading",
    "subprocess",
    "http",
    "urllib.request",
    "prometheus_client",
}


def sources() -> Iterator[tuple[str, Path]]:
    for top, base in (("shared/tickbus", ROOT / "shared"), ("services", ROOT)):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


FILES = dict(sources())
LAYER = {name: number for number, layer in enumerate(LAYERS.split("\n")) for name in layer.split()}


def imports_of(path: Path) -> set[str]:
    """Return the modules that a module imports; `from a.b import c` is a.b.c if that is one, else a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports are absolute"
            inner = (f"{node.module}.{alias.name}" for alias in node.names)
            names.update(name if name in FILES else node.module for name in inner)
    return names


IMPORTS = {module: imports_of(path) for module, path in FILES.items()}


def reached_from(module: str) -> dict[str, str]:
    """Return every module that `module` pulls in, ours and third-party, with our module that imports it."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        at = waiting.pop()
        for name in IMPORTS.get(at, ()):
            if name not in found:
                found[name] = at
                waiting.append(name)
    return found


def layer_entry_of(module: str) -> str:
    """Return the entry of LAYERS for a module: its own, or that of the nearest enclosing package."""
    while module not in LAYER:
        module = module.rpartition(".")[0]
        assert module, "every module belongs to a layer"
    return module


def is_within(module: str, packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages.split())


def claims_to_be_pure(path: Path) -> bool:
    return "Pure." in (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")


@pytest.mark.parametrize("module", FILES)
def test_imports_point_to_lower_layers(module: str) -> None:
    here = layer_entry_of(module)
    for name in IMPORTS[module]:
        if name in FILES:
            there = layer_entry_of(name)
            assert here == there or LAYER[there] < LAYER[here], (
                f"{module} ({here}) imports {name} ({there}), which is not below it"
            )


@pytest.mark.parametrize("module", FILES)
def test_modules_have_no_import_cycle(module: str) -> None:
    assert module not in reached_from(module), (
        f"{module} imports itself through {reached_from(module).get(module)}"
    )


@pytest.mark.parametrize(
    "module",
    [
        name
        for name, path in FILES.items()
        if (is_within(name, PURE) and not is_within(name, EDGES)) or claims_to_be_pure(path)
    ],
)
def test_pure_modules_do_not_reach_a_loop_network_or_server(module: str) -> None:
    for name, importer in reached_from(module).items():
        assert name not in IMPURE and name.partition(".")[0] not in IMPURE, (
            f"{module} reaches {name} through {importer}"
        )


def test_library_imports_only_its_dependencies() -> None:
    third = {
        name.partition(".")[0]
        for module, names in IMPORTS.items()
        if is_within(module, "tickbus") and not is_within(module, "tickbus.service tickbus.remote")
        for name in names
    }
    # prometheus_client is the extra `service`: tickbus.monitoring.metrics imports it to create meters
    assert third - sys.stdlib_module_names - {"tickbus"} <= {
        "msgspec",
        "redis",
        "hiredis",
        "prometheus_client",
    }


_WATCH = """
import importlib, os, sys
events = []
FORBIDDEN = {"socket.bind", "socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.fork",
             "os.posix_spawn", "_thread.start_new_thread", "os.mkdir", "os.remove", "os.rename",
             "tempfile.mkdtemp", "tempfile.mkstemp", "os.putenv"}
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT
def watch(event, args):
    writes = event == "open" and isinstance(args[2], int) and args[2] & WRITE_FLAGS and args[0] != os.devnull
    if (event in FORBIDDEN or writes) and current[0]:
        events.append((current[0], event, str(args)[:100]))
ours = sys.argv[1:]
current = [None]
# third-party packages may do what they like when they are imported
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
    """No thread, process, socket or file: a program that imports a name has not asked for anything yet."""
    third = {
        name
        for names in IMPORTS.values()
        for name in names
        if name.partition(".")[0] not in sys.stdlib_module_names | {"tickbus", "services"}
    }
    command = [sys.executable, "-B", "-c", f"THIRD = {third!r}\n{_WATCH}", *FILES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
