"""Damaged inputs: for each table of the releases, each way in which it can be spoilt.

  python -m tests.damaged_inputs FOLDER

writes every case below FOLDER, to be looked at. A case takes the files of one source of a
small phantom hospital and spoils one thing; `listed` says how many lines of the quarantine
that must give, and how their reason begins.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

from imax_jax.data import sources
from imax_jax.data.phantom import hospital
from tests import damaged_open

SECRET = "the patient is Ada Invented of 7 Secret Lane"
NAME = "aaaaaaaa-aaaaaaaa-aaaaaaaa-aaaaaaaa-{:08x}"


@dataclasses.dataclass(frozen=True)
class Case:
  """`damage` spoils the file in place; `row` is the data row it spoils, if it is one."""

  name: str
  source: str
  file: str
  damage: Callable[[Path], None]
  reason: str
  listed: int = 1
  row: int | None = None


# The tables of each source.
TABLES: dict[str, tuple[str, ...]] = {
  "mimic_cxr_jpg": ("mimic-cxr-2.0.0-metadata.csv.gz",),
  "cardiomegaly": ("CTRs.csv", "CPARs.csv"),
  "pe_severity": (
    "consensus_image_edema_severity.csv", "expert_report_edema_severity.csv",
    "regex_report_edema_severity.csv",
  ),
  "cxr_lt": ("cxr-lt-2024/labels.csv",),
  "chexmask": ("OriginalResolution/MIMIC-CXR-JPG.csv",),
}  # fmt: skip
# A column of each table, and a value that it can not have.
WRONG_VALUES: dict[str, tuple[tuple[str, str, str], ...]] = {
  "mimic_cxr_jpg": (
    ("Rows", "0", "Rows or Columns"), ("Columns", "wide", "Rows or Columns"),
    ("Rows", "inf", "Rows or Columns"), ("Rows", "64.7", "Rows or Columns"),
    ("Columns", "6_4", "Rows or Columns"), ("ViewPosition", " PA", "view of another"),
    ("ViewPosition", "ap", "view of another"),
    ("subject_id", "7", "patient or study id"), ("study_id", "s1", "patient or study id"),
    ("dicom_id", "../../etc/passwd", "image id"), ("dicom_id", "", "image id"),
  ),
  "cardiomegaly": (
    ("CTR", "7.5", "CTR neither"), ("CTR", "nan", "CTR not a number"),
    ("CTR", "-0.2", "CTR neither"), ("CTR", SECRET, "CTR not a number"),
    ("CTR", "0_0.5", "CTR not a number"), ("CTR", "٠.٥", "CTR not a number"),
    ("CPAR", "", "CPAR not a number"), ("dicom_file", "x.dcm", "image id"),
  ),
  "pe_severity": (
    ("edema_severity", "4", "grade not"), ("edema_severity", SECRET, "grade not"),
    ("dicom_id", "NULL", "dicom_id of"), ("study_id", "-1", "study_id of"),
    ("subject_id", "19999999", "patient or study is"),
    ("subject_id", SECRET, "patient or study is"),
  ),
  "cxr_lt": (
    ("Edema", "0.5", "label not"), ("Nodule", SECRET, "label not"),
    ("dicom_id", "/abs/path", "image id"), ("subject_id", "", "patient or study is"),
    ("subject_id", "19999999", "patient or study is"),
    ("study_id", "s59999999", "patient or study is"),
    ("study_id", SECRET, "patient or study is"),
  ),
  "chexmask": (
    ("Heart", "1 2 3", "a mask is not"), ("Heart", "1 2 3 -4", "a mask is not"),
    ("Left Lung", "1 2 2 3", "runs of a mask overlap"),
    ("Right Lung", "999999999 4", "a run of a mask lies outside"),
    ("Heart", "5 0", "a run of a mask is empty"),
    ("Heart", "99999999999999999999 1", "a run of a mask lies outside"),
    ("Heart", SECRET, "a mask is not"), ("Height", "0", "Height or Width"),
    ("Height", "65", "Height and Width are not"), ("Width", "1e400", "Dice, Height"),
    ("Dice RCA (Mean)", "high", "Dice, Height"),
  ),
}  # fmt: skip


# ── Tables ────────────────────────────────────────────────────────────────────────


def _get(path: Path) -> bytes:
  data = path.read_bytes()
  return gzip.decompress(data) if path.suffix == ".gz" else data


def _put(path: Path, data: bytes) -> None:
  path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def _rows(data: bytes) -> tuple[bytes, list[bytes]]:
  """Header, and rows; CheXmask's rows begin with an image id, others at each line."""
  header, *lines = data.splitlines(keepends=True)
  rows: list[bytes] = []
  for line in lines:
    if rows and line.startswith((b" [", b"[")):
      rows[-1] += line
    else:
      rows.append(line)
  return header, rows


def on_row(row: int, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
  def damage(path: Path) -> None:
    header, rows = _rows(_get(path))
    rows[row] = change(rows[row])
    _put(path, header + b"".join(rows))

  return damage


def set_cell(row: int, column: str, value: str) -> Callable[[Path], None]:
  def damage(path: Path) -> None:
    header, rows = _rows(_get(path))
    place = header.decode().strip().split(",").index(column)
    before, quote, rest = rows[row].partition(b'"')
    if quote:  # CheXmask: cells before, landmarks, cells behind
      marks, _, behind = rest.partition(b'"')
      cells = [*before.rstrip(b",").split(b","), quote + marks + quote]
      cells += behind.strip().lstrip(b",").split(b",")
    else:
      cells = rows[row].strip().split(b",")
    cells[place] = value.encode()
    rows[row] = b",".join(cells) + b"\n"
    _put(path, header + b"".join(rows))

  return damage


def whole(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
  return lambda path: path.write_bytes(change(path.read_bytes()))


def _link_out(path: Path) -> None:
  outside = path.parents[3] / f"outside-{path.name}"
  shutil.move(path, outside)
  path.symlink_to(outside)


def _contradict(row: int) -> Callable[[Path], None]:
  """The row again, saying something else, at the end."""

  def damage(path: Path) -> None:
    header, rows = _rows(_get(path))
    row_again = rows[row].rstrip(b"\n")
    last = row_again.rsplit(b",", 1)[1]
    # The last cell of each table is a number; CXR-LT's ten labels are before it.
    if b"labels" in path.name.encode():
      cells = row_again.split(b",")
      place = header.decode().strip().split(",").index("Edema")
      cells[place] = b"1" if cells[place] == b"0" else b"0"
      row_again = b",".join(cells)
    elif b"metadata" in path.name.encode():
      cells = row_again.split(b",")
      cells[header.decode().strip().split(",").index("Rows")] = b"77"
      row_again = b",".join(cells)
    elif b"MIMIC-CXR-JPG" in path.name.encode():
      before, _, behind = row_again.rpartition(b'"')
      cells = behind.split(b",")
      cells[-3] = b"1 2"  # a smaller heart
      row_again = before + b'"' + b",".join(cells)
    else:
      other = b"0.123" if b"." in last else str((int(last) + 1) % 4).encode()
      row_again = row_again[: -len(last)] + other
    _put(path, header + b"".join(rows) + row_again + b"\n")

  return damage


def table_cases(source: str, file: str, row: int) -> Iterator[Case]:
  def case(name: str, damage: Callable[[Path], None], reason: str, **more: int) -> Case:
    return Case(
      f"{source}/{Path(file).name}/{name}", source, file, damage, reason, **more
    )

  def row_case(name: str, change: Callable[[bytes], bytes], reason: str) -> Case:
    return case(name, on_row(row, change), reason, row=row)

  yield row_case("NUL byte", lambda r: r.replace(b",", b",\0", 1), "has a NUL byte")
  yield row_case(
    "not UTF-8", lambda r: r.replace(b",", b",\xff\xfe", 1), "is not UTF-8"
  )
  yield row_case(
    "cut short", lambda r: r[: r.rindex(b",")] + b"\n", "has more or fewer"
  )
  yield row_case(
    "too long", lambda r: r.rstrip() + f",{SECRET}\n".encode(), "has more or fewer"
  )
  yield row_case(
    "a quote without end", lambda r: r.rstrip() + b',"' + SECRET.encode() + b"\n", ""
  )
  yield case("contradicting rows", _contradict(row), "contradicts", listed=2, row=row)
  yield case("empty", whole(lambda _: b""), "has no")
  yield case("another header", lambda p: _put(p, b"a,b,c\n1,2,3\n"), "has no column")
  yield case("a link that leads out", _link_out, "is a link")
  zipped = file.endswith(".gz")
  yield case(
    "a line without end",
    lambda p: _put(p, _get(p) + b"7" * 2**25),
    "unpacks to" if zipped else "has a row",  # so long a line of one digit is a bomb
  )
  if zipped:
    yield case(
      "truncated", whole(lambda d: d[: len(d) // 2]), "cannot be read to its end"
    )
    yield case("not gzip", whole(lambda d: b"PK" + d), "has no readable")
    yield case("gzip bomb", lambda p: _bomb(p), "has over 1000 empty lines")
  for column, value, reason in WRONG_VALUES[source]:
    yield case(
      f"{column} is {value[:12]!r}", set_cell(row, column, value), reason, row=row
    )


def _bomb(path: Path) -> None:
  """A row and then 96 MiB of empty lines, in 100 kB."""
  text = _get(path)
  with gzip.open(path, "wb", compresslevel=9) as file:
    file.write(text)
    for _ in range(96):
      file.write(b"\n" * 2**20)


# ── JSON and zip ──────────────────────────────────────────────────────────────────


def json_cases() -> Iterator[Case]:
  file = "MIMIC-Ext-MIMIC-CXR-VQA/dataset/train.json"

  def case(name: str, damage: Callable[[bytes], bytes], reason: str) -> Case:
    return Case(f"vqa/{name}", "vqa", file, whole(damage), reason)

  def more(item: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.rstrip()[:-1].rstrip() + b",\n" + item + b"]"

  good = (
    f'{{"image_id": "{NAME.format(1)}", "question": "{SECRET}", "semantic_type": '
    '"verify", "content_type": "presence", "answer": ["no"]}'
  )

  def other(old: str, new: str) -> Callable[[bytes], bytes]:
    return more(good.replace(old, new).encode())

  yield case("cut short", lambda d: d[: len(d) // 2], "is not JSON")
  yield case("an object", lambda _: b'{"a": 1}', "expected a JSON list")
  yield case("empty", lambda _: b"", "expected a JSON list")
  yield case(
    "not UTF-8", lambda d: d.replace(b"question", b"quest\xff", 1), "is not UTF-8"
  )
  yield case("NUL byte", lambda d: d + b"\0", "has a NUL byte")
  deep = b"[" * 10_000 + b"]" * 10_000
  yield case("10,000 deep", more(deep), "item")
  yield case("a number of 5,000 digits", more(b"7" * 5000), "item")
  comma = lambda d: d.replace(b"},", b"}", d.count(b"},"))  # noqa: E731
  yield case("no commas", comma, "is not JSON from line")
  yield case("commas at the end", lambda d: d.rstrip()[:-1] + b",,]", "is not JSON")
  for field, value in (("study_id", b"s59999999"), ("subject_id", SECRET.encode())):
    name = b'"' + field.encode() + b'": "'
    other_id = lambda d, name=name, value=value: d.replace(name, name + value, 1)  # noqa: E731
    yield case(f"{field} of another", other_id, "patient or study is")
  yield case("no object", more(b"[1]"), "not an object")
  yield case("no answer", other('"answer"', '"ansxer"'), "lacks")
  yield case("answer no list", other('["no"]', '"no"'), "answer not a list")
  yield case("answer of numbers", other('["no"]', "[1]"), "answer not a list")
  yield case("answer of blanks", other('["no"]', '[" "]'), "answer not a list")
  yield case("other semantic type", other("verify", SECRET), "unknown semantic")
  yield case("other content type", other("presence", "colour"), "unknown content")
  yield case("image id of another form", other(NAME.format(1), "../x"), "image id")
  yield case("image id no text", other(f'"{NAME.format(1)}"', "7"), "image id")
  yield case("question empty", other(SECRET, "  "), "question empty")
  yield case("question no text", other(f'"{SECRET}"', "null"), "question empty")
  yield case("question without end", other(SECRET, SECRET * 99), "a text of over")
  yield Case("vqa/a link that leads out", "vqa", file, _link_deep, "is a link")


def _link_deep(path: Path) -> None:
  outside = path.parents[4] / f"outside-{path.name}"
  shutil.move(path, outside)
  path.symlink_to(outside)


def zip_cases(study: str) -> Iterator[Case]:
  file = "mimic-cxr-reports.zip"
  text = f"x\n FINDINGS: {SECRET}\n IMPRESSION: {SECRET}\n"

  def case(name: str, damage: Callable[[Path], None], reason: str) -> Case:
    return Case(f"mimic_cxr/{name}", "mimic_cxr", file, damage, reason)

  def add(name: str, data: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
      with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)

    return damage

  folder = "files/p10/p10000001"
  yield case("climbing name", add("../../s50000001.txt", text.encode()), "a name that")
  yield case("absolute name", add("/s50000001.txt", text.encode()), "a name that")
  yield case("other name", add(f"{folder}/{SECRET}.txt", b"x"), "a name that")
  yield case("other id", add(f"{folder}/s7.txt", text.encode()), "study id")
  yield case("bomb", add(f"{folder}/s{study[:-1]}x.txt", b"x" * 2**21), "a name that")
  yield case("large", add(f"{folder}/s59999999.txt", b"x" * 2**21), "too large")
  yield case(
    "cut short", lambda p: p.write_bytes(p.read_bytes()[:-30]), "is not a comp"
  )
  yield case("no zip", lambda p: p.write_bytes(SECRET.encode()), "is not a comp")
  yield case("empty", lambda p: p.write_bytes(b""), "is not a comp")
  yield case("a link that leads out", _link_out, "is a link")
  yield case("not UTF-8", _member(study, b"\xff\xfe" + text.encode()), "is not UTF-8")
  yield case("NUL byte", _member(study, text.encode() + b"\0"), "has a NUL")
  yield case("bad check sum", _flip_member(study), "cannot be unpacked")


def _member(study: str, data: bytes) -> Callable[[Path], None]:
  """The study's report replaced."""

  def damage(path: Path) -> None:
    with zipfile.ZipFile(path) as old:
      members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
      for name, text in members.items():
        new.writestr(name, data if f"s{study}.txt" in name else text)

  return damage


def _flip_member(study: str) -> Callable[[Path], None]:
  def damage(path: Path) -> None:
    marked = b"imax_jax marks this place of the report"
    _member(study, marked)(path)
    path.write_bytes(path.read_bytes().replace(marked, marked[:-1] + b"T", 1))

  return damage


# ── All of them ───────────────────────────────────────────────────────────────────


def write_healthy(root: Path) -> dict[str, Path]:
  """A small hospital; its roots by source."""
  hospital.write_hospital(root, seed=3, num_patients=14, image_px=64)
  return sources.roots_of(root)


def cases(healthy: dict[str, Path]) -> list[Case]:
  """Every case, on rows that the healthy files are read from."""
  radiographs = sources.read_radiographs(healthy)
  first: dict[str, int] = {}
  study = ""
  for a in sources.read_all(healthy, radiographs):
    first.setdefault(a.origin.file, a.origin.row)
    if a.task == "report":
      study = study or radiographs[a.image_id].study_id
  _, rows = _rows(_get(healthy["mimic_cxr_jpg"] / TABLES["mimic_cxr_jpg"][0]))
  first[TABLES["mimic_cxr_jpg"][0]] = next(
    row for row, text in enumerate(rows) if text.split(b",")[0].decode() in radiographs
  )
  made = [
    case
    for source, files in TABLES.items()
    for file in files
    for case in table_cases(source, file, first.get(file, 0))
    if _applies(healthy[source] / file, case)
  ]
  return [*made, *json_cases(), *zip_cases(study)]


def _applies(path: Path, case: Case) -> bool:
  """A wrong value is for the tables of which the reader uses its column."""
  if case.name == "pe_severity/consensus_image_edema_severity.csv/study_id is '-1'":
    return False  # of an image's row it is compared with the image's
  column = case.name.rsplit("/", 1)[-1].split(" is ")[0]
  known = {name for values in WRONG_VALUES.values() for name, _, _ in values}
  return column not in known or column in _get(path).splitlines()[0].decode().split(",")


def spoil(case: Case, healthy: dict[str, Path], folder: Path) -> Path:
  """A copy of the case's source below `folder`, damaged; images are left out."""
  root = folder / case.source / "1" / "2"
  ignore = shutil.ignore_patterns("*.jpg", "p1*")
  shutil.copytree(healthy[case.source], root, ignore=ignore)
  case.damage(root / case.file)
  return root


if __name__ == "__main__":
  target = Path(sys.argv[1])
  os.makedirs(target)
  roots = write_healthy(target / "healthy")
  for number, one in enumerate(cases(roots)):
    spoil(one, roots, target / f"{number:03d} {one.name.replace('/', ' ')}")
  bases = damaged_open.write_bases(target / "bases", roots["mimic_cxr_jpg"])
  exact = damaged_open.exact_cases(roots["mimic_cxr_jpg"])
  for number, case in enumerate(exact, len(cases(roots))):
    name = f"{number:03d} {case.name.replace('/', ' ')}"
    damaged_open.spoil(case, bases, target / name)
