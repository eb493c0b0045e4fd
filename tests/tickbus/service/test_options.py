"""Options: one declaration, four sources, and for every mistake one line that names its place."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cli import COMMANDS, _module
from tickbus.errors import ConfigError
from tickbus.sanitize import redact
from tickbus.service.load_options import declared_options, load
from tickbus.service.options import CommonOptions, Option, ServiceOptions
from tickbus.units import SECOND, Duration, Size


class Options(ServiceOptions, frozen=True, kw_only=True):
    must: Annotated[str, Option("needed")]
    maybe: Annotated[str | None, Option("or not")] = None
    number: Annotated[int, Option("how many", minimum=1, maximum=9)] = 3
    switch: Annotated[bool, Option("on or off, 100 %")] = False
    wait: Annotated[Duration, Option("how long", minimum=SECOND)] = Duration(2 * SECOND)
    room: Annotated[Size, Option("how much")] = Size(1 << 20)
    path: Annotated[Path, Option("where")] = Path("data")
    choice: Annotated[Literal["a", "b"], Option("which")] = "a"
    names: Annotated[tuple[str, ...], Option("several")] = ()
    from_: Annotated[str, Option("a Python keyword")] = "now"
    token: Annotated[str | None, Option("secret", secret=True)] = None


class Other(ServiceOptions, frozen=True, kw_only=True):
    grace: Annotated[Duration, Option("another command's")] = Duration(SECOND)


def loaded(*args: str, file: Path | None = None, **environ: str) -> Options:
    config = ["--config", str(file)] if file else []
    return load(Options, "part", [*config, *args], environ=environ, tables={"part": Options, "other": Other})


def error_of(*args: str, file: Path | None = None, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(*args, file=file, **environ)
    text = str(caught.value)
    assert "\n" not in text
    return text


Write = Callable[[str], Path]


@pytest.fixture
def toml(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "tickbus.toml"
        path.write_text(text)
        return path

    return write


def test_missing_options_have_their_defaults() -> None:
    options = loaded("--must", "x")
    assert (options.must, options.maybe, options.number, options.switch, options.names, options.path) == (
        "x",
        None,
        3,
        False,
        (),
        Path("data"),
    )
    assert (options.redis, options.shards, options.prefix) == ("redis://127.0.0.1:6379/0", 64, "tickbus")


def test_flags_override_the_environment_and_the_environment_the_file(toml: Write) -> None:
    file = toml('prefix = "from-file"\nlog_level = "error"\n[part]\nmust = "file"\nnumber = 7\nwait = "9s"\n')
    options = loaded(
        "--number", "5", file=file, TICKBUS_NUMBER="6", TICKBUS_WAIT="8s", TICKBUS_PREFIX="from-environ"
    )
    assert (options.number, options.wait, options.must, options.prefix, options.log_level) == (
        5,
        8 * SECOND,
        "file",
        "from-environ",
        "error",
    )


def test_value_is_the_same_from_flag_environment_and_file(toml: Write) -> None:
    file = toml(
        '[part]\nmust = "x"\nnumber = 4\nswitch = true\nwait = "3s"\nroom = 5\npath = "p"\nchoice = "b"\n'
        'names = ["a", "b"]\nfrom = "start"\nmetrics-port = 7\n'
    )
    by_flag = loaded(
        "--must", "x", "--number", "4", "--switch", "--wait", "3s", "--room", "5", "--path", "p",
        "--choice", "b", "--names", "a, b,", "--from", "start", "--metrics-port", "7",
    )  # fmt: skip
    by_environ = loaded(
        TICKBUS_MUST="x", TICKBUS_NUMBER="4", TICKBUS_SWITCH="yes", TICKBUS_WAIT="3s", TICKBUS_ROOM="5",
        TICKBUS_PATH="p", TICKBUS_CHOICE="b", TICKBUS_NAMES="a,b", TICKBUS_FROM="start",
        TICKBUS_METRICS_PORT="7",
    )  # fmt: skip
    assert loaded(file=file) == by_flag == by_environ
    assert by_flag.names == ("a", "b") and by_flag.from_ == "start" and by_flag.room == 5
    assert loaded("--must", "x", "--switch", "false").switch is False


def test_environment_can_name_the_config_file(toml: Write) -> None:
    assert loaded(TICKBUS_CONFIG=str(toml('[part]\nmust = "x"\n'))).must == "x"


def test_secrets_can_be_read_from_files(tmp_path: Path, toml: Write) -> None:
    secret = tmp_path / "secret"
    secret.write_text(" s3cret\n")
    assert loaded("--must", "x", "--token-file", str(secret)).token == "s3cret"
    assert loaded("--must", "x", TICKBUS_TOKEN_FILE=str(secret)).token == "s3cret"
    assert loaded(file=toml(f'[part]\nmust = "x"\ntoken_file = "{secret}"\n')).token == "s3cret"
    assert loaded("--must", "x", "--redis-file", str(secret)).redis == "s3cret"
    assert loaded("--must", "x", "--token", "flag", TICKBUS_TOKEN_FILE=str(secret)).token == "flag"
    assert "--token, --token-file: give" in error_of(
        "--must", "x", "--token", "a", "--token-file", str(secret)
    )
    assert "--token-file: cannot read /no/such" in error_of("--must", "x", "--token-file", "/no/such")
    assert "TICKBUS_TOKEN_FILE: cannot read /no/such" in error_of(
        "--must", "x", TICKBUS_TOKEN_FILE="/no/such"
    )
    assert "token_file: cannot read /no/such" in error_of(
        file=toml('[part]\nmust = "x"\ntoken_file = "/no/such"\n')
    )
    secret.write_text("\n")
    assert f"--token-file: {secret} is empty" in error_of("--must", "x", "--token-file", str(secret))
    secret.write_bytes(b"\xff\xfe")
    assert "--token" in error_of("--must", "x", "--token-file", str(secret))


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ([], "--must is missing (also TICKBUS_MUST): needed"),
        (["--must", "x", "--number", "x"], "--number: invalid value 'x': expected a whole number"),
        (
            ["--must", "x", "--number", "10"],
            "--number: 10 is out of range: expected at least 1 and at most 9",
        ),
        (["--must", "x", "--number", "1.5"], "--number: invalid value '1.5': expected a whole number"),
        (["--must", "x", "--number", "9" * 5000], "--number"),
        (["--must", "x", "--switch=maybe"], "--switch"),
        (["--must", "x", "--wait", "5"], "--wait: invalid duration '5': expected e.g. 500ms"),
        (["--must", "x", "--wait", "1ms"], "--wait"),
        (["--must", "x", "--room", "much"], "--room: invalid size 'much'"),
        (["--must", "x", "--choice", "c"], "--choice: invalid value 'c': expected one of a, b"),
        (
            ["--must", "x", "--shards", "0"],
            "--shards: 0 is out of range: expected at least 1 and at most 1000",
        ),
        (["--must"], "--must"),
        (["--must", "x", "--unknown"], "unrecognized arguments: --unknown; see tickbus part --help"),
        (["--mus", "x"], "--mus"),
        (["--must", "x", "stray"], "stray"),
    ],
)
def test_mistake_in_a_flag_is_one_line(args: list[str], error: str) -> None:
    assert error in error_of(*args)


def test_mistake_in_the_environment_is_one_line() -> None:
    assert error_of("--must", "x", TICKBUS_NUMBER="x").startswith(
        "TICKBUS_NUMBER: invalid value 'x': expected a whole number"
    )
    assert loaded("--must", "x", TICKBUS_NUMBER="").number == 3  # empty means unset, as in compose files


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[part", "invalid TOML file"),
        ("must = 5\nmust = 6", "invalid TOML file"),
        ("[parts]\n", "unknown table [parts]; did you mean 'part'?"),
        ("[part]\nnumbr = 5", "unknown key 'numbr' in [part]; did you mean 'number'?"),
        ("[part]\nmust-file = 'x'\nmust_file = 'y'", "'must-file' and 'must_file' are the same option"),
        (
            "log-level = 'info'\nlog_level = 'debug'",
            "'log-level' and 'log_level' are the same option; remove one",
        ),
        ("[other]\nnumber = 5", "unknown key 'number' in [other]"),
        ("prefx = 'x'", "unknown key 'prefx' at the top; did you mean 'prefix'?"),
        ("number = 5", "unknown key 'number' at the top; put a command's own options in its table"),
        ("part = 5", "'part' is a command: put its options in a table [part]"),
        ("[part]\nmust = 5", "must: invalid value 5: expected text; put it in quotes"),
        ("[part]\nmust = 'x'\nwait = 5", "wait: invalid duration '5': expected e.g. 500ms"),
        ("[part]\nmust = 'x'\nnumber = 5.0", "number: invalid value 5.0: expected a whole number"),
        ("[part]\nmust = 'x'\nnumber = true", "number: invalid value True: expected a whole number"),
        ("[part]\nmust = 'x'\nswitch = 1", "switch: invalid value 1: expected true or false"),
        ("[part]\nmust = 'x'\nnames = [1]", "names: invalid value 1: expected text"),
        ("[part]\nmust = 'x'\nchoice = ['a']", "choice: invalid value ['a']: expected one of a, b"),
        ("[part]\nmust = {a = 1}", "must: invalid value {'a': 1}: expected text"),
        ("[part.deeper]\nmust = 'x'", "unknown key 'deeper' in [part]"),
        ("[part]\nmust = 'x'\ntoken_file = 5", "token"),
    ],
)
def test_mistake_in_the_file_is_one_line(text: str, error: str, toml: Write) -> None:
    found = error_of(file=toml(text))
    assert error in found
    assert "tickbus.toml" in found or "token" in error


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in error_of(file=tmp_path / "none")
    assert "directory" in error_of(file=tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "invalid TOML file" in error_of(file=tmp_path / "binary")


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_file_is_accepted_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        loaded("--must", "x", file=path)
    except ConfigError as error:
        assert "\n" not in str(error)


@settings(deadline=None)
@given(
    st.lists(
        st.text(max_size=8)
        | st.sampled_from(["--must", "--number", "--switch", "--config", "--names", "--token-file", "--"]),
        max_size=5,
    )
)
def test_any_arguments_are_accepted_or_refused_in_one_line(args: list[str]) -> None:
    if any(arg in ("-h", "--help") for arg in args):
        return
    try:
        loaded(*args)
    except ConfigError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_is_declared_once_and_well(command: str) -> None:
    fields = declared_options(_module(command).Options)
    assert len({field.flag for field in fields}) == len(fields)
    for field in fields:
        assert field.option.help
        assert field.flag.removeprefix("--").replace("-", "_") == field.key
        if field.default not in (None, ()):  # a default must be a valid value
            field.parse(field.default_text(), field.flag)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_flag(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = _module(command)
    with pytest.raises(SystemExit) as exited:
        load(
            module.Options, command, ["--help"],
            environ={}, about=module.ABOUT, positionals=module.POSITIONALS,
        )  # fmt: skip
    assert exited.value.code == 0
    text = capsys.readouterr().out
    named = {name for name, *_ in module.POSITIONALS}
    assert all(field.flag in text for field in declared_options(module.Options) if field.name not in named)


def test_redact_removes_secrets_from_urls() -> None:
    assert redact("redis://user:pa:ss@host:1/0?x=1") == "redis://***@host:1/0"
    assert redact("redis://host:1/0") == "redis://host:1/0"
    assert redact("wss://vendor/path?token=s3cret") == "wss://vendor/path"
    assert "pa/ss" not in redact("redis://user:pa/ss@host/0")
    assert redact("redis://user:p@ss?w/rd@host/0") == "redis://***@host/0"


def test_every_command_has_the_common_options() -> None:
    assert {field.name for field in declared_options(CommonOptions)} <= {
        field.name for field in declared_options(Options)
    }
