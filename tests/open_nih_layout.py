"""Small ChestX-ray14 and OpenI downloads in their original layouts. All is invented."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

NIH_HEADER = (
  "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
  "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
NIH_LABELS = (
  "No Finding", "Effusion", "Infiltration|Nodule", "Cardiomegaly",
  "Atelectasis|Effusion", "Pneumonia|Infiltration", "Edema", "Consolidation|Mass",
  "Pneumothorax", "Hernia", "Pleural_Thickening|Fibrosis", "Emphysema",
)  # fmt: skip
# As the box file spells them; those of NIH_LABELS that have a box get one.
_BOXED = {"Infiltration": "Infiltrate"} | {
  name: name
  for name in ("Effusion", "Nodule", "Cardiomegaly", "Atelectasis", "Pneumonia",
               "Mass", "Pneumothorax")
}  # fmt: skip
OPENI_HEADINGS = (
  ("normal",), ("Opacity/lung/base/left", "Pleural Effusion/left/small"),
  ("Pulmonary Atelectasis/base/bilateral ",), ("Cardiomegaly/mild",),
  ("Pneumonia/lower lobe/right", "Infiltrate/lung/lower lobe/right"),
  ("Fractures, Bone/ribs/left",), ("Pulmonary Edema", "Consolidation/lung/hilum"),
  ("Nodule/lung/upper lobe/left",), ("Pneumothorax/right/apex",),
)  # fmt: skip


def write_png(path: Path, seed: int, size: int = 32) -> Path:
  """A grey picture that only `seed` decides."""
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
  Image.fromarray(pixels).save(path)
  return path


def write_nih(root: Path, num_images: int, *, pixels: int = 32) -> list[str]:
  """`num_images` of three-image patients, over two folders -> their image ids.

  The real images have 1024 pixels a side; smaller copies serve, boxes are in 1024.
  """
  names, rows, boxes = [], [], []
  for number in range(num_images):
    patient, follow_up = number // 3 + 1, number % 3
    name = f"{patient:08d}_{follow_up:03d}"
    labels = NIH_LABELS[number % len(NIH_LABELS)]
    view = "PA" if number % 4 else "AP"
    rows.append(
      f"{name}.png,{labels},{follow_up},{patient},{40 + patient % 40},"
      f"{'MF'[patient % 2]},{view},2500,2048,0.168,0.168"
    )
    for place, label in enumerate(labels.split("|")):
      if label in _BOXED:
        x, y = 100.5 + 10 * (number % 20), 200.25 + 300 * place
        boxes.append(f"{name}.png,{_BOXED[label]},{x},{y},250.75,180.125")
    folder = "images_001" if number < num_images // 2 else "images_002"
    write_png(root / folder / "images" / f"{name}.png", number, pixels)
    names.append(name)
  write_lines(root / "Data_Entry_2017_v2020.csv", [NIH_HEADER, *rows])
  write_lines(root / "BBox_List_2017.csv", [BOX_HEADER, *boxes])
  return names


def write_lines(path: Path, lines: list[str]) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
  return path


def openi_xml(
  number: int,
  *,
  findings: str = "The lungs are clear. Heart size is normal. No acute bony changes.",
  impression: str = "No acute disease.",
  headings: tuple[str, ...] = ("normal",),
  images: tuple[str, ...] | None = None,
) -> str:
  """A report as OpenI nests it; by default of one frontal and one lateral image."""
  if images is None:
    images = openi_images(number)
  majors = "".join(f"<major>{heading}</major>" for heading in headings)
  parents = "".join(
    f'<parentImage id="{name}"><panel type="single"><url>/x/{name}.jpg</url></panel>'
    "</parentImage>"
    for name in images
  )
  return f"""<?xml version="1.0" encoding="utf-8"?>
<eCitation>
   <meta type="rr"/>
   <uId id="CXR{number}"/>
   <MedlineCitation>
      <Article>
         <Abstract>
            <AbstractText Label="COMPARISON">None.</AbstractText>
            <AbstractText Label="INDICATION">XXXX-year-old with XXXX</AbstractText>
            <AbstractText Label="FINDINGS">{findings}</AbstractText>
            <AbstractText Label="IMPRESSION">{impression}</AbstractText>
         </Abstract>
      </Article>
   </MedlineCitation>
   <MeSH>{majors}<automatic>anything</automatic></MeSH>
   {parents}
</eCitation>
"""


def openi_images(number: int) -> tuple[str, str]:
  return f"CXR{number}_IM-{number:04d}-1001", f"CXR{number}_IM-{number:04d}-2001"


def write_openi(root: Path, num_reports: int, *, pixels: int = 32) -> list[str]:
  """`num_reports` reports of two images each, unpacked -> their image ids."""
  names: list[str] = []
  for number in range(1, num_reports + 1):
    text = openi_xml(number, headings=OPENI_HEADINGS[number % len(OPENI_HEADINGS)])
    write_lines(root / "ecgen-radiology" / f"{number}.xml", [text])
    for place, name in enumerate(openi_images(number)):
      write_png(root / "NLMCXR_png" / f"{name}.png", 2 * number + place, pixels)
      names.append(name)
  return names


def pack_openi(root: Path, members: dict[str, str]) -> Path:
  """NLMCXR_reports.tgz of `members`, {name in the archive: text}."""
  path = root / "NLMCXR_reports.tgz"
  with tarfile.open(path, "w:gz") as archive:
    for name, text in members.items():
      content = text.encode()
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return path
