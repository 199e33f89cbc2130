"""The audit of pseudo-IMAX: what was asked, made, kept, and how far it is true.

The station `audit` holds audit.json and audit.html; the page is copied to report/.
What is true is known of a phantom's films alone; elsewhere the page says so.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imax_jax import runs
from imax_jax.data.phantom import hospital
from imax_jax.data.phantom.truth import Truth
from imax_jax.evaluate.scores import boxes
from imax_jax.evaluate.scores import findings
from imax_jax.evaluate.scores import labels
from imax_jax.ledger import plain
from imax_jax.ledger import whole
from imax_jax.ledger import write_json
from imax_jax.pseudo import stages
from imax_jax.pseudo import stream
from imax_jax.pseudo import tally
from imax_jax.pseudo.labels import LabelFile
from imax_jax.report import audit as page
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Entry
from imax_jax.schema import Grade
from imax_jax.schema import ImageRecord
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report
from imax_jax.schema import Target
from imax_jax.study import Study


def write(study: Study) -> None:
  """Both files, of the seeds whose labels are made; those that are up to date stay.

  All processes must take part.

  Raises:
    ValueError: labels of other settings, of other data, or damaged.
  """
  kept = _kept(study)
  if not kept:
    return

  def make(folder: Path) -> None:
    found = collect(study)
    write_json(folder / "audit.json", found)
    page.write_audit(found, folder / "audit.html")

  inputs = {"kept": kept, "title": study.config.title}
  folder = study.ledger.station("audit", inputs, make)
  if study.is_chief:
    with whole(study.workdir / "report" / "audit.html") as part:
      shutil.copyfile(folder / "audit.html", part)


def _kept(study: Study) -> dict[str, str]:
  """{station: digest} of all labels kept; of a seed whose rows are not all there none."""
  rows = stages.rows(plain(study.config.pseudo))
  found: dict[str, str] = {}
  for seed in study.config.seeds:
    stations = {stages.kept_station(row, seed): row for row in rows}
    if all(map(study.ledger.is_done, stations)):
      for station, row in stations.items():
        inputs = runs.kept_inputs(study, row, seed)
        found[station] = study.ledger.digest(station, inputs)
  return found


def collect(study: Study) -> dict[str, Any]:
  """The content of audit.json; the seeds are put together.

  Raises:
    ValueError: as `write`.
  """
  rows, stations = stages.rows(plain(study.config.pseudo)), _kept(study)
  done = [
    seed
    for seed in study.config.seeds
    if stages.kept_station("pseudo", seed) in stations
  ]
  described = json.loads((study.workdir / "data" / "statistics.json").read_text("utf8"))
  records = study.records("dmax_train")
  training = tally.Training(_entries(records))
  audit = tally.Tally(tuple(rows), training, _truth(study), score)
  for seed in done:
    folder = study.workdir / stages.labels_station(seed)
    kept = {}
    for row in rows:
      station = stages.kept_station(row, seed)
      kept[row] = np.load(study.workdir / station / stages.KEPT)
      rejected = json.loads((study.workdir / station / "counts.json").read_text("utf8"))
      audit.add_rejected(row, rejected["rejected"])
    audit.add_counts(stream.counts_of(folder))
    audit.add_labels(LabelFile(folder / stream.LABELS), records, kept)
  return {
    "about": {
      "title": study.config.title,
      "source": study.config.data.source,
      "seeds": done,
      "rows": rows,
    },
    **audit.result(described["splits"]),
  }


def _entries(records: Sequence[ImageRecord]) -> Iterator[Entry]:
  return (entry for i in range(len(records)) for entry in records[i].entries)


# ── Against the truth ───────────────────────────────────────────────────────────────


def _truth(study: Study) -> tally.FindTruth | None:
  """What is right of a phantom's film; of a report, the findings that it should name."""
  if study.config.data.source != "phantom":
    return None
  known = Truth(study.hospital.workdir / "hospital" / "files" / hospital.TRUTH)

  def find(entry: Entry) -> Target | None:
    if isinstance(entry.target, Report):
      return known.bits(entry.image_id)
    return known.target(entry)

  return find


def score(said: Entry, truth: Target) -> float:
  """From 0 to 1; what counts as right of each task stands in `report.audit.RIGHT`."""
  match said.target, truth:
    case Ratio(value), Ratio(true):
      return float(abs(value - true) <= page.RATIO_OFF)
    case Report(text), Bits(true):
      # Where nothing is found and nothing named, nothing is wrong.
      named = findings.bits(text)
      return labels.f1([true], [named]).micro if any(true) or any(named) else 1.0
    case Bits(values), Bits(true):
      return float(np.mean(np.equal(values, true)))
    case Region(box=box), Region(box=true) if said.task == "rec":
      return float(boxes.iou(true, box) > page.LEAST_IOU)
    case Region(name), Region(true):
      return float(name == true)
    case Grade(name), Grade(true):
      return float(name == true)
    case Answer(answers=answers), Answer(answers=true):
      return float(set(answers) == set(true))
  raise AssertionError(f"{said.task}: {type(truth).__name__} is no truth of it")
