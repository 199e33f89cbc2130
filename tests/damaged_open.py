"""Damaged inputs of the open route, of own images and of the other forms of reports.

`write_bases` lays out a small healthy folder a source, all of it invented, with the
planted sentence wherever a text may stand. An `Exact` case spoils one thing in it and
says which lines the quarantine must then have, and which annotations may be gone.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import shutil
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imax_jax.schema import Annotation
from tests import open_nih_layout as nih_layout
from tests import open_vqa_layout as layout

SECRET = "the patient is Ada Invented of 7 Secret Lane"
REPORT = f"In this invented text {SECRET} and the lungs are clear."

Damage = Callable[[Path], None]
Lost = Callable[[Annotation], bool]
ZIP = "mimic-cxr-reports.zip"
# (source, file, row, how the reason begins)
Line = tuple[str, str, int | None, str]


@dataclasses.dataclass(frozen=True)
class Exact:
  """`damage` gets the source's folder. Everything but what is `lost` must be read as
  before; `lost` is None where a file is given up, which may cost its source's others.
  """

  name: str
  base: str
  damage: Damage
  lines: tuple[Line, ...]
  lost: Lost | None
  # (file, row): a row more stands there, which moves that file's others on.
  inserted: tuple[str, int] | None = None

  @property
  def source(self) -> str:
    return self.base.split("/")[0]


# ── Healthy folders ───────────────────────────────────────────────────────────────

# What each base's root is below its folder, and the source that gives its images.
ROOTS = {
  "mimic_cxr/captions": "filter_cap.json",
  "mimic_cxr/annotation": "annotation.json",
}
IMAGES_OF = {
  "chexmask_nih": "nih", "mimic_cxr": "mimic_cxr_jpg", "cxr_lt": "mimic_cxr_jpg",
  "cardiomegaly": "mimic_cxr_jpg",
}  # fmt: skip
OWN_ROWS = (
  ("ana/1.png", "ana", "calculation", "CTR", "0.47"),
  ("ana/1.png", "ana", "report", "", REPORT),
  ("ana/1.png", "ana", "box", "heart", "10 20 30 50"),
  ("bo.png", "bo", "vqa", f"Is {SECRET}?", "no"),
  ("cy.png", "cy", "multi_class", "none; mild; severe", "mild"),
  ("cy.png", "cy", "multi_label", "Edema; Nodule", "Nodule"),
)


def write_bases(root: Path, mimic_jpg: Path) -> dict[str, Path]:
  """{base: its folder}; `mimic_jpg` is a hospital's MIMIC-CXR-JPG, whose ids are used."""
  bases = {
    name: root / name.replace("/", "_")
    for name in ("nih", "openi", "vqa_rad", "slake", "vindr", "jsrt", "montgomery",
                 "shenzhen", "own", "own/jsonl", "opencxr", "chexmask_nih",
                 "mimic_cxr/folder", "mimic_cxr/sectioned", "mimic_cxr/captions",
                 "mimic_cxr/annotation", "cxr_lt/2023", "openi/packed", "mimic_cxr/zip",
                 "cardiomegaly/gz")
  }  # fmt: skip
  nih_layout.write_nih(bases["nih"], 6)
  _write_openi(bases["openi"], bases["openi/packed"])
  layout.write_vqa_rad(bases["vqa_rad"], 4)
  layout.write_slake(bases["slake"], 4)
  for place in ("vqa_rad", "slake"):
    for path in bases[place].glob("*.json"):
      text = path.read_text().replace("Is the heart large?", f"Is {SECRET}?")
      path.write_text(text.replace("Is the lung healthy?", f"Is {SECRET}?"))
  layout.write_vindr(bases["vindr"], 4)
  _write_jsrt(bases["jsrt"])
  layout.write_montgomery(bases["montgomery"], 4)
  layout.write_shenzhen(bases["shenzhen"], 4)
  _write_own(bases["own"], bases["own/jsonl"])
  _write_opencxr(bases["opencxr"])
  _write_chexmask(bases["chexmask_nih"])
  _write_reports(mimic_jpg, bases)
  return bases


def _write_openi(folder: Path, packed: Path) -> None:
  for number in range(1, 5):
    text = nih_layout.openi_xml(number, findings=REPORT)
    nih_layout.write_lines(folder / "ecgen-radiology" / f"{number}.xml", [text])
    for place, name in enumerate(nih_layout.openi_images(number)):
      nih_layout.write_png(folder / "NLMCXR_png" / f"{name}.png", 2 * number + place)
  shutil.copytree(folder / "NLMCXR_png", packed / "NLMCXR_png")
  members = {f"ecgen-radiology/{n}.xml": openi_text(n) for n in range(1, 5)}
  nih_layout.pack_openi(packed, members)


def openi_text(number: int) -> str:
  return nih_layout.openi_xml(number, findings=REPORT)


def _write_jsrt(root: Path) -> None:
  """Converted images: the raw ones have 8 MB each."""
  for number, name in enumerate(("JPCLN001", "JPCNN002", "JPCLN003")):
    layout.save(root / "All247images" / f"{name}.png", layout.film(64, 64, number))
    for organ, mask in layout.masks_of(64, 64, number).items():
      path = root / "scratch/fold1/masks" / organ / f"{name}.gif"
      layout.save(path, mask.astype(np.uint8) * 255)


def _write_own(table: Path, lines: Path) -> None:
  names = ("image", "patient", "task", "name", "answer")
  for root in (table, lines):
    for name in sorted({row[0] for row in OWN_ROWS}):
      path = root / name
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.new("L", (40, 60), 128).save(path)
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows([names, *OWN_ROWS])
  (table / "annotations.csv").write_text(text.getvalue())
  items = [json.dumps(dict(zip(names, row, strict=True))) for row in OWN_ROWS]
  (lines / "annotations.jsonl").write_text("\n".join(items) + "\n")


def _write_opencxr(root: Path) -> None:
  items = [
    {
      "id": f"alpha/{n}", "image": f"images/{n}.png", "size": [20, 10],
      "tasks": ["calculation", "rec", "report"], "ctr": 0.5, "cpar": 0.3,
      "boxes": [{"name": "heart", "box": [5, 2, 15, 9]}], "report": REPORT,
    }
    for n in range(3)
  ]  # fmt: skip
  for n in range(3):
    layout.save(root / "alpha/images" / f"{n}.png", np.zeros((10, 20), np.uint8))
  text = json.dumps({"source": "alpha", "images": items})
  (root / "alpha/manifest.json").write_text(text)


def _runs(mask: np.ndarray) -> str:
  """Run-length text, starts from 1, row by row."""
  edges = np.flatnonzero(np.diff(np.pad(mask.ravel().astype(np.int8), 1)))
  pairs = edges.reshape(-1, 2)
  return " ".join(f"{start + 1} {end - start}" for start, end in pairs)


def _write_chexmask(root: Path) -> None:
  """Rows of 1024 x 1024 for the six images of the NIH base."""
  lines = [
    "Image Index,Dice RCA (Mean),Dice RCA (Max),Landmarks,Left Lung,Right Lung,Heart,"
    "Height,Width"
  ]
  masks = {k: _runs(m) for k, m in layout.masks_of(1024, 1024).items()}
  marks = "".join(f"[{n} {n}]\n" for n in range(120))
  lines += [
    f'{number // 3 + 1:08d}_{number % 3:03d}.png,0.9,0.95,"[{marks.rstrip()}]",'
    f"{masks['left lung']},{masks['right lung']},{masks['heart']},1024,1024"
    for number in range(6)
  ]
  nih_layout.write_lines(root / "OriginalResolution/ChestX-Ray8.csv", lines)


def _write_reports(mimic_jpg: Path, bases: dict[str, Path]) -> None:
  """Reports unzipped, as a table and as the two JSON files; labels as of 2023."""
  studies = mimic_studies(mimic_jpg)
  text = f"x\n FINDINGS: {REPORT}\n IMPRESSION: {SECRET}\n"
  sectioned = ["study,impression,findings"]
  captions, reports = [], []
  bases["mimic_cxr/zip"].mkdir()
  with zipfile.ZipFile(bases["mimic_cxr/zip"] / ZIP, "w", zipfile.ZIP_DEFLATED) as new:
    for study in studies:
      new.writestr(member_of(study), text)
  for number, (patient, study, image) in enumerate(studies):
    place = f"files/p{patient[:2]}/p{patient}/s{study}.txt"
    path = bases["mimic_cxr/folder"] / place
    nih_layout.write_lines(path, [text])
    sectioned.append(f's{study},"{SECRET}\n","{REPORT}"')
    captions.append({"image_id": image, "caption": f"{number} {REPORT}"})
    reports.append({"id": image, "report": f"{number} {REPORT}"})
  nih_layout.write_lines(
    bases["mimic_cxr/sectioned"] / "mimic_cxr_sectioned.csv", sectioned
  )
  for base, value in (
    ("captions", {"annotations": captions}),
    ("annotation", {"train": reports[:2], "val": reports[2:3], "test": reports[3:]}),
  ):
    path = bases[f"mimic_cxr/{base}"] / ROOTS[f"mimic_cxr/{base}"]
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(value))
  source = next(mimic_jpg.parent.parent.rglob("cxr-lt-2024/labels.csv"))
  path = bases["cxr_lt/2023"] / "cxr-lt-2023/train.csv"
  path.parent.mkdir(parents=True)
  shutil.copy(source, path)
  bases["cardiomegaly/gz"].mkdir()
  for name in ("CTRs.csv", "CPARs.csv"):
    data = next(mimic_jpg.parent.parent.rglob(name)).read_bytes()
    path = bases["cardiomegaly/gz"] / f"{name}.gz"
    path.write_bytes(gzip.compress(data, mtime=0))


def mimic_studies(mimic_jpg: Path) -> list[tuple[str, str, str]]:
  """(patient, study, image) of the first image of each of six studies with one."""
  path = mimic_jpg / "mimic-cxr-2.0.0-metadata.csv.gz"
  found: dict[str, tuple[str, str, str]] = {}
  for row in csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode())):
    if row["ViewPosition"] in ("AP", "PA"):
      study = row["study_id"].removeprefix("s")
      found.setdefault(study, (row["subject_id"], study, row["dicom_id"]))
  return sorted(found.values())[:6]


def member_of(study: tuple[str, str, str]) -> str:
  patient, number, _ = study
  return f"files/p{patient[:2]}/p{patient}/s{number}.txt"


# ── Ways to spoil ─────────────────────────────────────────────────────────────────


def nothing(_: Annotation) -> bool:
  return False


def image(*names: str) -> Lost:
  return lambda a: a.image_id in names


def at(file: str, *rows: int) -> Lost:
  return lambda a: a.origin.file == file and a.origin.row in rows


def asked(name: str, task: str, subtask: str = "") -> Lost:
  return lambda a: (a.image_id, a.task, a.subtask) == (name, task, subtask)


def on(file: str, change: Callable[[bytes], bytes]) -> Damage:
  """Changes a file's bytes."""

  def damage(root: Path) -> None:
    path = root / file
    path.write_bytes(change(path.read_bytes()))

  return damage


def on_line(file: str, row: int, change: Callable[[bytes], bytes]) -> Damage:
  """Changes a data row of a table without newlines in its cells."""

  def damage(root: Path) -> None:
    lines = (root / file).read_bytes().split(b"\n")
    lines[row + 1] = change(lines[row + 1])
    (root / file).write_bytes(b"\n".join(lines))

  return damage


def cell(file: str, row: int, column: str, value: str) -> Damage:
  """Sets a cell of a table without quotes."""

  def damage(root: Path) -> None:
    place = (root / file).read_text().split("\n")[0].split(",").index(column)

    def change(line: bytes) -> bytes:
      cells = line.split(b",")
      cells[place] = value.encode()
      return b",".join(cells)

    on_line(file, row, change)(root)

  return damage


def add_line(file: str, line: str) -> Damage:
  return on(file, lambda data: data + line.encode() + b"\n")


def in_json(file: str, change: Callable[[Any], Any]) -> Damage:
  """Changes a JSON file's value, in place or by what `change` gives back."""

  def damage(root: Path) -> None:
    value = json.loads((root / file).read_text())
    changed = change(value)
    text = json.dumps(value if changed is None else changed)
    (root / file).write_text(text)

  return damage


def set_field(file: str, row: int, field: str, value: Any) -> Damage:
  return in_json(file, lambda items: items[row].__setitem__(field, value))


def link_out(file: str) -> Damage:
  """The file lies outside, with a link to it in its place."""

  def damage(root: Path) -> None:
    outside = root.parent / f"outside-{Path(file).name}"
    shutil.move(root / file, outside)
    (root / file).symlink_to(outside)

  return damage


def as_folder(file: str) -> Damage:
  def damage(root: Path) -> None:
    (root / file).unlink()
    (root / file).mkdir()

  return damage


def gone(file: str) -> Damage:
  return lambda root: (root / file).unlink()


def png_header(width: int, height: int) -> bytes:
  """A PNG that says it is that large, and holds a pixel."""
  buffer = io.BytesIO()
  Image.fromarray(np.zeros((1, 1), np.uint8)).save(buffer, "PNG")
  data = bytearray(buffer.getvalue())
  data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
  data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
  return bytes(data)


BOMB_PNG = png_header(100_000, 100_000)
DEEP = b"[" * 10_000 + b"]" * 10_000
# What may befall any row: (name, change, how the reason begins).
ROW_DAMAGES: tuple[tuple[str, Callable[[bytes], bytes], str], ...] = (
  ("NUL byte", lambda r: r.replace(b",", b",\0", 1), "has a NUL"),
  ("not UTF-8", lambda r: r.replace(b",", b",\xff", 1), "is not UTF-8"),
  ("cut short", lambda r: r[: r.index(b",")], "has more or fewer"),
  ("too long", lambda r: r + f",{SECRET},1".encode(), "has more or fewer"),
  ("quote without end", lambda r: r + b',"' + SECRET.encode(), "is not csv"),
)
# What may befall any table and costs nothing.
HARMLESS: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
  ("byte order mark", lambda d: b"\xef\xbb\xbf" + d),
  ("CRLF", lambda d: d.replace(b"\n", b"\r\n")),
  ("no last newline", lambda d: d.rstrip(b"\n")),
  ("empty lines behind", lambda d: d + b"\n\n"),
)


def header_of(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
  def changed(data: bytes) -> bytes:
    header, _, rows = data.partition(b"\n")
    return change(header) + b"\n" + rows

  return changed


def spaced(header: bytes) -> bytes:
  return header.replace(b",", b" , ")


def header_again(file: str, row: int, mark: bytes = b"") -> Damage:
  """The header once more, as data row `row`: two tables joined end to end."""

  def damage(root: Path) -> None:
    packed = file.endswith(".gz")
    data = (root / file).read_bytes()
    lines = (gzip.decompress(data) if packed else data).split(b"\n")
    lines.insert(row + 1, mark + lines[0])
    data = b"\n".join(lines)
    (root / file).write_bytes(gzip.compress(data, mtime=0) if packed else data)

  return damage


def swap_columns(data: bytes) -> bytes:
  """The first column becomes the last (of a table without quotes)."""
  rows = [line.split(b",") for line in data.splitlines()]
  return b"".join(b",".join([*row[1:], row[0]]) + b"\n" for row in rows)


# ── Cases ─────────────────────────────────────────────────────────────────────────


def table_cases(
  base: str, file: str, row: int, *, first: str, lost: Lost
) -> Iterator[Exact]:
  """What may befall a table, which `first` opens first; a bad row costs `lost`."""
  for name, change, reason in ROW_DAMAGES:
    yield Exact(
      f"{base}/{file}/{name}", base, on_line(file, row, change),
      ((base, file, row, reason),), lost,
    )  # fmt: skip
  for name, change in HARMLESS:
    yield Exact(f"{base}/{file}/{name}", base, on(file, change), (), nothing)
  for name, damage, reason in (
    ("empty", on(file, lambda _: b""), "has no column"),
    ("another header", on(file, lambda _: b"a,b\n1,2\n"), "has no column"),
    ("header in capitals", on(file, header_of(bytes.upper)), "has no column"),
    ("header with spaces", on(file, header_of(spaced)), "has no column"),
    ("CR alone", on(file, lambda d: d.replace(b"\n", b"\r")), "has no readable first"),
    ("binary", on(file, lambda _: b"\xff\xfe" * 99), "has no readable first line"),
    ("a folder", as_folder(file), "has no readable first line"),
    ("a link that leads out", link_out(file), "is a link"),
  ):
    # A link is met as the file is found, which the images' reader may do already.
    source = f"{base} images" if "link" in name else first
    lines = ((source, file, None, reason),)
    yield Exact(f"{base}/{file}/{name}", base, damage, lines, None)


def nih_cases() -> Iterator[Exact]:
  labels, boxes = "Data_Entry_2017_v2020.csv", "BBox_List_2017.csv"
  gone_image = image("00000001_001")
  yield from table_cases("nih", labels, 1, first="nih images", lost=gone_image)

  def case(
    name: str, damage: Damage, line: Line, lost: Lost | None = gone_image
  ) -> Exact:
    return Exact(f"nih/{name}", "nih", damage, (line,), lost)

  for name, column, value, reason in (
    ("traversal", "Image Index", "../00000001_001.png", "image name of"),
    ("absolute", "Image Index", "/etc/passwd", "image name of"),
    ("digits of another script", "Image Index", "٠٠٠٠٠٠٠١_٠٠١.png", "image name of"),
    ("another patient", "Patient ID", "2", "patient is not"),
    ("patient of 5,000 digits", "Patient ID", "1" * 5000, "patient is not"),
    ("lateral", "View Position", SECRET, "view neither"),
  ):
    source = "nih" if column == "Image Index" else "nih images"
    yield case(name, cell(labels, 1, column, value), (source, labels, 1, reason))
  bits = asked("00000001_001", "multi_label")
  for name, value, reason in (
    ("label unknown", SECRET, "label of another"),
    ("label and none", "No Finding|Effusion", "No Finding beside"),
  ):
    damage = cell(labels, 1, "Finding Labels", value)
    yield case(name, damage, ("nih", labels, 1, reason), bits)
  row = "00000001_001.png,Hernia,1,1,41,F,AP,2500,2048,0.168,0.168"
  reason = "contradicts"
  yield Exact(
    "nih/contradicting views", "nih", add_line(labels, row),
    (("nih images", labels, 1, reason), ("nih images", labels, 6, reason)), gone_image,
  )  # fmt: skip
  row = row.replace(",AP,", ",PA,")
  yield Exact(
    "nih/contradicting labels", "nih", add_line(labels, row),
    (("nih", labels, 1, reason), ("nih", labels, 6, reason)), bits,
  )  # fmt: skip
  yield case(
    "image linked out", link_out("images_001/images/00000001_001.png"),
    ("nih images", labels, 1, "image is a link"),
  )  # fmt: skip
  lost = at(boxes, 3)
  for name, change, reason in ROW_DAMAGES[:2]:
    yield case(
      f"box {name}", on_line(boxes, 3, change), ("nih", boxes, 3, reason), lost
    )
  for name, line, reason in (
    ("cut", b"00000002_000.png,Cardiomegaly,1,2,3", "has more or fewer"),
    ("long", b"00000002_000.png,Cardiomegaly,1,2,3,4,5", "has more or fewer"),
    ("text", f"00000002_000.png,Cardiomegaly,{SECRET},2,3,4".encode(), "box not of"),
    ("NaN", b"00000002_000.png,Cardiomegaly,nan,2,3,4", "box not of numbers"),
    ("flat", b"00000002_000.png,Cardiomegaly,1,2,3,0", "box without area"),
    ("outside", b"00000002_000.png,Cardiomegaly,1,2,3,9999", "box outside"),
    ("huge", b"00000002_000.png,Cardiomegaly,1e308,2,1e308,4", "box"),
    ("label", f"00000002_000.png,{SECRET},1,2,3,4".encode(), "label of another"),
    ("image", b"../x.png,Cardiomegaly,1,2,3,4", "image name of"),
  ):
    damage = on_line(boxes, 3, lambda _, line=line: line)
    yield case(f"box {name}", damage, ("nih", boxes, 3, reason), lost)
  for name, damage, reason in (
    ("boxes empty", on(boxes, lambda _: b""), "expected the columns"),
    ("boxes linked out", link_out(boxes), "is a link"),
    ("boxes a folder", as_folder(boxes), "has no readable"),
  ):
    yield case(name, damage, ("nih", boxes, None, reason), None)
  yield Exact("nih/columns moved", "nih", on(labels, swap_columns), (), nothing)


def chexmask_cases() -> Iterator[Exact]:
  file = "OriginalResolution/ChestX-Ray8.csv"

  def row_of(data: bytes, row: int) -> tuple[int, int]:
    starts = [i for i in range(len(data)) if data.startswith(b"0000000", i)]
    starts = [
      i for i in starts if data[i - 1 : i] == b"\n" and b".png" in data[i : i + 20]
    ]
    starts.append(len(data))
    return starts[row], starts[row + 1]

  def case(name: str, change: Callable[[bytes], bytes], reason: str) -> Exact:
    def whole(data: bytes) -> bytes:
      start, end = row_of(data, 2)
      return data[:start] + change(data[start:end]) + data[end:]

    lines = (("chexmask_nih", file, 2, reason),) if reason else ()
    lost = image("00000001_002") if reason else nothing
    chexmask = lambda a: a.origin.source == "chexmask_nih" and lost(a)  # noqa: E731
    return Exact(
      f"chexmask_nih/{name}", "chexmask_nih", on(file, whole), lines, chexmask
    )

  for name, mark in (("", b""), ("mark and ", b"\xef\xbb\xbf")):

    def twice(data: bytes, mark: bytes = mark) -> bytes:
      start, _ = row_of(data, 2)
      header = data[: data.index(b"\n") + 1]
      return data[:start] + mark + header + data[start:]

    yield Exact(
      f"chexmask_nih/{name}header again", "chexmask_nih", on(file, twice),
      (("chexmask_nih", file, 2, "image id"),), nothing, inserted=(file, 2),
    )  # fmt: skip
  yield case("id of another form", lambda row: row.replace(b"_", b"-", 1), "image id")
  yield case("mark before a row", lambda row: b"\xef\xbb\xbf" + row, "")

  def heart(value: str) -> Callable[[bytes], bytes]:
    def change(row: bytes) -> bytes:
      cells = row.rsplit(b",", 3)
      return b",".join([cells[0], value.encode(), *cells[2:]])

    return change

  for name, value, reason in (
    ("int64 overflow", f"5 {2**63 - 1}", "a run of a mask"),
    ("int64 wraps", f"{2**64 - 1} 1", "a run of a mask"),
    ("negative", "-5 3", "a mask is not made of whole"),
    ("zero start", "0 3", "a run of a mask lies outside"),
    ("zero length", "9 0", "a run of a mask is empty"),
    ("overlap", "9 5 11 2", "runs of a mask overlap"),
    ("not in order", "90 5 11 2", "runs of a mask overlap"),
    ("odd number", "9 5 11", "a mask is not made of start"),
    ("NaN", "nan 3", "a mask is not made of whole"),
    ("past the end", f"{2**20} 2", "a run of a mask lies outside"),
    ("a text", SECRET, "a mask is not made of whole"),
  ):
    yield case(name, heart(value), reason)
  for name, old, new, reason in (
    ("dice NaN", b",0.9,", b",nan,", "Dice, Height"),
    ("dice infinite", b",0.95,", b",inf,", "Dice, Height"),
    ("height 0", b"1024,1024\n", b"0,1024\n", "Height or Width"),
    ("height huge", b"1024,1024\n", b"1e300,1024\n", "Height or Width"),
    ("size of another image", b"1024,1024\n", b"1025,1024\n", "Height and Width are"),
    ("NUL byte", b",0.9,", b",0.9\0,", "has a NUL"),
    ("not UTF-8", b"[7 7]", b"[7 \xff]", "is not UTF-8"),
    ("quote without end", b'"', b"", ""),
    ("landmarks of words", b"[7 7]", f"[{SECRET}]".encode(), ""),
    ("landmarks NaN", b"[7 7]", b"[nan inf]", ""),
  ):
    if name == "quote without end":
      # The first quote only: the landmarks' newlines are then no part of a cell.
      yield case(name, lambda r: r.replace(b'"', b"", 1), "is not")
    else:
      yield case(name, lambda r, old=old, new=new: r.replace(old, new, 1), reason)


def openi_cases() -> Iterator[Exact]:
  file = "ecgen-radiology/2.xml"
  lost = image(*nih_layout.openi_images(2))

  def case(name: str, damage: Damage, reason: str) -> Exact:
    lines = (("openi", file, None, reason),)
    return Exact(f"openi/{name}", "openi", damage, lines, lost)

  laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 30))
  good = openi_text(2)
  for name, text, reason in (
    ("billion laughs", f'<!DOCTYPE x [<!ENTITY l0 "{SECRET}">{laughs}]>{good[38:]}',
     "has a document type"),
    ("external entity", good.replace(
      "<eCitation>", '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><eCitation>'),
     "has a document type"),
    ("cut short", good[: len(good) // 2], "is not XML"),
    ("empty", "", "is not XML"),
    ("a text", SECRET, "is not XML"),
    ("10,000 deep", "<eCitation>" + "<a>" * 10_000 + "</a>" * 10_000 + "</eCitation>",
     "is nested"),
    ("half a character", good.replace(SECRET, f"{SECRET} &#xD800;"), "is not XML"),
    ("NUL byte", good.replace(SECRET, f"{SECRET}\0"), "is not XML"),
    ("unknown entity", good.replace(SECRET, f"{SECRET} &x;"), "is not XML"),
    ("another root", good.replace("eCitation", "other"), "has another root"),
    ("no id", good.replace("uId", "vId"), "has no uId"),
    ("id that climbs", good.replace('"CXR2"', '"../CXR2"'), "has no uId"),
    ("image that climbs", good.replace('id="CXR2_', 'id="../CXR2_'), "names an image"),
    ("absolute image", good.replace('id="CXR2_', 'id="/CXR2_'), "names an image"),
    ("large", good.replace(SECRET, SECRET * 30_000), "has over"),
  ):  # fmt: skip
    yield case(name, on(file, lambda _, text=text: text.encode()), reason)
  yield case("UTF-16", on(file, lambda _: good.encode("utf-16")), "is not UTF-8")
  yield case("Latin-1", on(file, lambda _: good.replace("is", "é").encode("latin-1")),
             "is not UTF-8")  # fmt: skip
  yield case("a link that leads out", link_out(file), "is a link")
  yield case("a folder", as_folder(file), "cannot be read")
  again = on(file, lambda _: good.encode())

  def twice(root: Path) -> None:
    again(root)
    other = good.replace(SECRET, "there is another text about it")
    (root / "ecgen-radiology/9.xml").write_text(other)

  yield Exact(
    "openi/contradicting reports", "openi", twice,
    (("openi", file, 0, "contradicts"),
     ("openi", "ecgen-radiology/9.xml", 0, "contradicts")), lost,
  )  # fmt: skip
  picture = f"NLMCXR_png/{nih_layout.openi_images(2)[0]}.png"
  for name, damage, reason in (
    ("image bomb", on(picture, lambda _: BOMB_PNG), "has no pixels"),
    ("image a text", on(picture, lambda _: SECRET.encode()), "is no PNG"),
    ("image linked out", link_out(picture), "is a link"),
  ):
    line = ("openi images", picture, None, reason)
    first = image(nih_layout.openi_images(2)[0])
    yield Exact(f"openi/{name}", "openi", damage, (line,), first)


def packed_cases() -> Iterator[Exact]:
  file = "NLMCXR_reports.tgz"
  members = {f"ecgen-radiology/{n}.xml": openi_text(n) for n in range(1, 5)}

  def case(name: str, damage: Damage, reason: str, lost: Lost | None = None) -> Exact:
    source = "openi" if reason == "a member of" else "openi images"
    line = (source, file, None, reason)
    return Exact(f"openi/packed/{name}", "openi/packed", damage, (line,), lost)

  def with_member(name: str) -> Damage:
    return lambda root: (
      nih_layout.pack_openi(root, {**members, name: openi_text(8)}) and None
    )

  yield case("climbing member", with_member("../8.xml"), "a member of", nothing)
  yield case("absolute member", with_member("/tmp/8.xml"), "a member of", nothing)
  yield case("member of words", with_member(f"{SECRET}.xml"), "a member of", nothing)
  yield case("cut short", on(file, lambda d: d[: len(d) // 2]), "cannot be read")
  yield case("no gzip", on(file, lambda d: SECRET.encode()), "cannot be read")
  yield case("garbage behind", on(file, lambda d: d + b"garbage"), "cannot be read")
  yield case("a link that leads out", link_out(file), "is a link")

  def broken(data: bytes) -> bytes:
    tar = bytearray(gzip.decompress(data))
    place = tar.index(b"ecgen-radiology/3.xml")
    tar[place + 148 : place + 156] = b"99999999"  # the member's check sum
    return gzip.compress(bytes(tar))

  yield case("broken member", on(file, broken), "has something behind")
  bomb = gzip.compress(bytes(64 * 2**20))
  yield case("bomb", on(file, lambda _: bomb), "unpacks to over")


def question_cases() -> Iterator[Exact]:
  """VQA-RAD's and SLAKE's lists."""
  rad = "VQA_RAD Dataset Public.json"
  # Row 5 of VQA-RAD asks about the image synpic1, rows 0 and 1 of SLAKE about xmlab0.
  for base, file, row, name in (
    ("vqa_rad", rad, 5, "vqa_rad/synpic1"), ("slake", "train.json", 1, "slake/xmlab0"),
  ):  # fmt: skip
    images = f"{base} images"
    one = at(file, row)

    def case(
      what: str, damage: Damage, line: Line, lost: Lost | None, base: str = base
    ) -> Exact:
      return Exact(f"{base}/{what}", base, damage, (line,), lost)

    for what, field, value, reason in (
      ("no question", "question", None, "question empty"),
      ("question a list", "question", [SECRET], "question empty"),
      ("question half a character", "question", f"{SECRET}\ud800", "question empty"),
      ("answer empty", "answer", " ", "answer empty"),
      ("answer NaN", "answer", float("nan"), "answer empty"),
      ("answer infinite", "answer", float("inf"), "answer empty"),
      ("answer an object", "answer", {"a": SECRET}, "answer empty"),
      ("answer half a character", "answer", "\udc00", "answer empty"),
      ("answer_type unknown", "answer_type", SECRET, "answer_type"),
    ):
      damage = set_field(file, row, field, value)
      yield case(what, damage, (base, file, row, reason), one)
    yield case("no object", in_json(file, lambda v, row=row: v.__setitem__(row, SECRET)),
               (base, file, row, "no im"), one)  # fmt: skip
    field = "image_name" if base == "vqa_rad" else "img_name"
    for what, value in (
      ("climbs", "../../../x/source.jpg"), ("absolute", "/etc/x.jpg"),
      ("backslash", "..\\x.jpg"), ("NUL", "x\0/y.jpg"), ("too long", "x" * 5000),
    ):  # fmt: skip
      damage = set_field(file, row, field, value)
      yield case(f"image {what}", damage, (images, file, row, "image names a"), one)

    def contradict(items: list, row: int = row) -> None:
      items.append(items[row] | {"answer": "Another"})

    end = {"vqa_rad": 17, "slake": 9}[base]
    yield Exact(
      f"{base}/contradicting answers", base, in_json(file, contradict),
      ((base, file, row, "contradicts"), (base, file, end, "contradicts")), one,
    )  # fmt: skip

    for what, damage, reason in (
      ("cut short", on(file, lambda d: d[: len(d) // 2]), "is not JSON"),
      ("two lists", on(file, lambda d: d + d), "has something behind its list"),
      ("10,000 deep", on(file, lambda d: d[:-1] + b"," + DEEP + b"]"), "item"),
      ("5,000 digits", on(file, lambda d: d[:-1] + b"," + b"7" * 5000 + b"]"), "item"),
      ("an object", on(file, lambda _: b"{}"), "expected a JSON list"),
      ("empty", on(file, lambda _: b""), "expected a JSON list"),
      ("not UTF-8", on(file, lambda d: d[:9] + b"\xff" + d[9:]), "is not UTF-8"),
      ("NUL byte", on(file, lambda d: d + b"\0"), "has a NUL"),
      ("a folder", as_folder(file), "cannot be read"),
      ("a link that leads out", link_out(file), "is a link"),
    ):
      yield case(what, damage, (images, file, None, reason), None)
    bom = on(file, lambda d: b"\xef\xbb\xbf" + d)
    yield Exact(f"{base}/byte order mark", base, bom, (), nothing)
    first = {"vqa_rad": 4, "slake": 0}[base]
    picture = {"vqa_rad": "VQA_RAD Image Folder/synpic1.jpg",
               "slake": "imgs/xmlab0/source.jpg"}[base]  # fmt: skip
    for what, damage, reason in (
      ("image bomb", on(picture, lambda _: BOMB_PNG), "image has no pixels"),
      ("image a text", on(picture, lambda _: SECRET.encode()), "image is no PNG"),
      ("image linked out", link_out(picture), "image is a link"),
    ):
      yield case(what, damage, (images, file, first, reason), image(name))


def detection_cases() -> Iterator[Exact]:
  file = "imgs/xmlab0/detection.json"
  boxes = lambda a: a.origin.file == file  # noqa: E731
  for name, damage, row, reason, lost in (
    ("cut short", on(file, lambda d: d[:-9]), None, "is not JSON", boxes),
    ("10,000 deep", on(file, lambda _: DEEP), None, "is nested", boxes),
    ("an object", on(file, lambda _: b"{}"), None, "expected a JSON list", boxes),
    ("not UTF-8", on(file, lambda d: d + b"\xff"), None, "is not UTF-8", boxes),
    ("a link that leads out", link_out(file), None, "is a link", boxes),
    ("NaN", in_json(file, lambda v: v[2].update(Heart=[float("nan"), 1, 2, 3])), 2,
     "box is not four", at(file, 2)),
    ("huge", in_json(file, lambda v: v[2].update(Heart=[1, 10**400, 2, 3])), 2,
     "box is not four", at(file, 2)),
    ("three numbers", in_json(file, lambda v: v[2].update(Heart=[1, 2, 3])), 2,
     "box is not four", at(file, 2)),
    ("texts", in_json(file, lambda v: v[2].update(Heart=[SECRET] * 4)), 2,
     "box is not four", at(file, 2)),
    ("outside", in_json(file, lambda v: v[2].update(Heart=[60, 40, 9, 9])), 2,
     "box empty or outside", at(file, 2)),
    ("flat", in_json(file, lambda v: v[2].update(Heart=[1, 1, 0, 9])), 2,
     "box empty or outside", at(file, 2)),
    ("two names", in_json(file, lambda v: v[2].update({SECRET: [1, 1, 2, 2]})), 2,
     "not one name", at(file, 2)),
    ("no name", in_json(file, lambda v: v.__setitem__(2, {" ": [1, 1, 2, 2]})), 2,
     "a box without", at(file, 2)),
    ("half a character", in_json(file, lambda v: v.__setitem__(2, {"\ud800": [1] * 4})),
     2, "a box without", at(file, 2)),
  ):  # fmt: skip
    lines = (("slake", file, row, reason),)
    yield Exact(f"slake/boxes {name}", "slake", damage, lines, lost)


def vindr_cases() -> Iterator[Exact]:
  labels, boxes = (
    f"annotations/{name}_test.csv" for name in ("image_labels", "annotations")
  )
  name = layout.vindr_id(1000)
  yield from table_cases(
    "vindr", labels, 0, first="vindr images", lost=image(f"vindr/{name}")
  )
  yield from table_cases("vindr", boxes, 0, first="vindr", lost=at(boxes, 0))

  def case(what: str, damage: Damage, line: Line, lost: Lost | None) -> Exact:
    return Exact(f"vindr/{what}", "vindr", damage, (line,), lost)

  bits = asked(f"vindr/{name}", "multi_label")
  for what, value in (("2", "2"), ("NaN", "nan"), ("a text", SECRET)):
    damage = cell(labels, 0, "Edema", value)
    yield case(f"label {what}", damage, ("vindr", labels, 0, "a label is"), bits)
  for what, value in (("climbs", "../x"), ("empty", ""), ("absolute", "/etc/passwd")):
    damage = cell(labels, 0, "image_id", value)
    line = ("vindr", labels, 0, "image or reader id")
    yield case(f"id {what}", damage, line, image(f"vindr/{name}"))
  for what, column, value, reason in (
    ("NaN", "x_min", "nan", "box empty"), ("a text", "x_min", SECRET, "box is not"),
    ("infinite", "x_max", "inf", "box empty"), ("turned", "x_max", "1", "box empty"),
    ("negative", "y_min", "-3", "box empty"), ("no class", "class_name", "", "image id"),
    ("outside", "x_max", "500", "a box of this image"),
  ):  # fmt: skip
    damage = cell(boxes, 0, column, value)
    yield case(f"box {what}", damage, ("vindr", boxes, 0, reason), at(boxes, 0))
  again = ",".join([name, *["0"] * 28])
  yield Exact(
    "vindr/contradicting labels", "vindr", add_line(labels, again),
    (("vindr", labels, 0, "contradicts"), ("vindr", labels, 2, "contradicts")), bits,
  )  # fmt: skip
  picture = f"test/{name}.png"
  for what, damage, reason in (
    ("image bomb", on(picture, lambda _: BOMB_PNG), "image has no pixels"),
    ("image a text", on(picture, lambda _: SECRET.encode()), "image is no PNG"),
    ("image linked out", link_out(picture), "image is a link"),
  ):
    line = ("vindr images", labels, 0, reason)
    yield case(what, damage, line, image(f"vindr/{name}"))

  def dicom(data: bytes) -> Damage:
    return lambda root: (root / f"test/{name}.dicom").write_bytes(data) and None

  good = layout.dicom_bytes(np.zeros((64, 80), np.uint16))
  for what, data in (
    ("a text", SECRET.encode()), ("cut short", good[:140]), ("empty", b""),
    ("deflated", good.replace(b"1.2.840.10008.1.2.1 ", b"1.2.840.10008.1.2.1.99")
     if b"1.2.840.10008.1.2.1 " in good else good[:128] + b"DICM1.2.840.10008.1.2.1.99"),
  ):  # fmt: skip
    line = ("vindr images", labels, 0, "image has no readable DICOM")
    yield case(f"DICOM {what}", dicom(data), line, image(f"vindr/{name}"))


def mask_cases() -> Iterator[Exact]:
  """JSRT, Montgomery and Shenzhen: files of images and of masks."""
  heart = "heart-lung-segmentations-data/1.0.0/montgomery_masks/heart/MCUCXR_0002_1.png"
  for base, picture, name, mask in (
    ("jsrt", "All247images/JPCNN002.png", "jsrt/JPCNN002",
     "scratch/fold1/masks/heart/JPCNN002.gif"),
    ("montgomery", "MontgomerySet/CXR_png/MCUCXR_0002_1.png",
     "montgomery/MCUCXR_0002_1", heart),
    ("shenzhen", "ChinaSet_AllFiles/CXR_png/CHNCXR_0002_1.png",
     "shenzhen/CHNCXR_0002_1", "mask/CHNCXR_0002_1_mask.png"),
  ):  # fmt: skip
    for what, damage, reason in (
      ("bomb", on(picture, lambda _: BOMB_PNG), "image has no pixels"),
      ("a text", on(picture, lambda _: SECRET.encode()), "image is no PNG"),
      ("empty", on(picture, lambda _: b""), "image is no PNG"),
      ("linked out", link_out(picture), "image is a link"),
      ("a folder", as_folder(picture), "image is no PNG"),
    ):
      line = (f"{base} images", picture, None, reason)
      yield Exact(f"{base}/image {what}", base, damage, (line,), image(name))

    def of_mask(a: Annotation, name: str = name, base: str = base) -> bool:
      """With a heart go its boxes and the ratios, with both lungs all the boxes."""
      if a.image_id != name or a.task == "multi_class":
        return False
      return base == "shenzhen" or a.subtask in ("heart", "ctr", "cpar")

    for what, damage, reason in (
      ("bomb", on(mask, lambda _: BOMB_PNG), "has no pixels"),
      ("a text", on(mask, lambda _: SECRET.encode()), "is no PNG"),
      ("cut short", on(mask, lambda d: d[: len(d) // 2]), ""),
      ("of another shape", on(mask, lambda _: _png(30, 90)), "mask has another"),
      ("linked out", link_out(mask), "is a link"),
    ):
      line = (base, mask, None, reason)
      yield Exact(f"{base}/mask {what}", base, damage, (line,), of_mask)
  raw = "All247images/JPCLN004.IMG"
  for what, data in (("cut short", b"\0" * 999), ("empty", b"")):
    damage = lambda root, data=data: (root / raw).write_bytes(data) and None  # noqa: E731
    line = ("jsrt images", raw, None, "image is not 2048")
    yield Exact(f"jsrt/raw image {what}", "jsrt", damage, (line,), nothing)
  name = f"ChinaSet_AllFiles/CXR_png/{SECRET[:5]}.png"
  damage = lambda root: (root / name).write_bytes(b"") and None  # noqa: E731
  line = ("shenzhen images", name, None, "image name of")
  yield Exact("shenzhen/image of another name", "shenzhen", damage, (line,), nothing)


def _png(width: int, height: int) -> bytes:
  buffer = io.BytesIO()
  Image.new("L", (width, height), 200).save(buffer, "PNG")
  return buffer.getvalue()


def own_cases() -> Iterator[Exact]:
  file, bo = "annotations.csv", image("bo.png")

  def case(what: str, damage: Damage, line: Line, lost: Lost | None = bo) -> Exact:
    return Exact(f"own/{what}", "own", damage, (line,), lost)

  rows = {
    "climbs": "../../secret.png", "absolute": "/etc/passwd", "backslash": "..\\..\\x.png",
    "absent": "nowhere.png", "empty": "", "of 5,000 letters": "x" * 5000,
    "a folder": "ana",
  }  # fmt: skip
  for what, value in rows.items():
    line = f"{value},bo,vqa,Is {SECRET}?,no".encode()
    damage = on_line(file, 3, lambda _, line=line: line)
    reason = {"absent": "image file absent", "a folder": "image file absent",
              "empty": "image empty"}.get(what, "names a file")  # fmt: skip
    yield case(f"image {what}", damage, ("own images", file, 3, reason))
  for what, line, reason in (
    ("unknown task", "bo.png,bo,diagnosis,,no", "unknown task"),
    ("no answer", "bo.png,bo,vqa,Is it?,", "answer empty"),
    ("no question", "bo.png,bo,vqa,,no", "question (name) empty"),
    ("ratio of 2", "bo.png,bo,calculation,CTR,2", "answer not between"),
    ("ratio NaN", "bo.png,bo,calculation,CTR,nan", "answer is no number"),
    ("ratio of words", f"bo.png,bo,calculation,CTR,{SECRET}", "answer is no number"),
    ("ratio 1e999", "bo.png,bo,calculation,CTR,1e999", "answer not between"),
    ("ratio of another name", f"bo.png,bo,calculation,{SECRET},0.4", "name neither"),
    ("box outside", "bo.png,bo,box,heart,1 2 3 99", "box outside"),
    ("box negative", "bo.png,bo,box,heart,-1 2 3 9", "box outside"),
    ("box flat", "bo.png,bo,box,heart,3 2 3 9", "box without"),
    ("box of three", "bo.png,bo,box,heart,3 2 9", "answer: expected four"),
    ("box of words", f"bo.png,bo,box,heart,{SECRET}", "answer"),
    ("box without name", "bo.png,bo,box,,1 2 3 9", "name of the object"),
    ("class unknown", f"bo.png,bo,multi_class,a; b,{SECRET}", "answer is not"),
    ("label unknown", f"bo.png,bo,multi_label,a; b,{SECRET}", "answer is not"),
  ):
    damage = on_line(file, 3, lambda _, line=line: line.encode())
    yield case(what, damage, ("own", file, 3, reason))
  damage = on_line(file, 3, lambda r: r + f",{SECRET}".encode())
  yield case("row too long", damage, ("own", file, 3, "has more cells"))
  yield Exact(
    "own/contradicting patients", "own", cell_of_own(5, 1, "dee"),
    tuple(("own images", file, row, "rows of one image differ") for row in (4, 5)),
    image("cy.png"),
  )  # fmt: skip
  yield Exact(
    "own/contradicting answers", "own", add_line(file, "ana/1.png,ana,calculation,CTR,0.5"),
    tuple(("own", file, row, "contradicts") for row in (0, 6)),
    asked("ana/1.png", "calculation", "ctr"),
  )  # fmt: skip
  for what, data in (("a text", SECRET.encode()), ("a bomb", BOMB_PNG), ("empty", b"")):
    reason = "has no pixels" if data == BOMB_PNG else "is no PNG"
    damage = on("bo.png", lambda _, data=data: data)
    yield case(f"image file {what}", damage, ("own images", file, 3, reason))
  yield case(
    "image linked out", link_out("bo.png"), ("own images", file, 3, "is a link")
  )
  dead = lambda root: (gone("bo.png")(root), (root / "bo.png").symlink_to("bo.png"))  # noqa: E731
  yield case("image linked to itself", lambda root: dead(root) and None,
             ("own images", file, 3, "names a file"))  # fmt: skip
  for what, damage, reason in (
    ("not UTF-8", on(file, lambda d: d + b"\xff"), "is not UTF-8 on line"),
    ("UTF-16", on(file, lambda d: d.decode().encode("utf-16")), "is not UTF-8 on line"),
    ("NUL byte", on(file, lambda d: d + b"\0"), "has a NUL"),
    ("quote without end", on(file, lambda d: d + b'bo.png,bo,report,,"no end\n'),
     "has a quote"),
    ("empty", on(file, lambda _: b""), "has no column"),
    ("column twice", on(file, lambda d: d.replace(b"name,", b"answer,", 1)),
     "has the column"),
    ("column missing", on(file, lambda d: d.replace(b"task,", b"tusk,", 1)), "has no"),
    ("a link that leads out", link_out(file), "is a link"),
    ("a folder", as_folder(file), "cannot be read"),
  ):  # fmt: skip
    yield case(f"table {what}", damage, ("own images", file, None, reason), None)
  for name, change in HARMLESS:
    yield Exact(f"own/{name}", "own", on(file, change), (), nothing)


def cell_of_own(row: int, place: int, value: str) -> Damage:
  def change(line: bytes) -> bytes:
    cells = line.split(b",")
    cells[place] = value.encode()
    return b",".join(cells)

  return on_line("annotations.csv", row, change)


def jsonl_cases() -> Iterator[Exact]:
  file = "annotations.jsonl"
  good = {"image": "bo.png", "patient": "bo", "task": "box", "name": "heart"}
  deep = f'{{"image": {DEEP.decode()}}}'
  for what, line, source, reason in (
    ("no JSON", f"{{{SECRET}", "own", "is not JSON"),
    ("no object", f'["{SECRET}"]', "own", "is not a JSON object"),
    ("10,000 deep", deep, "own", "is not JSON"),
    ("5,000 digits", '{"answer": ' + "7" * 5000 + "}", "own", "is not JSON"),
    ("half a character", '{"image": "\\ud800"}', "own", "is not JSON"),
    ("NUL in the image", json.dumps(good | {"image": "a\0b"}), "own images", "names a"),
    ("image a list", json.dumps(good | {"image": [SECRET]}), "own images", "image empty"),
    ("patient an object", json.dumps(good | {"patient": {"a": SECRET}, "answer": [1]}),
     "own images", "patient, study or view"),
    ("box NaN", json.dumps(good | {"answer": [float("nan"), 1, 2, 3]}), "own", "box"),
    ("box infinite", json.dumps(good | {"answer": [1, 2, 3, float("inf")]}), "own", "box"),
    ("box huge", json.dumps(good | {"answer": [1, 2, 3, 10**400]}), "own", "answer is too"),
    ("box of booleans", json.dumps(good | {"answer": [True] * 4}), "own", "answer is no"),
    ("box an object", json.dumps(good | {"answer": {"a": 1}}), "own", "answer: expected"),
  ):  # fmt: skip

    def damage(root: Path, line: str = line) -> None:
      lines = (root / file).read_text().split("\n")
      lines[3] = line
      (root / file).write_text("\n".join(lines))

    yield Exact(
      f"own/jsonl/{what}", "own/jsonl", damage, ((source, file, 3, reason),),
      image("bo.png"),
    )  # fmt: skip

  def not_utf8(data: bytes) -> bytes:
    lines = data.split(b"\n")
    return b"\n".join([*lines[:3], b"\xff" + lines[3], *lines[4:]])

  lines = (("own", file, 3, "is not UTF-8"),)
  yield Exact(
    "own/jsonl/not UTF-8", "own/jsonl", on(file, not_utf8), lines, image("bo.png")
  )
  yield Exact("own/jsonl/CRLF", "own/jsonl", on(file, HARMLESS[1][1]), (), nothing)


def opencxr_cases() -> Iterator[Exact]:
  file = "alpha/manifest.json"

  def case(what: str, damage: Damage, reason: str) -> Exact:
    return Exact(
      f"opencxr/{what}",
      "opencxr",
      damage,
      (("opencxr images", file, None, reason),),
      None,
    )

  def item(**fields: Any) -> Damage:
    return in_json(file, lambda value: value["images"][1].update(fields))

  yield case("cut short", on(file, lambda d: d[: len(d) // 2]), "is not JSON")
  yield case("10,000 deep", on(file, lambda _: DEEP), "is nested")
  yield case("5,000 digits", on(file, lambda _: b"7" * 5000), "is nested or long")
  yield case("not UTF-8", on(file, lambda d: d + b"\xff"), "is not UTF-8")
  yield case("NUL byte", on(file, lambda d: d + b"\0"), "has a NUL")
  yield case("a list", on(file, lambda _: b"[]"), "expected")
  yield case("item a number", in_json(file, lambda v: v["images"].append(7)), "image 3")
  yield case("image climbs", item(image="../../x.png"), "names a file")
  yield case("image absolute", item(image="/etc/passwd"), "names a file")
  yield case("image a number", item(image=7), "image 1")
  yield case("id a list", item(id=[SECRET]), "image 1")
  yield case("size of words", item(size=SECRET), "image 1")
  yield case("box of words", item(boxes=[{"name": "x", "box": SECRET}]), "image 1")
  yield case("ratio of words", item(ctr=SECRET), "image 1")
  yield case("report a number", item(report=7), "image 1")


def report_cases(study: tuple[str, str, str]) -> Iterator[Exact]:
  """The reports unzipped, in a table, and in JSON; CXR-LT of 2023."""
  patient, number, name = study
  file = f"files/p{patient[:2]}/p{patient}/s{number}.txt"
  of_study = lambda a: a.origin.file == file  # noqa: E731

  def case(what: str, damage: Damage, line: Line, lost: Lost | None) -> Exact:
    base = "mimic_cxr/folder"
    return Exact(f"{base}/{what}", base, damage, (line,), lost)

  for what, damage, reason in (
    ("NUL byte", on(file, lambda d: d + b"\0"), "has a NUL"),
    ("not UTF-8", on(file, lambda d: d + b"\xff"), "is not UTF-8"),
    ("large", on(file, lambda d: d * 20_000), "too large"),
    ("linked out", link_out(file), "a link"),
    ("a folder", as_folder(file), "no file"),
    ("linked to nothing", _dead_link(file), "no file"),
  ):
    yield case(what, damage, ("mimic_cxr", file, 0, reason), of_study)

  # Each is the first of the names in their order: "S", "0" and "_" stand before "s".
  folder = file.rpartition("/")[0]
  for what, name_, reason in (
    ("another ending", f"{folder}/S50000001.TXT", "a name that"),
    ("another name", f"{folder}/0 {SECRET}.txt", "a name that"),
    ("another id", f"{folder}/_/s7.txt", "study id"),
  ):
    new = lambda root, name_=name_: nih_layout.write_lines(root / name_, [SECRET])  # noqa: E731
    lines = (("mimic_cxr", "files", 0, reason),)
    yield Exact(f"mimic_cxr/folder/{what}", "mimic_cxr/folder", new, lines, nothing)
  page = lambda root: nih_layout.write_lines(root / "files/index.html", [SECRET])  # noqa: E731
  yield Exact("mimic_cxr/folder/another file", "mimic_cxr/folder", page, (), nothing)

  def linked_folder(root: Path) -> None:
    nih_layout.write_lines(root / "elsewhere" / file, [SECRET])
    (root / "files/a").symlink_to(root / "elsewhere/files")

  lines = (("mimic_cxr", "files", 0, "a link to a folder"),)
  yield Exact("mimic_cxr/folder/a linked folder", "mimic_cxr/folder", linked_folder,
              lines, nothing)  # fmt: skip

  def another(root: Path) -> None:
    path = root / file.replace(f"p{patient}", "p19999999")
    path.parent.mkdir(parents=True)
    path.write_text(f"x\n FINDINGS: {REPORT}\n IMPRESSION: no {SECRET}\n")

  moved = file.replace(f"p{patient}", "p19999999")
  yield Exact(
    "mimic_cxr/folder/two reports of a study", "mimic_cxr/folder", another,
    tuple(("mimic_cxr", one, 0, "contradicts") for one in (file, moved)),
    of_study,
  )  # fmt: skip
  yield from sectioned_cases(number)
  for base, table, key, text in (
    ("mimic_cxr/captions", "filter_cap.json", "image_id", "caption"),
    ("mimic_cxr/annotation", "annotation.json", "id", "report"),
  ):
    yield from json_report_cases(base, table, key, text, name)
  labels = "cxr-lt-2023/train.csv"
  for name_, change, reason in ROW_DAMAGES:
    yield Exact(
      f"cxr_lt/2023/{name_}", "cxr_lt/2023", on_line(labels, 0, change),
      (("cxr_lt", labels, 0, reason),), at(labels, 0),
    )  # fmt: skip
  linked = lambda root: _link_folder(root / "cxr-lt-2023")  # noqa: E731
  lines = (("cxr_lt", labels, None, "is a link"),)
  yield Exact("cxr_lt/2023/folder linked out", "cxr_lt/2023", linked, lines, None)
  twice = on(labels, lambda d: d.replace(b"Edema", b"Nodule", 1))
  lines = (("cxr_lt", labels, None, "has"),)
  yield Exact("cxr_lt/2023/column twice", "cxr_lt/2023", twice, lines, None)


def _dead_link(file: str) -> Damage:
  def damage(root: Path) -> None:
    (root / file).unlink()
    (root / file).symlink_to("nowhere.txt")

  return damage


def _link_folder(folder: Path) -> None:
  outside = folder.parent.parent / f"outside-{folder.name}"
  shutil.move(folder, outside)
  folder.symlink_to(outside)


def sectioned_cases(number: str) -> Iterator[Exact]:
  base, file = "mimic_cxr/sectioned", "mimic_cxr_sectioned.csv"
  # A row is two lines: s…,"…\n","…"
  first = f's{number},"{SECRET}\n","{REPORT}"\n'.encode()
  for what, row, reason in (
    ("NUL byte", first.replace(b",", b",\0", 1), "has a NUL"),
    ("not UTF-8", first.replace(b"Ada", b"\xff", 1), "is not UTF-8"),
    ("id of another form", b"s5000x" + first[first.index(b",") :], "study id"),
    ("quote without end", first.replace(b'"', b"", 1), "is not"),
    ("too long", first[:-1] + b",x\n", "has more or fewer"),
    (
      "cell of 200,000 letters",
      first.replace(b"Ada", b"Ada" * 70_000, 1),
      "is not csv",
    ),
  ):
    damage = on(file, lambda d, row=row: d.replace(first, row))

    lines = (("mimic_cxr", file, 0, reason),)
    yield Exact(f"{base}/{what}", base, damage, lines, at(file, 0))
  again = on(file, lambda d: d + first.replace(b"clear", b"not clear"))
  lines = tuple(("mimic_cxr", file, row, "contradicts") for row in (0, 6))
  yield Exact(f"{base}/contradicting rows", base, again, lines, at(file, 0))
  for what, damage, reason in (
    ("empty", on(file, lambda _: b""), "has no column"),
    ("a link that leads out", link_out(file), "is a link"),
    ("a line without end", on(file, lambda d: d + b"7" * 2**25), "has a row"),
  ):
    lines = (("mimic_cxr", file, None, reason),)
    yield Exact(f"{base}/{what}", base, damage, lines, None)


def json_report_cases(
  base: str, file: str, key: str, text: str, name: str
) -> Iterator[Exact]:
  def items(value: Any) -> list:
    return value["annotations"] if "annotations" in value else value["train"]

  def item(**fields: Any) -> Damage:
    return in_json(file, lambda value: items(value)[0].update(fields))

  for what, damage, reason in (
    ("id of another form", item(**{key: "../x"}), "image id"),
    ("id a number", item(**{key: 7}), "lacks"),
    ("text a list", item(**{text: [SECRET]}), "lacks"),
    ("text empty", item(**{text: " "}), "empty text"),
    ("half a character", item(**{text: f"{SECRET}\ud800"}), "empty text"),
    ("no object", in_json(file, lambda v: items(v).__setitem__(0, SECRET)), "lacks"),
  ):
    lines = (("mimic_cxr", file, 0, reason),)
    yield Exact(f"{base}/{what}", base, damage, lines, image(name))

  def contradict(value: Any) -> None:
    last = value["test"] if "test" in value else value["annotations"]
    last.append({key: name, text: f"not {SECRET}"})

  lines = tuple(("mimic_cxr", file, row, "contradicts") for row in (0, 6))
  yield Exact(
    f"{base}/contradicting texts", base, in_json(file, contradict), lines, image(name)
  )
  for what, damage, reason in (
    ("cut short", on(file, lambda d: d[: len(d) // 2]), "is not JSON"),
    ("10,000 deep", on(file, lambda _: DEEP), "is nested"),
    ("another form", on(file, lambda _: b'{"a": []}'), "expected"),
    ("not UTF-8", on(file, lambda d: d + b"\xff"), "is not UTF-8"),
  ):
    lines = (("mimic_cxr", file, None, reason),)
    yield Exact(f"{base}/{what}", base, damage, lines, None)


def zip_cases(studies: list[tuple[str, str, str]]) -> Iterator[Exact]:
  """The reports as they come; what is spoilt is the last study's member, or the end."""
  base, name = "mimic_cxr/zip", member_of(studies[-1])
  of_study, before = at(name, 0), member_of(studies[-2])

  def case(
    what: str, damage: Damage, reason: str, *names: str, lost: Lost = of_study
  ) -> Exact:
    lines = tuple(("mimic_cxr", one, 0, reason) for one in names or (name,))
    return Exact(f"{base}/{what}", base, damage, lines, lost)

  def fine(what: str, damage: Damage) -> Exact:
    return Exact(f"{base}/{what}", base, damage, (), nothing)

  def given_up(what: str, change: Callable[[bytes], bytes], reason: str) -> Exact:
    lines = (("mimic_cxr", ZIP, None, reason),)
    return Exact(f"{base}/{what}", base, on(ZIP, change), lines, None)

  torn = "cannot be unpacked"
  yield case("encrypted", record(name, 8, "H", 1), torn)
  yield case("packed in a way of its own", record(name, 10, "H", 99), torn)
  yield case("packed with bzip2", packed_as(name, zipfile.ZIP_BZIP2), torn)
  yield case("check sum wrong", record(name, 16, "I", 1), torn)
  yield case("size understated", record(name, 24, "I", 10), torn)
  yield fine("size overstated", record(name, 24, "I", 5000))  # the check sum is right
  yield case("size of gigabytes", record(name, 24, "I", 3 * 10**9), "too large")
  first = member_of(studies[0])
  yield Exact(
    f"{base}/begins inside another", base, record(name, 42, "I", 7),
    (("mimic_cxr", first, 0, "overlaps"), ("mimic_cxr", name, 0, torn)),
    lambda a: of_study(a) or at(first, 0)(a),
  )  # fmt: skip
  yield case("begins behind the end", record(name, 42, "I", 2**31), torn)
  spaces = (b" " * 50 * 2**20,)
  yield case("50 MB of spaces", with_members((name, *spaces)), "too large")
  for size in (1000, 2**20):
    lies = record(name, 24, "I", size)
    damage = then(with_members((name, *spaces)), lies)
    yield case(f"50 MB of spaces said to be {size}", damage, torn)
  text = f"x\n FINDINGS: {REPORT}\n IMPRESSION: {SECRET}\n".encode()
  yield fine("twice the same", more_members((name, text)))
  other = more_members((name, text.replace(b"clear", b"not clear")))
  yield case("twice, with another text", other, "contradicts", name, name)
  three = more_members((name, text), (name, text + b"!"), (name, text))
  yield case("four times, one another text", three, "contradicts", *[name] * 4)
  both = lambda a: of_study(a) or at(before, 0)(a)  # noqa: E731
  yield case("two of the same bytes", same_bytes(name, before), "overlaps", name, before,
             lost=both)  # fmt: skip
  yield case("reaches into the next", record(before, 20, "I", 5000), "overlaps", before,
             lost=at(before, 0))  # fmt: skip
  ends_early = on(
    ZIP, lambda d: d.replace(name.encode(), name[:-4].encode() + b"\0txt")
  )
  line = ("mimic_cxr", ZIP, 5, "a name that")
  yield Exact(f"{base}/name with a NUL", base, ends_early, (line,), of_study)
  yield fine("garbage behind", on(ZIP, lambda d: d + b"garbage" * 99))
  yield fine("a program before", on(ZIP, lambda d: b"#!/bin/sh\n" * 9 + d))
  yield fine("another file", more_members(("files/index.html", SECRET.encode())))
  yield fine("zip64", on(ZIP, zip64()))
  incomplete = "is not a complete zip"
  yield given_up("70 kB of garbage behind", lambda d: d + b"g" * 70_000, incomplete)
  yield given_up("end says more members", end_record(10, "H", 7), incomplete)
  yield given_up("end says no directory", end_record(12, "I", 0), incomplete)
  for what, lie in (
    ("count of 10**9", {"count": 10**9}), ("directory of 0", {"size": 0}),
    ("directory of 100", {"size": 100}), ("directory of 2**62", {"size": 2**62}),
    ("directory at 2**62", {"place": 2**62}), ("nine disks", {"disks": 9}),
  ):  # fmt: skip
    yield given_up(f"zip64 {what}", zip64(**lie), incomplete)
  nothing_in_it = lambda _: zip_of([("index.html", b"x")])  # noqa: E731
  yield given_up("no report", nothing_in_it, "has no report")
  yield given_up("empty zip", lambda _: zip_of([]), "has no report")


def zip_of(members: list[tuple[str, bytes]]) -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
    for name, data in members:
      new.writestr(name, data)
  return buffer.getvalue()


def then(*damages: Damage) -> Damage:
  def damage(root: Path) -> None:
    for one in damages:
      one(root)

  return damage


def packed_as(name: str, method: int) -> Damage:
  """A member packed in another way, its text unchanged."""

  def change(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
      for one in old.namelist():
        kind = method if one == name else zipfile.ZIP_DEFLATED
        new.writestr(one, old.read(one), kind)
    return buffer.getvalue()

  return on(ZIP, change)


def with_members(*members: tuple[str, bytes]) -> Damage:
  """Members replaced."""

  def change(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as old:
      return zip_of(
        list(({n: old.read(n) for n in old.namelist()} | dict(members)).items())
      )

  return on(ZIP, change)


def more_members(*members: tuple[str, bytes]) -> Damage:
  """Members added, whether or not their names are there already."""

  def damage(root: Path) -> None:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of names that are there twice
      with zipfile.ZipFile(root / ZIP, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
          archive.writestr(name, data)

  return damage


def record_of(data: bytes, name: str) -> int:
  """Where the directory's record of a member begins."""
  return data.index(name.encode(), data.index(b"PK\1\2")) - 46


def record(name: str, place: int, form: str, value: int) -> Damage:
  """Changes a number in the directory's record of a member."""

  def change(data: bytes) -> bytes:
    changed = bytearray(data)
    struct.pack_into(f"<{form}", changed, record_of(data, name) + place, value)
    return bytes(changed)

  return on(ZIP, change)


def same_bytes(name: str, other: str) -> Damage:
  """The directory has one member begin where another does."""

  def damage(root: Path) -> None:
    with zipfile.ZipFile(root / ZIP) as archive:
      start = archive.getinfo(other).header_offset
    record(name, 42, "I", start)(root)

  return damage


def end_record(place: int, form: str, value: int) -> Callable[[bytes], bytes]:
  def change(data: bytes) -> bytes:
    changed = bytearray(data)
    struct.pack_into(f"<{form}", changed, data.rindex(b"PK\5\6") + place, value)
    return bytes(changed)

  return change


def zip64(
  count: int = 6, size: int | None = None, place: int | None = None, disks: int = 1
) -> Callable[[bytes], bytes]:
  """Puts zip64's end records before the end, with the true numbers unless given."""

  def change(data: bytes) -> bytes:
    start, end = data.index(b"PK\1\2"), data.rindex(b"PK\5\6")
    old = bytearray(data[end:])
    struct.pack_into("<HHII", old, 8, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1)
    numbers = (
      count, count, end - start if size is None else size,
      start if place is None else place,
    )  # fmt: skip
    large = struct.pack("<4sQHHII4Q", b"PK\6\6", 44, 45, 45, 0, 0, *numbers)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, end, disks)
    return data[:end] + large + locator + bytes(old)

  return change


def gzip_cases() -> Iterator[Exact]:
  base, file = "cardiomegaly/gz", "CTRs.csv.gz"

  def case(what: str, change: Callable[[bytes], bytes], reason: str) -> Exact:
    lines = ((("cardiomegaly", file, None, reason),)) if reason else ()
    lost = None if reason else nothing
    return Exact(f"{base}/{what}", base, on(file, change), lines, lost)

  def in_two(data: bytes) -> bytes:
    text = gzip.decompress(data)
    return gzip.compress(text[:200]) + gzip.compress(text[200:])

  cut = "cannot be read to its end"
  yield case("two members", in_two, "")
  yield case("an empty member behind", lambda d: d + gzip.compress(b""), "")
  yield case("zeros behind", lambda d: d + bytes(512), "")
  yield case("garbage behind", lambda d: d + b"garbage", cut)
  yield case("second member cut short", lambda d: in_two(d)[:-9], cut)
  yield case("check sum wrong", lambda d: d[:-8] + b"abcd" + d[-4:], cut)
  yield case("size wrong", lambda d: d[:-4] + b"abcd", cut)
  yield case("without its end", lambda d: d[:-5], cut)
  yield case("empty", lambda _: b"", "has no column")
  yield case("packed emptiness", lambda _: gzip.compress(b""), "has no column")
  yield case("not packed", gzip.decompress, "")
  yield case("packed twice", gzip.compress, "has no readable first line")


def joined_cases() -> Iterator[Exact]:
  """Tables made of parts: a header, or a byte order mark, where a row should be."""
  for base, file, row, reason in (
    ("cardiomegaly/gz", "CTRs.csv.gz", 3, "image id"),
    ("nih", "Data_Entry_2017_v2020.csv", 3, "image name of"),
    ("own", "annotations.csv", 3, "image file absent"),
    ("cxr_lt/2023", "cxr-lt-2023/train.csv", 3, "image id"),
    ("mimic_cxr/sectioned", "mimic_cxr_sectioned.csv", 3, "study id"),
  ):
    # A report's row is two lines.
    line = 2 * row if base == "mimic_cxr/sectioned" else row
    source = f"{base} images" if base == "own" else base.split("/")[0]
    for what, mark in (
      ("header again", b""),
      ("mark and header again", b"\xef\xbb\xbf"),
    ):
      yield Exact(
        f"{base}/{file}/{what}", base, header_again(file, line, mark),
        ((source, file, row, reason),), nothing, inserted=(file, row),
      )  # fmt: skip
  mark = lambda row: b"\xef\xbb\xbf" + row  # noqa: E731
  for base, file, line in (
    ("nih", "Data_Entry_2017_v2020.csv", 1),
    ("cxr_lt/2023", "cxr-lt-2023/train.csv", 0),
    ("mimic_cxr/sectioned", "mimic_cxr_sectioned.csv", 2),
  ):
    yield Exact(
      f"{base}/{file}/mark before a row", base, on_line(file, line, mark), (), nothing
    )


def exact_cases(mimic_jpg: Path) -> list[Exact]:
  return [
    *nih_cases(), *chexmask_cases(), *openi_cases(), *packed_cases(), *question_cases(),
    *detection_cases(), *vindr_cases(), *mask_cases(), *own_cases(), *jsonl_cases(),
    *opencxr_cases(), *report_cases(mimic_studies(mimic_jpg)[0]),
    *zip_cases(mimic_studies(mimic_jpg)), *gzip_cases(), *joined_cases(),
  ]  # fmt: skip


def spoil(case: Exact, bases: dict[str, Path], folder: Path) -> Path:
  """A damaged copy of the case's base below `folder` -> its source's root."""
  root = folder / "files"
  shutil.copytree(bases[case.base], root)
  case.damage(root)
  return root / ROOTS.get(case.base, "")
