"""The deployment files, checked by the programs that read them, and for what must never be in them."""

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
from support.redis_server import require_program

from services.cli import COMMANDS

OURS = ("gateway", "bars", "relay", "recorder", "simulator")


def run(program: str, *arguments: str, env: dict[str, str] | None = None) -> str:
    """Run a program of the virtual environment or the machine and return its standard output."""
    own = Path(sys.executable).with_name(program)
    path = require_program(str(own) if own.exists() else program)
    result = subprocess.run(
        [path, *arguments], cwd=ROOT, capture_output=True, text=True, env=env, timeout=30, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """docker-compose.yml as Compose parses it with no variable set."""
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    text = run("docker-compose", "--env-file", os.devnull, "config", "--format", "json", env=environ)
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def test_prometheus_configuration_is_valid() -> None:
    run("promtool", "check", "config", "deploy/prometheus/prometheus.yml")


def test_dockerfile_is_clean_and_runs_unprivileged() -> None:
    run("hadolint", "deploy/Dockerfile")
    text = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
    assert "syntax=" not in text, "the frontend would be downloaded from a registry"
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001:10001"]


def test_ports_are_published_on_localhost_only(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert published
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}


def test_containers_have_minimal_privileges(compose: dict[str, Any]) -> None:
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
        assert ("ports" in service) == (name == "relay")
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


def test_example_environment_names_every_variable_of_compose() -> None:
    known = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))
    shown = set(
        re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert shown == known


LOCKS = ("requirements.lock", "deploy/requirements.lock")


def pins(path: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Return version and hashes of every pin of a lock file, by name and marker."""
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
def test_lock_pins_by_hash_and_names_no_url(path: str) -> None:
    assert "://" not in (ROOT / path).read_text(encoding="utf-8")
    assert not re.search(
        r"^\s*-(?!-hash=sha256:)", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE
    ), "a line is an option"
    for name, (specifier, hashes) in pins(path).items():
        assert specifier.startswith("=="), name
        assert hashes, name


def test_image_gets_the_tested_versions() -> None:
    tested = pins("requirements.lock")
    for name, pin in pins("deploy/requirements.lock").items():
        # with fewer packages the marker of one may be narrower
        assert tested.get(name, tested.get(name.partition(" ")[0])) == pin, name


def requirements(project: dict[str, Any], extras: Sequence[str]) -> list[Requirement]:
    listed = [
        *project["dependencies"],
        *(line for extra in extras for line in project["optional-dependencies"][extra]),
    ]
    return [Requirement(line) for line in listed]


def test_library_is_tried_on_the_oldest_versions_that_it_allows() -> None:
    library = tomllib.loads((ROOT / "shared/pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = {
        canonicalize_name(one.name): str(one.specifier).removeprefix(">=")
        for one in requirements(library, ["service"])
    }
    lines = (ROOT / "requirements-oldest.txt").read_text(encoding="utf-8").splitlines()
    tried = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert tried == bounds


def test_every_direct_dependency_is_locked() -> None:
    services = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    library = tomllib.loads((ROOT / "shared/pyproject.toml").read_text(encoding="utf-8"))["project"]
    locked = {name.split(" ")[0]: specifier for name, (specifier, _) in pins("requirements.lock").items()}
    for requirement in requirements(services, ["recorder", "demo", "dev"]) + requirements(
        library, ["service"]
    ):
        name = canonicalize_name(requirement.name)
        if name not in ("tickbus", "tickbus-services"):
            assert name in locked, f"{name}: run `make lock`"
            assert requirement.specifier.contains(locked[name].removeprefix("==")), f"{name}: run `make lock`"
