"""Small downloads of VQA-RAD, SLAKE, VinDr-CXR, JSRT, Montgomery and Shenzhen.

Each writer lays out a folder as its release does; names, rows and pixels are invented.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

VINDR_CLASSES = (
  "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly",
  "Clavicle fracture", "Consolidation", "Edema", "Emphysema", "Enlarged PA", "ILD",
  "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst", "Mediastinal shift",
  "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax",
  "Pulmonary fibrosis", "Rib fracture", "Other lesion", "COPD", "Lung tumor",
  "Pneumonia", "Tuberculosis",
)  # fmt: skip
# Middle and half-axes as fractions; the right lung is on the image's left.
_ELLIPSES = {
  "right lung": (0.30, 0.45, 0.14, 0.32),
  "left lung": (0.70, 0.45, 0.14, 0.32),
  "heart": (0.55, 0.60, 0.13, 0.14),
  "right clavicle": (0.28, 0.10, 0.12, 0.02),
  "left clavicle": (0.72, 0.10, 0.12, 0.02),
}


def masks_of(width: int, height: int, seed: int = 0) -> dict[str, np.ndarray]:
  """Organ -> bool[height, width]; hearts differ in width by `seed`."""
  y, x = np.mgrid[:height, :width]
  found = {}
  for organ, (at_x, at_y, half_x, half_y) in _ELLIPSES.items():
    if organ == "heart":
      half_x += 0.01 * (seed % 5)
    ellipse = ((x / width - at_x) / half_x) ** 2 + ((y / height - at_y) / half_y) ** 2
    found[organ] = ellipse <= 1
  return found


def film(width: int, height: int, seed: int = 0) -> np.ndarray:
  """uint8[height, width]: dark lungs, a bright heart, some grain."""
  grey = (
    np.random.default_rng(seed).integers(110, 150, (height, width)).astype(np.uint8)
  )
  organs = masks_of(width, height, seed)
  for organ, shade in (("right lung", 40), ("left lung", 40), ("heart", 220)):
    grey[organs[organ]] = shade + seed % 10
  return grey


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(pixels)
  (image if mode is None else image.convert(mode)).save(path)
  return path


def _json(path: Path, value: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value), encoding="utf-8")


# ── Questions ─────────────────────────────────────────────────────────────────────


def rad_item(number: int, question: str, answer: Any, **more: Any) -> dict[str, Any]:
  """An item of VQA-RAD's list about the image synpic<number>.jpg."""
  return {
    "qid": 1000 + number, "phrase_type": "freeform", "qid_linked_id": "0-0",
    "image_case_url": f"https://example.invalid/case?id={number // 2}",
    "image_name": f"synpic{number}.jpg", "image_organ": "CHEST",
    "evaluation": "evaluated", "question": question, "question_rephrase": "NULL",
    "question_relation": "NULL", "question_frame": "NULL", "question_type": "PRES",
    "answer": answer, "answer_type": "CLOSED",
  } | more  # fmt: skip


def write_vqa_rad(root: Path, num_images: int = 6) -> list[dict[str, Any]]:
  """Images 0 … of the chest, two a case, and one of a head -> the items."""
  items = []
  for number in range(num_images):
    pixels = film(60, 48, number)
    save(root / "VQA_RAD Image Folder" / f"synpic{number}.jpg", pixels, "RGB")
    items += [
      rad_item(number, "Is the heart large?", "Yes" if number % 2 else "no\t"),
      rad_item(number, "Is the cardiac shadow wide?", "Yes" if number % 2 else "no",
               phrase_type="para"),
      rad_item(number, "Is this a PA or an AP film?", "PA", question_type="PLANE"),
      rad_item(number, "How many lungs are seen?", 2, answer_type="OPEN",
               question_type="COUNT, PRES"),
    ]  # fmt: skip
  items.append(rad_item(900, "Is there a bleed?", "No", image_organ="HEAD"))
  _json(root / "VQA_RAD Dataset Public.json", items)
  return items


def slake_item(number: int, question: str, answer: Any, **more: Any) -> dict[str, Any]:
  """An item of SLAKE's lists about the image xmlab<number>."""
  return {
    "img_id": number, "img_name": f"xmlab{number}/source.jpg", "question": question,
    "answer": answer, "q_lang": "en", "location": "Lung", "modality": "X-Ray",
    "answer_type": "OPEN", "base_type": "vqa", "content_type": "Organ",
    "triple": ["vhead", "_", "_"], "qid": number,
  } | more  # fmt: skip


def write_slake(root: Path, num_images: int = 6, *, of_image: bool = False) -> None:
  """Radiographs xmlab0 …, and a CT slice; `of_image`: left is the image's left."""
  splits: dict[str, list[dict[str, Any]]] = {"train": [], "validate": [], "test": []}
  for number in range(num_images):
    folder = root / "imgs" / f"xmlab{number}"
    save(folder / "source.jpg", film(64, 50, number), "RGB")
    right, left = [6, 8, 20, 32], [38, 8, 20, 32]
    lungs = (left, right) if not of_image else (right, left)
    boxes: list[dict[str, Any]] = [{"Left Lung": lungs[0]}, {"Right Lung": lungs[1]}]
    boxes += [{"Heart": [27.0, 20.0, 18.5, 16.0]}]
    boxes += [{"Nodule": [10, 12 + 8 * n, 5, 5]} for n in range(1 + number % 2)]
    _json(folder / "detection.json", boxes)
    _json(folder / "question.json", [])
    split = splits[("train", "train", "validate", "test")[number % 4]]
    split += [
      slake_item(number, "Is the lung healthy?", "No", answer_type="CLOSED",
                 content_type="Abnormality"),
      slake_item(number, "Which lung is larger, the left or the right?", "Right",
                 answer_type="CLOSED"),
      slake_item(number, "What is seen in the picture?", "Lung, Heart"),
      slake_item(number, "这是什么?", "肺", q_lang="zh"),
    ]  # fmt: skip
  splits["train"].append(slake_item(500, "What is this?", "Brain", modality="CT"))
  splits["test"].append(slake_item(501, "What is this?", "Pelvis", location="Pelvic"))
  for name, items in splits.items():
    _json(root / f"{name}.json", items)


# ── VinDr-CXR ─────────────────────────────────────────────────────────────────────


def vindr_id(number: int) -> str:
  return f"{number:032x}"


def dicom_bytes(pixels: np.ndarray, *, monochrome: int = 2, view: str = "PA") -> bytes:
  """uint16[H, W] of 12 bits -> a DICOM file, explicit little endian, uncompressed."""

  def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    value += (b"\0" if kind in (b"UI", b"OB", b"OW") else b" ") * (len(value) % 2)
    long = kind in (b"OB", b"OW")
    length = (
      struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value))
    )
    return struct.pack("<HH", group, number) + kind + length + value

  def short(group: int, number: int, value: int) -> bytes:
    return element(group, number, b"US", struct.pack("<H", value))

  meta = element(2, 1, b"OB", b"\0\1")
  meta += element(2, 2, b"UI", b"1.2.840.10008.5.1.4.1.1.1.1")
  meta += element(2, 3, b"UI", b"1.2.3.4") + element(
    2, 16, b"UI", b"1.2.840.10008.1.2.1"
  )
  head = element(2, 0, b"UL", struct.pack("<I", len(meta)))
  height, width = pixels.shape
  body = element(0x18, 0x5101, b"CS", view.encode()) + short(0x28, 2, 1)
  body += element(0x28, 4, b"CS", f"MONOCHROME{monochrome}".encode())
  body += short(0x28, 0x10, height) + short(0x28, 0x11, width)
  body += short(0x28, 0x100, 16) + short(0x28, 0x101, 12) + short(0x28, 0x102, 11)
  body += short(0x28, 0x103, 0)
  body += element(0x7FE0, 0x10, b"OW", pixels.astype("<u2").tobytes())
  return b"\0" * 128 + b"DICM" + head + meta + body


def vindr_film(root: Path, folder: str, number: int, *, dicom: bool) -> None:
  """An 80 x 64 image, as DICOM or converted."""
  path = root / folder / vindr_id(number)
  pixels = film(80, 64, number)
  if dicom:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".dicom").write_bytes(dicom_bytes(pixels.astype(np.uint16) << 4))
  else:
    save(path.with_suffix(".png"), pixels)


def _vindr_boxes(number: int, reader: int) -> list[tuple[str, str]]:
  """What a reader draws: two of three see an effusion, each alone a nodule."""
  if number % 3 == 2:
    return [("No finding", ",,,")]
  boxes = [("Pleural effusion", f"{10 + reader}.5,40,{30 + reader},60")] * (reader < 2)
  return [*boxes, ("Nodule/Mass", f"{5 + 25 * reader},8,{15 + 25 * reader},18")]


def write_vindr(root: Path, num_images: int = 6, *, dicom: bool = False) -> None:
  """PhysioNet's layout: `num_images` of train, half as many of test."""
  notes = root / "annotations"
  notes.mkdir(parents=True, exist_ok=True)
  names = ",".join(VINDR_CLASSES)
  box_names = "class_name,x_min,y_min,x_max,y_max"
  labels = [f"image_id,rad_id,{names},Other diseases,No finding"]
  boxes = [f"image_id,rad_id,{box_names}"]
  for number in range(num_images):
    vindr_film(root, "train", number, dicom=dicom)
    for reader in range(3):
      drawn = _vindr_boxes(number, reader)
      present = {name for name, _ in drawn}
      bits = [str(int(name in present)) for name in VINDR_CLASSES]
      head = f"{vindr_id(number)},R{reader + 1}"
      labels.append(f"{head},{','.join(bits)},0,{int('No finding' in present)}")
      boxes += [f"{head},{name},{sides}" for name, sides in drawn]
  (notes / "image_labels_train.csv").write_text("\n".join(labels) + "\n")
  (notes / "annotations_train.csv").write_text("\n".join(boxes) + "\n")
  labels = [f"image_id,{names},Other disease,No finding"]
  boxes = [f"image_id,{box_names}"]
  for number in range(1000, 1000 + num_images // 2):
    vindr_film(root, "test", number, dicom=dicom)
    bits = [str(int(name in ("Edema", "Lung Opacity"))) for name in VINDR_CLASSES]
    labels.append(f"{vindr_id(number)},{','.join(bits)},0,0")
    boxes.append(f"{vindr_id(number)},Lung Opacity,8,10.25,40,50")
  (notes / "image_labels_test.csv").write_text("\n".join(labels) + "\n")
  (notes / "annotations_test.csv").write_text("\n".join(boxes) + "\n")


def write_kaggle(root: Path, num_images: int = 6) -> None:
  """Kaggle's layout of the same: one table, `class_id`, quoted nowhere."""
  rows = ["image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"]
  for number in range(num_images):
    vindr_film(root, "train", number, dicom=False)
    for reader in range(3):
      rows += [
        f"{vindr_id(number)},{name},{14 if 'No' in name[:3] else 10},R{reader + 1},{sides}"
        for name, sides in _vindr_boxes(number, reader)
      ]
  (root / "train.csv").write_text("\n".join(rows) + "\n")


# ── Masks ─────────────────────────────────────────────────────────────────────────


def write_jsrt(root: Path, num_images: int = 2) -> list[str]:
  """Raw images of 8 MB each, and SCR's masks in two folds -> the images' names."""
  names = [f"JPC{'LN'[n % 2]}N{n + 1:03d}" for n in range(num_images)]
  for number, name in enumerate(names):
    path = root / "All247images" / f"{name}.IMG"
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = film(2048, 2048, number).astype(">u2")
    path.write_bytes(((255 - grey) << 4).astype(">u2").tobytes())
    fold = root / f"scratch/fold{2 - (number + 1) % 2}/masks"
    for organ, mask in masks_of(1024, 1024, number).items():
      save(fold / organ / f"{name}.gif", mask.astype(np.uint8) * 255)
  return names


def write_montgomery(
  root: Path, num_images: int = 6, *, hearts: bool = True
) -> list[str]:
  """Images of 120 x 100, masks of the lungs, and of the heart in a release of its own."""
  names = [f"MCUCXR_{n + 1:04d}_{n % 2}" for n in range(num_images)]
  for number, name in enumerate(names):
    folder = root / "MontgomerySet"
    save(folder / "CXR_png" / f"{name}.png", film(120, 100, number))
    organs = masks_of(120, 100, number)
    for part, organ in (("leftMask", "left lung"), ("rightMask", "right lung")):
      save(folder / "ManualMask" / part / f"{name}.png", organs[organ])
    if hearts:
      place = root / "heart-lung-segmentations-data/1.0.0/montgomery_masks/heart"
      save(place / f"{name}.png", organs["heart"].astype(np.uint8) * 255)
  return names


def write_shenzhen(root: Path, num_images: int = 6) -> list[str]:
  """Colour images of 110 x 100, and one mask of both lungs for all but the last."""
  names = [f"CHNCXR_{n + 1:04d}_{n % 2}" for n in range(num_images)]
  for number, name in enumerate(names):
    folder = root / "ChinaSet_AllFiles"
    save(folder / "CXR_png" / f"{name}.png", film(110, 100, number), "RGB")
    reading = folder / "ClinicalReadings" / f"{name}.txt"
    reading.parent.mkdir(parents=True, exist_ok=True)
    reading.write_text("male 45yrs\ninvented\n")
    if number < num_images - 1:
      organs = masks_of(110, 100, number)
      lungs = organs["left lung"] | organs["right lung"]
      save(root / "mask" / f"{name}_mask.png", lungs.astype(np.uint8) * 255)
  return names
