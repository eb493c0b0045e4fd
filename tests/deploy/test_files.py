"""The deployment's files, each checked by the program that reads it, and for what must never be in them."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.paths import ROOT
from support.redis_server import needs

from services.cli import COMMANDS

OURS = ("gateway", "bars", "recorder", "simulator")


def run(program: str, *arguments: str, env: dict[str, str] | None = None) -> str:
    """Standard output of a program of the virtual environment or the machine."""
    own = Path(sys.executable).with_name(program)
    path = needs(str(own) if own.exists() else program)
    done = subprocess.run(
        [path, *arguments], cwd=ROOT, capture_output=True, text=True, env=env, timeout=30, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """docker-compose.yml as Compose understands it where nothing is set."""
    text = run(
        "docker-compose",
        "--env-file",
        os.devnull,
        "config",
        "--format",
        "json",
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
    )
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def test_prometheus_configuration() -> None:
    run("promtool", "check", "config", "deploy/prometheus/prometheus.yml")


def test_dockerfile() -> None:
    run("hadolint", "deploy/Dockerfile")
    text = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
    assert "syntax=" not in text, "the frontend would be fetched from a registry"
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001:10001"]


def test_ports_are_open_on_this_machine_only(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert published
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}


def test_containers_can_do_no_more_than_they_must(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["mem_limit"]) > 0, name
        assert service["restart"] == "unless-stopped", name
    for name in OURS:
        service = compose["services"][name]
        assert service["read_only"] is True
        assert service["image"] == "tickbus"
        assert "cap_add" not in service
        assert "ports" not in service
        assert service["command"][0] in COMMANDS


def test_every_service_is_scraped_where_it_listens(compose: dict[str, Any]) -> None:
    listening = {
        f"{name}:{compose['services'][name]['environment']['TICKBUS_METRICS_PORT']}" for name in OURS
    }
    config = (ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8")
    assert set(re.findall(r'"(\w+:\d+)"', config)) == listening


def test_no_secret_has_a_value(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for variable, value in (service.get("environment") or {}).items():
            if re.search("TOKEN|PASSWORD|SECRET|KEY", variable):
                assert not value, f"{name}: {variable}"


def test_the_example_names_what_compose_reads() -> None:
    known = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))
    shown = set(
        re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert shown == known


LOCKS = ("requirements.lock", "deploy/requirements.lock")


def pins(path: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Project and markers -> its pin and its hashes."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for entry in (ROOT / path).read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        requirement, *hashes = re.split(r"\s+--hash=", entry.strip())
        parsed = Requirement(requirement)
        found[f"{canonicalize_name(parsed.name)} {parsed.marker or ''}".strip()] = (
            str(parsed.specifier),
            frozenset(hashes),
        )
    return found


@pytest.mark.parametrize("path", LOCKS)
def test_a_lock_pins_by_hash_and_names_no_place(path: str) -> None:
    assert "://" not in (ROOT / path).read_text(encoding="utf-8")
    assert not re.search(
        r"^\s*-(?!-hash=sha256:)", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE
    ), "a line that is an option"
    for name, (specifier, hashes) in pins(path).items():
        assert specifier.startswith("=="), name
        assert hashes, name


def test_the_image_gets_what_was_tested() -> None:
    tested = pins("requirements.lock")
    for name, pin in pins("deploy/requirements.lock").items():
        assert tested[name] == pin


def requirements(project: dict[str, Any], extras: Sequence[str]) -> list[Requirement]:
    listed = [
        *project["dependencies"],
        *(line for extra in extras for line in project["optional-dependencies"][extra]),
    ]
    return [Requirement(line) for line in listed]


def test_every_direct_dependency_is_locked() -> None:
    services = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    library = tomllib.loads((ROOT / "shared/pyproject.toml").read_text(encoding="utf-8"))["project"]
    locked = {name.split(" ")[0]: specifier for name, (specifier, _) in pins("requirements.lock").items()}
    for wanted in requirements(services, ["recorder", "demo", "dev"]) + requirements(library, ["service"]):
        name = canonicalize_name(wanted.name)
        if name not in ("tickbus", "tickbus-services"):
            assert name in locked, f"{name}: run `make lock`"
            assert wanted.specifier.contains(locked[name].removeprefix("==")), f"{name}: run `make lock`"
