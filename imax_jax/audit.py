"""The audit of pseudo-IMAX: what was asked, made, kept, and how far it is true.

Written behind the labels of all seeds as WORKDIR/audit.json and WORKDIR/report/audit.html.
What is true is known of a phantom's films alone; elsewhere the page says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np

from imax_jax import runs
from imax_jax.data.phantom import hospital
from imax_jax.data.phantom.truth import Truth
from imax_jax.evaluate.scores import boxes
from imax_jax.evaluate.scores import findings
from imax_jax.evaluate.scores import labels
from imax_jax.ledger import plain
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
  """Both files, of the seeds whose labels are made and as the config has them."""
  found = collect(study)
  if not found["about"]["seeds"]:
    return
  write_json(study.workdir / "audit.json", found)
  page.write_audit(found, study.workdir / "report" / "audit.html")


def collect(study: Study) -> dict[str, Any]:
  """The content of audit.json; the seeds are put together.

  Raises:
    ValueError: labels of other settings, of other data, or damaged.
  """
  rows = stages.rows(plain(study.config.pseudo))
  done = [
    seed
    for seed in study.config.seeds
    if all(study.ledger.is_done(stages.kept_station(row, seed)) for row in rows)
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
      study.ledger.digest(station, runs.kept_inputs(study, row, seed))
      kept[row] = np.load(study.workdir / station / "kept.npy")
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
  known = Truth(study.workdir / "hospital" / "files" / hospital.TRUTH)

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
