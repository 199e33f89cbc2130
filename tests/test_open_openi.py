"""OpenI as downloaded: reports, headings, images; hostile XML. Every report is invented."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import time
from pathlib import Path

import pytest
from open_nih_layout import openi_images
from open_nih_layout import openi_xml
from open_nih_layout import pack_openi
from open_nih_layout import write_lines
from open_nih_layout import write_openi
from open_nih_layout import write_png

from imax_jax.data.sources import openi
from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Intake
from imax_jax.data.sources.intake import Tally
from imax_jax.schema import FINDINGS
from imax_jax.schema import Radiograph

LONG = "one two three four five six seven eight nine ten"


def _radiographs(*names: str) -> dict[str, Radiograph]:
  return {name: Radiograph(name, name, name, "", 8, 8, "") for name in names}


def _write(root: Path, number: int, text: str | bytes) -> Path:
  path = root / "ecgen-radiology" / f"{number}.xml"
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return path


def _read(root: Path, *names: str, tally: Tally | None = None, **options):
  return list(openi.read(root, _radiographs(*names), tally=tally, **options))


def test_a_download_is_read_whole(tmp_path):
  names = write_openi(tmp_path, 9)
  images, tally = Tally("openi images"), Tally("openi")
  found = openi.read_radiographs(tmp_path, tally=images)
  assert list(found) == names
  first = found["CXR1_IM-0001-1001"]
  assert (first.study_id, first.patient_id, first.view) == ("CXR1", "CXR1", "")
  assert (first.width, first.height) == (32, 32)
  assert "patient of its own" in images.cases["patient ids"]
  assert "laterals" in images.cases["views"]
  said = list(openi.read(tmp_path, found, tally=tally))
  assert len(said) == 2 * len(names) == tally.counts["kept"]
  assert set(tally.counts) == {"kept"}
  assert tally.rows == 9
  assert len(tally.inputs) == 9
  rules = {a.origin.rule for a in said} | {openi.FILE_RULE, openi.IMAGE_RULE}
  assert rules == set(openi.RULES)
  assert said[0].target.text == (
    "The lungs are clear. Heart size is normal. No acute bony changes. "
    "No acute disease."
  )
  assert {a.task for a in said} == {"report", "multi_label"}


def test_the_archive_says_what_the_folder_says(tmp_path):
  names = write_openi(tmp_path / "folder", 12)
  texts = {
    f"./ecgen-radiology/{n}.xml": (
      tmp_path / f"folder/ecgen-radiology/{n}.xml"
    ).read_text()
    for n in range(12, 0, -1)
  }
  pack_openi(tmp_path, texts)
  tally = Tally("openi")
  tally.root = tmp_path
  packed = _read(tmp_path, *names, tally=tally)
  folder_tally = Tally("openi")
  folder_tally.root = tmp_path / "folder"
  assert packed == _read(tmp_path / "folder", *names, tally=folder_tally)
  assert [path.name for path in tally.inputs] == [openi.ARCHIVE]
  assert packed[0].origin.file == "ecgen-radiology/1.xml"
  assert packed[-1].origin.file == "ecgen-radiology/12.xml"
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    "NLMCXR_reports.tgz",
    "folder",
  ]


# ── Reports ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
  ("findings", "impression", "text"),
  [
    (f"{LONG}\n\n  eleven ", " No  change.\n", f"{LONG} eleven No change."),
    (LONG, "<b>No</b> change.", f"{LONG} No change."),
    (LONG, "Clear.", "impression too short"),
    ("Clear lungs.", "No change.", "findings too short"),
    (LONG, " ", "no findings or no impression"),
    ("", "No change.", "no findings or no impression"),
  ],
)
def test_findings_then_impression_both_long_enough(
  tmp_path, findings, impression, text
):
  _write(tmp_path, 1, openi_xml(1, findings=findings, impression=impression))
  tally = Tally("openi")
  said = _read(tmp_path, *openi_images(1), tally=tally)
  reports = [a.target.text for a in said if a.task == "report"]
  if f"report: {text}" in tally.counts:
    assert not reports
    assert tally.counts == {"kept": 2, f"report: {text}": 1}
  else:
    assert reports == [text, text]


def test_blanks_of_deidentification_stay_or_go(tmp_path):
  findings = f"XXXX {LONG} XXXX-year XXXXX EXXXX."
  _write(tmp_path, 1, openi_xml(1, findings=findings, impression="No XXXX change"))
  kept = _read(tmp_path, openi_images(1)[0])
  gone = _read(tmp_path, openi_images(1)[0], keep_blanks=False)
  assert kept[0].target.text == f"{findings} No XXXX change"
  assert gone[0].target.text == f"{LONG} -year EXXXX. No change"
  # Words are counted after the blanks have gone.
  _write(tmp_path, 1, openi_xml(1, findings=LONG.replace("one", "XXXX")))
  assert [a.task for a in _read(tmp_path, openi_images(1)[0])] == [
    "report",
    "multi_label",
  ]
  tally = Tally("openi")
  _read(tmp_path, openi_images(1)[0], keep_blanks=False, tally=tally)
  assert tally.counts["report: findings too short"] == 1


# ── Headings ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
  ("headings", "present"),
  [
    (("normal",), set()),
    (("normal",) * 99, set()),  # long is not deep
    (("Cardiomegaly/mild", "Lung/hypoinflation"), set()),
    (("Opacity/lung/base/left",), {"Lung Opacity"}),
    (("Airspace Disease/lower lobe ",), {"Lung Opacity"}),
    (("Pulmonary Atelectasis/base ", "Pleural Effusion"),
     {"Atelectasis", "Pleural Effusion"}),
    (("Pneumonia", "Consolidation/lung", "Infiltrate/lung"),
     {"Pneumonia", "Consolidation", "Infiltration"}),
    (("Pulmonary Edema/severe", "Pulmonary Congestion"), {"Edema"}),
    (("Hydropneumothorax/left",), {"Pneumothorax", "Pleural Effusion"}),
    (("Pneumothorax", "Fractures, Bone/ribs"), {"Pneumothorax", "Fracture"}),
    (("NODULE / lung",), {"Nodule"}),
    (("Granuloma/opacity", "Calcified Granuloma/lung"), set()),
  ],
)  # fmt: skip
def test_headings_state_findings(tmp_path, headings, present):
  _write(tmp_path, 1, openi_xml(1, headings=headings))
  (bits,) = [
    a.target for a in _read(tmp_path, openi_images(1)[0]) if a.task == "multi_label"
  ]
  assert bits.labels == FINDINGS
  assert {n for n, bit in zip(FINDINGS, bits.values, strict=True) if bit} == present


@pytest.mark.parametrize(
  ("headings", "reason"),
  [
    ((), "none"),
    ((" ",), "none"),
    (("No Indexing",), "not indexed, or the image is poor"),
    (("Technical Quality of Image Unsatisfactory ", "Pneumonia"),
     "not indexed, or the image is poor"),
    (("Opacity/ribs/right",), "opacity or nodule not said to be the lung's"),
    (("Opacity/lung", "Nodule"), "opacity or nodule not said to be the lung's"),
    (("normal", "Pneumonia"), "normal beside a finding"),
  ],
)  # fmt: skip
def test_headings_that_do_not_tell_give_no_bits(tmp_path, headings, reason):
  _write(tmp_path, 1, openi_xml(1, headings=headings))
  tally = Tally("openi")
  said = _read(tmp_path, openi_images(1)[0], tally=tally)
  assert [a.task for a in said] == ["report"]
  assert tally.counts[f"headings: {reason}"] == 1
  assert not tally.rejected


def test_every_heading_states_a_finding_of_the_papers():
  assert {name for names in openi.HEADINGS.values() for name in names} == set(FINDINGS)


# ── Images ────────────────────────────────────────────────────────────────────────


def test_images_lie_in_their_folder_or_in_the_root(tmp_path):
  names = [*openi_images(1), *openi_images(2)]
  for number in (1, 2):
    _write(tmp_path, number, openi_xml(number))
  with pytest.raises(FileNotFoundError, match="none of the 4 images"):
    openi.read_radiographs(tmp_path)
  write_png(tmp_path / "NLMCXR_png" / f"{names[0]}.png", 0, size=8)
  write_png(tmp_path / f"{names[2]}.png", 0, size=9)
  (tmp_path / f"{names[3]}.png").write_bytes(b"no picture")
  intake = Intake()
  tally = intake.tally("openi images", tmp_path)
  found = openi.read_radiographs(tmp_path, tally=tally)
  assert [(r.image_id, r.width) for r in found.values()] == [
    (names[0], 8),
    (names[2], 9),
  ]
  assert tally.counts["image file absent"] == 1
  assert tally.rejected == {"is no PNG or JPEG image": 1}
  said = list(openi.read(tmp_path, found, tally=intake.tally("openi", tmp_path)))
  assert {a.image_id for a in said} == set(found)
  assert intake.tallies["openi"].counts["image: image file absent"] == 1


def test_an_image_of_two_reports_and_a_report_of_none(tmp_path):
  shared = ("CXR1_IM-0001-1001",)
  _write(tmp_path, 1, openi_xml(1, images=shared))
  _write(tmp_path, 2, openi_xml(2, images=(*shared, *openi_images(2))))
  _write(tmp_path, 3, openi_xml(3, images=()))
  for name in (*shared, *openi_images(2)):
    write_png(tmp_path / f"{name}.png", 0)
  images, tally = Tally("openi images"), Tally("openi")
  found = openi.read_radiographs(tmp_path, tally=images)
  assert list(found) == list(openi_images(2))
  assert images.rejected == {"contradicts another row about the same thing": 2}
  assert len(list(openi.read(tmp_path, found, tally=tally))) == 4
  assert tally.counts["report of no image"] == 1
  assert tally.counts["image: not among the radiographs"] == 2


# ── What is no report ─────────────────────────────────────────────────────────────

LAUGHS = """<?xml version="1.0"?>
<!DOCTYPE eCitation [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<eCitation><uId id="CXR7"/><AbstractText Label="FINDINGS">&b;</AbstractText></eCitation>
"""
OUTSIDE = """<!DOCTYPE eCitation [<!ENTITY a SYSTEM "file:///etc/hostname">]>
<eCitation><uId id="CXR7"/><AbstractText Label="FINDINGS">&a;</AbstractText></eCitation>
"""


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    (LAUGHS, "has a document type or entities"),
    (OUTSIDE, "has a document type or entities"),
    (b"\xef\xbb\xbf" + LAUGHS.encode(), "has a document type or entities"),
    (LAUGHS.encode("utf-16"), "is not UTF-8"),
    ("<eCitation>" + "<a>" * 300_000, "is nested beyond reason"),
    (openi_xml(7) + "<!--" + "x" * 2**20 + "-->", "has over 1048576 bytes"),
    (openi_xml(7).replace("None.", "N\xf6ne").encode("latin-1"), "is not UTF-8"),
    (openi_xml(7)[:-20], "is not XML"),
    (openi_xml(7).replace("None.", "\0"), "is not XML"),
    (openi_xml(7).replace("None.", "a < b & c"), "is not XML"),
    (openi_xml(7).replace("None.", "&a;"), "is not XML"),
    ("", "is not XML"),
    (openi_xml(7).replace("eCitation", "html"), "has another root than eCitation"),
    (openi_xml(7).replace('<uId id="CXR7"/>', ""), "has no uId of the usual form"),
    (openi_xml(7).replace('"CXR7"', '"../CXR7"'), "has no uId of the usual form"),
    (openi_xml(7, images=("../../etc/CXR7",)), "names an image by no usual id"),
    (openi_xml(7, images=("",)), "names an image by no usual id"),
  ],
)  # fmt: skip
def test_a_bad_file_costs_itself_alone(tmp_path, text, reason):
  _write(tmp_path, 1, openi_xml(1))
  _write(tmp_path, 7, text)
  _write(tmp_path, 10, openi_xml(10).replace("utf-8", "utf-16"))  # declared wrongly
  intake = Intake(tmp_path / "quarantine.jsonl", max_quarantined=1)
  tally = intake.tally("openi", tmp_path)
  start = time.monotonic()
  said = _read(tmp_path, openi_images(1)[0], openi_images(10)[0], tally=tally)
  assert time.monotonic() - start < 5
  assert [a.origin.file for a in said[::2]] == [
    "ecgen-radiology/1.xml", "ecgen-radiology/10.xml",
  ]  # fmt: skip
  assert tally.rejected == {reason: 1}
  intake.finish()
  listed = json.loads((tmp_path / "quarantine.jsonl").read_text())
  assert listed == {
    "source": "openi", "file": "ecgen-radiology/7.xml", "row": None, "reason": reason,
    "rule": openi.FILE_RULE,
  }  # fmt: skip


def test_two_files_with_one_uid_are_both_refused(tmp_path):
  _write(tmp_path, 1, openi_xml(1))
  _write(tmp_path, 2, openi_xml(1, impression="Another impression."))
  _write(tmp_path, 3, openi_xml(3))
  tally = Tally("openi")
  said = _read(tmp_path, *openi_images(1), *openi_images(3), tally=tally)
  assert {a.image_id for a in said} == set(openi_images(3))
  assert tally.rejected == {"contradicts another row about the same thing": 2}


def test_links_and_odd_names_of_an_archive_are_refused(tmp_path):
  outside = tmp_path / "outside.xml"
  outside.write_text(openi_xml(9))
  root = tmp_path / "root"
  root.mkdir()
  path = pack_openi(root, {
    "ecgen-radiology/1.xml": openi_xml(1),
    "../2.xml": openi_xml(2),
    "/3.xml": openi_xml(3),
    "a b.xml": openi_xml(4),
    "notes.txt": "no report",
  })  # fmt: skip
  content = gzip.decompress(path.read_bytes())
  packed = io.BytesIO(content)
  with tarfile.open(fileobj=packed, mode="a:") as archive:
    link = tarfile.TarInfo("ecgen-radiology/9.xml")
    link.type, link.linkname = tarfile.SYMTYPE, str(outside)
    archive.addfile(link)
    hard = tarfile.TarInfo("ecgen-radiology/8.xml")
    hard.type, hard.linkname = tarfile.LNKTYPE, "ecgen-radiology/1.xml"
    archive.addfile(hard)
  path.write_bytes(gzip.compress(packed.getvalue()))
  tally = Tally("openi")
  names = [name for number in range(1, 10) for name in openi_images(number)]
  said = _read(root, *names, tally=tally)
  assert {a.image_id for a in said} == set(openi_images(1))
  reason = "a member of the archive is a link, or named like no report"
  assert tally.rejected == {reason: 5}
  assert sorted(p.name for p in tmp_path.rglob("*")) == [
    "NLMCXR_reports.tgz", "outside.xml", "root",
  ]  # fmt: skip


def test_a_damaged_archive_is_refused(tmp_path, monkeypatch):
  with pytest.raises(FileNotFoundError, match=r"ecgen-radiology/ or NLMCXR_reports"):
    _read(tmp_path)
  path = pack_openi(tmp_path, {f"{n}.xml": openi_xml(n) for n in range(1, 30)})
  whole = path.read_bytes()
  for content in (whole[:-30], b"no archive", gzip.compress(b"no archive" * 99)):
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match="cannot be read to its end"):
      _read(tmp_path)
  path.write_bytes(gzip.compress(gzip.decompress(whole)[: 512 + 100]))  # in a member
  with pytest.raises(DamagedFile, match="cannot be read to its end"):
    _read(tmp_path)
  path.write_bytes(whole)
  monkeypatch.setattr(openi, "_MAX_ARCHIVE_BYTES", 2**14)
  with pytest.raises(DamagedFile, match="unpacks to over"):
    _read(tmp_path)


def test_an_empty_folder_is_no_download(tmp_path):
  write_lines(tmp_path / "ecgen-radiology" / "readme.txt", [])
  with pytest.raises(FileNotFoundError, match="found none"):
    _read(tmp_path)
