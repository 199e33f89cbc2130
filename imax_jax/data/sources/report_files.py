"""Report texts from one JSON file: XrayGPT's captions or R2Gen's annotation.

    {"annotations": [{"image_id": DICOM_ID, "caption": …}]}            filter_cap.json
    {"train": [{"id": DICOM_ID, "report": …}], "val": […], "test": […]}   annotation.json

XrayGPT's are rewritten by a language model from findings and impression; R2Gen's are
findings only. Only the keys shown are read; the others of R2Gen's file are not verified.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imax_jax.data.sources.intake import DamagedFile
from imax_jax.data.sources.intake import Distinct
from imax_jax.data.sources.intake import Tally
from imax_jax.data.sources.json_files import json_whole
from imax_jax.data.sources.mimic_ids import image_id_of
from imax_jax.data.sources.mimic_ids import is_dicom_id
from imax_jax.data.sources.reading import is_text
from imax_jax.data.sources.reading import one_line
from imax_jax.schema import Annotation
from imax_jax.schema import Radiograph
from imax_jax.schema import Report

CAPTION_RULE = "mimic_cxr/caption"
ANNOTATION_RULE = "mimic_cxr/annotation"
RULES: dict[str, str] = {
  CAPTION_RULE: "XrayGPT's caption of the image: a language model's summary of findings "
  "and impression.",
  ANNOTATION_RULE: "R2Gen's report of the image: findings only; splits pooled.",
}
_SPLITS = ("train", "val", "test")


def read_file(
  path: Path, radiographs: Mapping[str, Radiograph], *, tally: Tally
) -> Iterator[Annotation]:
  """Yields a report an image.

  Raises:
    FileNotFoundError: no such file. DamagedFile: neither of the two forms.
  """
  if not path.is_file():
    raise FileNotFoundError(
      f"{path}: no such file; expected XrayGPT's filter_cap.json or R2Gen's "
      "annotation.json"
    )
  content = json_whole(tally.opened(path))
  items, keys, rule = _form(path, content)
  tally.met("report file", RULES[rule])
  texts: Distinct[str, str] = Distinct(tally)
  for row, item in enumerate(items):
    tally.rows += 1
    if not isinstance(item, dict) or any(
      not isinstance(item.get(key), str) for key in keys
    ):
      tally.reject(tally.name(path), row, f"lacks {' or '.join(keys)}", rule)
      continue
    name, text = image_id_of(item[keys[0]]), one_line(item[keys[1]])
    if not is_dicom_id(name):
      tally.reject(tally.name(path), row, "image id of the wrong form", rule)
    elif not text or not is_text(text):
      tally.reject(tally.name(path), row, "empty text, or half a character in it", rule)
    elif name not in radiographs:
      tally.absent(name)
    else:
      texts.add(name, text, path, row)
  for name, text, file, row in texts.items():
    tally.keep()
    yield Annotation(name, "report", "", Report(text), tally.origin(file, row, rule))
  tally.log()


def _form(path: Path, content: Any) -> tuple[list[Any], tuple[str, str], str]:
  """The items, the keys of image and text, and the rule."""
  if isinstance(content, dict):
    if isinstance(content.get("annotations"), list):
      return content["annotations"], ("image_id", "caption"), CAPTION_RULE
    if all(isinstance(content.get(split), list) for split in _SPLITS):
      items = [item for split in _SPLITS for item in content[split]]
      return items, ("id", "report"), ANNOTATION_RULE
  raise DamagedFile(
    path, 'expected {"annotations": […]} or {"train": […], "val": […], "test": […]}'
  )
