"""Options: one declaration, four sources, and every mistake one line that names its place."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cli import COMMANDS, _module
from tickbus.errors import ConfigError
from tickbus.sanitize import redact
from tickbus.service.load_options import declared, load
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
    from_: Annotated[str, Option("a keyword of Python")] = "now"
    token: Annotated[str | None, Option("secret", secret=True)] = None


class Other(ServiceOptions, frozen=True, kw_only=True):
    grace: Annotated[Duration, Option("another part's")] = Duration(SECOND)


def got(*args: str, file: Path | None = None, **environ: str) -> Options:
    config = ["--config", str(file)] if file else []
    return load(Options, "part", [*config, *args], environ=environ, tables={"part": Options, "other": Other})


def refused(*args: str, file: Path | None = None, **environ: str) -> str:
    with pytest.raises(ConfigError) as told:
        got(*args, file=file, **environ)
    text = str(told.value)
    assert "\n" not in text
    return text


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "tickbus.toml"
        path.write_text(text)
        return path

    return write


def test_defaults() -> None:
    options = got("--must", "x")
    assert (options.must, options.maybe, options.number, options.switch, options.names, options.path) == (
        "x",
        None,
        3,
        False,
        (),
        Path("data"),
    )
    assert (options.redis, options.shards, options.prefix) == ("redis://127.0.0.1:6379/0", 64, "tickbus")


def test_flags_win_over_the_environment_and_that_over_the_file(toml: Any) -> None:
    file = toml('prefix = "from-file"\nlog_level = "error"\n[part]\nmust = "file"\nnumber = 7\nwait = "9s"\n')
    options = got(
        "--number", "5", file=file, TICKBUS_NUMBER="6", TICKBUS_WAIT="8s", TICKBUS_PREFIX="from-environ"
    )
    assert (options.number, options.wait, options.must, options.prefix, options.log_level) == (
        5,
        8 * SECOND,
        "file",
        "from-environ",
        "error",
    )


def test_all_forms_of_a_value(toml: Any) -> None:
    file = toml(
        '[part]\nmust = "x"\nnumber = 4\nswitch = true\nwait = "3s"\nroom = 5\npath = "p"\nchoice = "b"\nnames = ["a", "b"]\nfrom = "start"\nmetrics-port = 7\n'
    )
    by_flag = got(
        "--must", "x", "--number", "4", "--switch", "--wait", "3s", "--room", "5", "--path", "p", "--choice", "b", "--names", "a, b,",
        "--from", "start", "--metrics-port", "7",
    )  # fmt: skip
    by_environ = got(
        TICKBUS_MUST="x", TICKBUS_NUMBER="4", TICKBUS_SWITCH="yes", TICKBUS_WAIT="3s", TICKBUS_ROOM="5", TICKBUS_PATH="p", TICKBUS_CHOICE="b",
        TICKBUS_NAMES="a,b", TICKBUS_FROM="start", TICKBUS_METRICS_PORT="7",
    )  # fmt: skip
    assert got(file=file) == by_flag == by_environ
    assert by_flag.names == ("a", "b") and by_flag.from_ == "start" and by_flag.room == 5
    assert got("--must", "x", "--switch", "false").switch is False


def test_the_file_may_be_named_by_the_environment(toml: Any) -> None:
    assert got(TICKBUS_CONFIG=str(toml('[part]\nmust = "x"\n'))).must == "x"


def test_secrets_from_files(tmp_path: Path, toml: Any) -> None:
    secret = tmp_path / "secret"
    secret.write_text(" s3cret\n")
    assert got("--must", "x", "--token-file", str(secret)).token == "s3cret"
    assert got("--must", "x", TICKBUS_TOKEN_FILE=str(secret)).token == "s3cret"
    assert got(file=toml(f'[part]\nmust = "x"\ntoken_file = "{secret}"\n')).token == "s3cret"
    assert got("--must", "x", "--redis-file", str(secret)).redis == "s3cret"
    assert got("--must", "x", "--token", "flag", TICKBUS_TOKEN_FILE=str(secret)).token == "flag"
    assert "--token, --token-file: give" in refused(
        "--must", "x", "--token", "a", "--token-file", str(secret)
    )
    assert "--token-file: cannot read /no/such" in refused("--must", "x", "--token-file", "/no/such")
    assert "TICKBUS_TOKEN_FILE: cannot read /no/such" in refused("--must", "x", TICKBUS_TOKEN_FILE="/no/such")
    assert "token_file: cannot read /no/such" in refused(
        file=toml('[part]\nmust = "x"\ntoken_file = "/no/such"\n')
    )
    secret.write_text("\n")
    assert f"--token-file: {secret} is empty" in refused("--must", "x", "--token-file", str(secret))
    secret.write_bytes(b"\xff\xfe")
    assert "--token" in refused("--must", "x", "--token-file", str(secret))


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "--must is missing (also TICKBUS_MUST): needed"),
        (["--must", "x", "--number", "x"], "--number: 'x' is no whole number"),
        (["--must", "x", "--number", "10"], "--number: 10 is out of range; use at least 1 and at most 9"),
        (["--must", "x", "--number", "1.5"], "--number: '1.5' is no whole number"),
        (["--must", "x", "--number", "9" * 5000], "--number"),
        (["--must", "x", "--switch=maybe"], "--switch"),
        (["--must", "x", "--wait", "5"], "--wait: '5' is no duration; write it like 500ms"),
        (["--must", "x", "--wait", "1ms"], "--wait"),
        (["--must", "x", "--room", "much"], "--room: 'much' is no size"),
        (["--must", "x", "--choice", "c"], "--choice: 'c' is none of a, b"),
        (["--must", "x", "--shards", "0"], "--shards: 0 is out of range; use at least 1 and at most 1000"),
        (["--must"], "--must"),
        (["--must", "x", "--unknown"], "unrecognized arguments: --unknown; see tickbus part --help"),
        (["--mus", "x"], "--mus"),
        (["--must", "x", "stray"], "stray"),
    ],
)
def test_mistakes_in_flags(args: list[str], told: str) -> None:
    assert told in refused(*args)


def test_mistakes_in_the_environment() -> None:
    assert refused("--must", "x", TICKBUS_NUMBER="x").startswith("TICKBUS_NUMBER: 'x' is no whole number")
    assert got("--must", "x", TICKBUS_NUMBER="").number == 3  # empty is not set, as compose files write it


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[part", "is no TOML file"),
        ("must = 5\nmust = 6", "is no TOML file"),
        ("[parts]\n", "unknown table [parts]; did you mean 'part'?"),
        ("[part]\nnumbr = 5", "unknown key 'numbr' in [part]; did you mean 'number'?"),
        ("[part]\nmust-file = 'x'\nmust_file = 'y'", "'must-file' and 'must_file' are one option"),
        (
            "log-level = 'info'\nlog_level = 'debug'",
            "'log-level' and 'log_level' are one option; leave one out",
        ),
        ("[other]\nnumber = 5", "unknown key 'number' in [other]"),
        ("prefx = 'x'", "unknown key 'prefx' at the top; did you mean 'prefix'?"),
        ("number = 5", "unknown key 'number' at the top; a part's own options stand in its table"),
        ("part = 5", "part is a part: its options stand below a line [part]"),
        ("[part]\nmust = 5", "must: 5 is no text; put it in quotes"),
        ("[part]\nmust = 'x'\nwait = 5", "wait: '5' is no duration; write it like 500ms"),
        ("[part]\nmust = 'x'\nnumber = 5.0", "number: 5.0 is no whole number"),
        ("[part]\nmust = 'x'\nnumber = true", "number: True is no whole number"),
        ("[part]\nmust = 'x'\nswitch = 1", "switch: 1 is neither true nor false"),
        ("[part]\nmust = 'x'\nnames = [1]", "names: 1 is no text"),
        ("[part]\nmust = 'x'\nchoice = ['a']", "choice: ['a'] is none of a, b"),
        ("[part]\nmust = {a = 1}", "must: {'a': 1} is no text"),
        ("[part.deeper]\nmust = 'x'", "unknown key 'deeper' in [part]"),
        ("[part]\nmust = 'x'\ntoken_file = 5", "token"),
    ],
)
def test_mistakes_in_the_file(text: str, told: str, toml: Any) -> None:
    found = refused(file=toml(text))
    assert told in found
    assert "tickbus.toml" in found or "token" in told


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refused(file=tmp_path / "none")
    assert "directory" in refused(file=tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "is no TOML file" in refused(file=tmp_path / "binary")


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_file_is_taken_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        got("--must", "x", file=path)
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
def test_any_arguments_are_taken_or_refused_in_one_line(args: list[str]) -> None:
    if any(arg in ("-h", "--help") for arg in args):
        return
    try:
        got(*args)
    except ConfigError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("part", COMMANDS)
def test_every_option_of_every_part_is_declared_once_and_well(part: str) -> None:
    fields = declared(_module(part).Options)
    assert len({field.flag for field in fields}) == len(fields)
    for field in fields:
        assert field.option.help
        assert field.flag.removeprefix("--").replace("-", "_") == field.key
        if field.default not in (None, ()):  # a default is a value that could have been given
            field.parse(field.shown_default(), field.flag)


@pytest.mark.parametrize("part", COMMANDS)
def test_help_names_every_flag(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = _module(part)
    with pytest.raises(SystemExit) as left:
        load(module.Options, part, ["--help"], environ={}, about=module.ABOUT, positionals=module.POSITIONALS)
    assert left.value.code == 0
    text = capsys.readouterr().out
    named = {name for name, *_ in module.POSITIONALS}
    assert all(field.flag in text for field in declared(module.Options) if field.name not in named)


def test_urls_without_their_secrets() -> None:
    assert redact("redis://user:pa:ss@host:1/0?x=1") == "redis://***@host:1/0"
    assert redact("redis://host:1/0") == "redis://host:1/0"
    assert redact("wss://vendor/path?token=s3cret") == "wss://vendor/path"
    assert "pa/ss" not in redact("redis://user:pa/ss@host/0")
    assert redact("redis://user:p@ss?w/rd@host/0") == "redis://***@host/0"


def test_common_options_are_those_of_every_part() -> None:
    assert {field.name for field in declared(CommonOptions)} <= {field.name for field in declared(Options)}
