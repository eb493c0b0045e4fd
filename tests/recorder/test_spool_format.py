"""A spool file gives back what was written, up to where it was torn, and never anything else."""

import io
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorder.recorded import BARS, BTC, ETH, NOON, QUOTES, id_of, rows, trade

from services.recorder.buffer import Rows, Run
from services.recorder.row_ids import Entries
from services.recorder.spool_format import MAGIC, Damage, pack, unpack
from tickbus.protocol.names import START, Stream, StreamId

_INTEGERS = st.integers(0, 2**63 - 1)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """As the buffer makes them: IDs ascend, also from the row before."""
    before, *ids = sorted(
        draw(st.lists(st.tuples(_INTEGERS, _INTEGERS), min_size=2, max_size=6, unique=True))
    )
    count = len(ids)
    ms, seqs = zip(*ids, strict=True)
    epochs = draw(st.lists(_INTEGERS, min_size=count, max_size=count))
    gaps = bytes(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    payloads = draw(st.lists(st.binary(max_size=50), min_size=count, max_size=count))
    return Run(
        StreamId(*before),
        Rows(draw(st.sampled_from([BTC, ETH, QUOTES, BARS])), Entries(ms, seqs, epochs), gaps, payloads),
    )


def plain(run: Run | Damage) -> object:
    if isinstance(run, Damage):
        return run
    stream, entries, gaps, payloads = run.rows
    return run.before, stream, list(entries.ms), list(entries.seq), list(entries.epoch), gaps, payloads


def read(data: bytes) -> list[object]:
    return [plain(found) for found in unpack(io.BytesIO(data))]


ONE = pack(
    [
        Run(START, rows(BTC, [(id_of(1), trade(1)), (id_of(2), trade(2))])),
        Run(id_of(7), rows(ETH, [(id_of(8), trade(8, "ETH-USDT"))])),
    ]
)
TWO = pack([Run(id_of(2), rows(BTC, [(id_of(3), trade(3))]))])
FILE = MAGIC + ONE + TWO
WHOLE = read(FILE)


@given(st.lists(st.lists(runs(), min_size=1, max_size=3), max_size=3))
def test_what_was_written_comes_back(records: list[list[Run]]) -> None:
    assert read(MAGIC + b"".join(map(pack, records))) == [plain(run) for record in records for run in record]


def test_the_layout_on_the_disk() -> None:
    """Little-endian length and checksum, then MessagePack: what an older or newer version has to find again."""
    record = pack([Run(START, Rows(BTC, Entries([NOON], [1], [4]), b"\0", [b"xyz"]))])
    body = record[8:]
    assert (int.from_bytes(record[:4], "little"), int.from_bytes(record[4:8], "little")) == (
        len(body),
        zlib.crc32(body),
    )
    assert body == (
        b"\x91\x97" b"\x94\xa5trade\xa7binance\xa8BTC-USDT\xa0" b"\x92\x00\x00"
        b"\xc4\x08" + NOON.to_bytes(8, "little") + b"\xc4\x08" + (1).to_bytes(8, "little") + b"\xc4\x08" + (4).to_bytes(8, "little")
        + b"\xc4\x01\x00" b"\x91\xc4\x03xyz"
    )  # fmt: skip


def test_torn_off_anywhere_what_is_complete_comes_back() -> None:
    for end in range(len(FILE)):
        found = read(FILE[:end])
        if end == 0:
            # begun, and killed before the first write
            assert found == []
        elif end < len(MAGIC):
            assert found == [Damage(0, "torn off")]
        elif end < len(MAGIC + ONE):
            assert found == ([] if end == len(MAGIC) else [Damage(len(MAGIC), "torn off")])
        else:
            start = len(MAGIC + ONE)
            assert found == (WHOLE[:2] if end == start else [*WHOLE[:2], Damage(start, "torn off")])


def test_zeros_of_a_lost_write_are_no_records() -> None:
    assert read(MAGIC + ONE + bytes(4096)) == [*WHOLE[:2], Damage(len(MAGIC + ONE), "torn off")]


def test_behind_a_wrong_checksum_it_goes_on() -> None:
    broken = bytearray(FILE)
    broken[len(MAGIC) + 30] ^= 1
    assert read(bytes(broken)) == [Damage(len(MAGIC), "wrong checksum"), *WHOLE[2:]]


def test_another_version_is_left_alone() -> None:
    assert read(b"tbspool2" + ONE) == [Damage(0, "no spool file of this version")]


def framed(body: bytes) -> bytes:
    return MAGIC + len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body


@pytest.mark.parametrize(
    "run",
    [
        Run(START, Rows(Stream("signal", "f", "A"), Entries([1], [1], [1]), b"\0", [b""])),
        Run(START, Rows(BTC, Entries([1], [1], [1]), b"", [b""])),
        Run(START, Rows(BTC, Entries([1, 2], [1], [1]), b"\0", [b""])),
        Run(START, Rows(BTC, Entries(), b"", [])),
        Run(START, Rows(BTC, Entries([2, 1], [1, 2], [1, 1]), b"\0\0", [b"", b""])),
        Run(StreamId(1, 1), Rows(BTC, Entries([1], [1], [1]), b"\0", [b""])),
    ],
)
def test_rows_that_nobody_here_writes_are_refused(run: Run) -> None:
    assert read(MAGIC + pack([run])) == [Damage(len(MAGIC), "no rows that are recorded")]
    assert read(framed(b"\xc1")) == [Damage(len(MAGIC), "no record of this version")]


@given(st.binary(max_size=200))
def test_any_bytes_are_records_or_told(data: bytes) -> None:
    for content in (data, MAGIC + data, framed(data)):
        for found in unpack(io.BytesIO(content)):
            assert isinstance(found, Run | Damage)


@given(st.integers(0, 2**32))
def test_of_a_damaged_file_nothing_comes_that_was_not_written(seed: int) -> None:
    chance = random.Random(seed)
    broken = bytearray(FILE)
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(broken))
        broken[at : at + chance.randint(0, 20)] = chance.randbytes(chance.randint(0, 20))
    found = read(bytes(broken))
    assert [run for run in found if not isinstance(run, Damage)] == [run for run in WHOLE if run in found]
    assert (
        found == WHOLE
        or any(isinstance(run, Damage) for run in found)
        or bytes(broken) in (b"", MAGIC, MAGIC + ONE)
    )
