"""Reading a spool file returns what was written, up to where it was truncated, and never anything else."""

import io
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorder.recorded import BARS, BTC, ETH, NOON, QUOTES, SIGNALS, id_of, rows, trade

from services.recorder.buffer import Rows, Run
from services.recorder.row_ids import RowIds
from services.recorder.spool_format import MAGIC, Damage, pack, unpack
from tickbus.protocol.names import START, Stream, StreamId

_INTEGERS = st.integers(0, 2**63 - 1)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """As the buffer creates them: IDs ascend, starting from the row before."""
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
        Rows(
            draw(st.sampled_from([BTC, ETH, QUOTES, BARS, SIGNALS])), RowIds(ms, seqs, epochs), gaps, payloads
        ),
    )


def plain(run: Run | Damage) -> object:
    if isinstance(run, Damage):
        return run
    stream, ids, gaps, payloads = run.rows
    return run.before, stream, list(ids.ms), list(ids.seq), list(ids.epoch), gaps, payloads


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
def test_records_round_trip(records: list[list[Run]]) -> None:
    assert read(MAGIC + b"".join(map(pack, records))) == [plain(run) for record in records for run in record]


def test_layout_on_disk_is_stable() -> None:
    """Little-endian length and checksum, then MessagePack: other versions must be able to read it."""
    record = pack([Run(START, Rows(BTC, RowIds([NOON], [1], [4]), b"\0", [b"xyz"]))])
    body = record[8:]
    assert (int.from_bytes(record[:4], "little"), int.from_bytes(record[4:8], "little")) == (
        len(body),
        zlib.crc32(body),
    )
    assert body == (
        b"\x91\x97" b"\x94\xa5trade\xa7binance\xa8BTC-USDT\xa0" b"\x92\x00\x00"
        b"\xc4\x08" + NOON.to_bytes(8, "little")
        + b"\xc4\x08" + (1).to_bytes(8, "little") + b"\xc4\x08" + (4).to_bytes(8, "little")
        + b"\xc4\x01\x00" b"\x91\xc4\x03xyz"
    )  # fmt: skip


def test_truncated_file_yields_its_complete_records() -> None:
    for end in range(len(FILE)):
        found = read(FILE[:end])
        if end == 0:
            # created, and killed before the first write
            assert found == []
        elif end < len(MAGIC):
            assert found == [Damage(0, "truncated")]
        elif end < len(MAGIC + ONE):
            assert found == ([] if end == len(MAGIC) else [Damage(len(MAGIC), "truncated")])
        else:
            start = len(MAGIC + ONE)
            assert found == (WHOLE[:2] if end == start else [*WHOLE[:2], Damage(start, "truncated")])


def test_zeros_of_lost_write_are_not_records() -> None:
    assert read(MAGIC + ONE + bytes(4096)) == [*WHOLE[:2], Damage(len(MAGIC + ONE), "truncated")]


def test_reading_continues_after_checksum_mismatch() -> None:
    broken = bytearray(FILE)
    broken[len(MAGIC) + 30] ^= 1
    assert read(bytes(broken)) == [Damage(len(MAGIC), "checksum mismatch"), *WHOLE[2:]]


def test_file_of_another_version_is_not_read() -> None:
    assert read(b"tbspool2" + ONE) == [Damage(0, "not a spool file of this version")]


def framed(body: bytes) -> bytes:
    return MAGIC + len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body


@pytest.mark.parametrize(
    "run",
    [
        Run(START, Rows(Stream("depth", "f", "A"), RowIds([1], [1], [1]), b"\0", [b""])),
        Run(START, Rows(BTC, RowIds([1], [1], [1]), b"", [b""])),
        Run(START, Rows(BTC, RowIds([1, 2], [1], [1]), b"\0", [b""])),
        Run(START, Rows(BTC, RowIds(), b"", [])),
        Run(START, Rows(BTC, RowIds([2, 1], [1, 2], [1, 1]), b"\0\0", [b"", b""])),
        Run(StreamId(1, 1), Rows(BTC, RowIds([1], [1], [1]), b"\0", [b""])),
    ],
)
def test_rows_that_pack_never_writes_are_rejected(run: Run) -> None:
    assert read(MAGIC + pack([run])) == [Damage(len(MAGIC), "not rows of a recorded stream")]
    for body in (b"\xc1", b"\x91\x97\x94\xa1\xff"):  # no MessagePack; text that is not UTF-8
        assert read(framed(body)) == [Damage(len(MAGIC), "not a record of this version")]


@given(st.binary(max_size=200))
def test_any_bytes_are_records_or_damage(data: bytes) -> None:
    for content in (data, MAGIC + data, framed(data)):
        for found in unpack(io.BytesIO(content)):
            assert isinstance(found, Run | Damage)


@given(st.integers(0, 2**32))
def test_damaged_file_yields_only_written_records(seed: int) -> None:
    rng = random.Random(seed)
    broken = bytearray(FILE)
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(broken))
        broken[at : at + rng.randint(0, 20)] = rng.randbytes(rng.randint(0, 20))
    found = read(bytes(broken))
    assert [run for run in found if not isinstance(run, Damage)] == [run for run in WHOLE if run in found]
    assert (
        found == WHOLE
        or any(isinstance(run, Damage) for run in found)
        or bytes(broken) in (b"", MAGIC, MAGIC + ONE)
    )
