"""Tables: whole pieces are split at once, and give what row by row would."""

from __future__ import annotations

import gzip
import io
import math
import random
import re
from pathlib import Path

import pytest

from imax_jax.data.sources import files
from imax_jax.data.sources import reading
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Intake

HEADER = b"a,b,c"
# Good and bad rows; what each gives of the columns c and a, or the reason.
RAGGED = "has more or fewer cells than the header"
ROWS: dict[bytes, tuple[str, str] | str] = {
  b"1,2,3": ("3", "1"),
  b",,": ("", ""),
  "é,ß,→".encode(): ("→", "é"),
  b'"x, y",2,"z ""q"""': ('z "q"', "x, y"),
  b"1,2": RAGGED,
  b"1,2,3,4": RAGGED,
  b"\xff,2,3": "is not UTF-8",
  b"1,\x00,3": "has a NUL byte",
  b'"1,2,3': "is not csv (a quote is missing, or a cell is too long)",
}


def _read(path, tmp_path):
  intake = Intake(tmp_path / "quarantine.jsonl")
  tally = intake.tally("x", tmp_path)
  found = dict(reading.table_rows(path, ("c", "a"), tally))
  intake.close()
  return found, tally


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("piece", [1, 7, 50, 2**20])
def test_pieces_give_what_rows_give(tmp_path, monkeypatch, piece, end):
  monkeypatch.setattr(reading, "_PIECE_BYTES", piece)
  random_ = random.Random(piece)
  kinds = list(ROWS)
  for case in range(30):
    # The first cases have good rows only; a bad one hides among many in the others.
    rows = random_.choices(kinds[: 3 if case < 10 else None], k=random_.randint(0, 40))
    last = end if random_.random() < 0.5 else b""
    path = tmp_path / f"{case}.csv"
    path.write_bytes(end.join([HEADER, *rows]) + last)
    found, tally = _read(path, tmp_path)
    said = [ROWS[row] for row in rows]
    assert found == {i: cells for i, cells in enumerate(said) if type(cells) is tuple}
    assert tally.rows == len(rows)
    assert sorted(tally.rejected.elements()) == sorted(
      s for s in said if type(s) is str
    )


def test_two_rows_that_make_up_for_each_other_are_both_ragged(tmp_path):
  path = tmp_path / "x.csv"
  path.write_bytes(b"a,b,c\n1,2\n1,2,3,4\n5,6,7\n")
  found, tally = _read(path, tmp_path)
  assert found == {2: ("7", "5")}
  assert tally.rejected == {RAGGED: 2}


def test_empty_lines_are_no_rows(tmp_path):
  path = tmp_path / "x.csv"
  path.write_bytes(b"a,b,c\n\n1,2,3\n\n\n4,5,6\n\n")
  found, tally = _read(path, tmp_path)
  assert found == {0: ("3", "1"), 1: ("6", "4")}
  assert tally.rows == 2


def test_what_precedes_a_damaged_place_is_given(tmp_path):
  lines = b"".join(b"%d,%d,%d\n" % (i, i * 7 % 1001, i * i) for i in range(100_000))
  packed = gzip.compress(HEADER + b"\n" + lines)
  path = tmp_path / "x.csv.gz"
  path.write_bytes(packed[: len(packed) // 2])
  rows = reading.table_rows(path, ("a",), Intake().tally("x", tmp_path))
  given = []
  with pytest.raises(DamagedFile, match="cannot be read to its end"):
    given.extend(rows)
  assert len(given) > 30_000
  assert given == [(i, (str(i),)) for i in range(len(given))]


def test_a_line_without_an_end_is_not_kept_in_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(reading, "MAX_ROW_BYTES", 1000)
  monkeypatch.setattr(reading, "_PIECE_BYTES", 100)
  path = tmp_path / "x.csv"
  path.write_bytes(b"a,b,c\n" + b"1" * 5000)
  with pytest.raises(DamagedFile, match="a row of over 1000 bytes"):
    _read(path, tmp_path)


@pytest.mark.parametrize("ending", ["", "/"])
def test_links_may_lead_where_they_stay_inside(tmp_path, ending):
  root, outside = tmp_path / "root", tmp_path / "outside"
  for folder in (root / "a/b", outside / "b"):
    folder.mkdir(parents=True)
    (folder / "x.jpg").touch()
  (root / "a/in.jpg").symlink_to(root / "a/b/x.jpg")
  (root / "a/out.jpg").symlink_to(outside / "b/x.jpg")
  (root / "in").symlink_to(root / "a")
  (root / "out").symlink_to(outside)
  (root / "beside").symlink_to(tmp_path / "root-2")
  leads_inside = files.Inside(f"{root}{ending}")
  said = {
    "a/b/x.jpg": True, "a/in.jpg": True, "a/out.jpg": False, "in/b/x.jpg": True,
    "out/b/x.jpg": False, "in/out.jpg": False, "beside/x.jpg": False, "x.jpg": True,
  }  # fmt: skip
  for _ in range(2):  # the second time of what is remembered
    assert {name: leads_inside(f"{root}{ending}/{name}") for name in said} == said
  (tmp_path / "link").symlink_to(root)  # the root itself may be one
  assert files.Inside(tmp_path / "link")(f"{tmp_path}/link/a/b/x.jpg")


START = re.compile(rb"\d{8},")
GOOD = [b'10000001,"a\nb ""c""\n",1\n', b"10000002,x,2\n", b'10000003,"y\n\n",3\n']


def _rows(data: bytes, place: int = 0, end: float = math.inf) -> list[bytes]:
  file = io.BytesIO(data)
  file.seek(place)
  return list(reading.grouped_rows(Path("x"), file, START, 3, place, end))


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize(
  "bad",
  [
    b"1000000A,x,9\n", b'secret,"two\nlines",9\n', b"id,text,n\n", b"\xef\xbb\xbf10000004,x,9\n",
    b'10000005,"without an end\n', b"10000006,x,9,9\n",
  ],
)  # fmt: skip
def test_a_bad_row_is_a_row_and_takes_no_other_with_it(place, bad):
  rows = [*GOOD[:place], bad, *GOOD[place:]]
  assert _rows(b"".join(rows)) == rows


def test_rows_are_the_same_in_pieces():
  rows = GOOD * 3
  rows[4:4] = [b"bad,x,9\n", b'10000005,"without an end\n', b'worse,"\n,9\n']
  data = b"".join(rows)
  whole = _rows(data)
  assert set(GOOD) <= set(whole)
  for cut in range(len(data)):
    # As chexmask_rows: the second piece begins at the next line that starts a row.
    lines = data[:cut].rfind(b"\n") + 1 if cut else 0
    lines = lines if lines == cut else data.find(b"\n", cut) + 1 or len(data)
    while lines < len(data) and not START.match(data, lines):
      lines = data.find(b"\n", lines) + 1
    assert _rows(data, 0, cut) + _rows(data, lines) == whole


def test_short_lines_without_end_are_read_in_a_straight_line(tmp_path):
  # Copied anew for each line, these would take an hour.
  rows = _rows(b'10000001,"' + b"\n" * 4_000_000)
  assert len(rows) == 1 and len(rows[0]) == 4_000_010
  with pytest.raises(DamagedFile, match="empty lines"):
    _rows(b"10000001,x,1\n" + b"\n" * 4_000_000)
