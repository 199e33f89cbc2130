"""Radiology reports of the phantom hospital, in MIMIC-CXR's text layout.

Every sentence says something true of the film, in one of a few fixed wordings.
"""

from __future__ import annotations

import textwrap
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imax_jax.data.phantom.anatomy import Finding
from imax_jax.data.phantom.roster import Visit
from imax_jax.data.phantom.tables import Shots
from imax_jax.data.phantom.tables import study_ctr

# {place}: "left lower zone"; {side}: "left".
_PRESENT: dict[str, tuple[str, ...]] = {
  "Pleural Effusion": (
    "There is a {side} pleural effusion.",
    "Blunting of the {side} costophrenic angle is due to a pleural effusion.",
    "A {side} pleural effusion is present.",
  ),
  "Atelectasis": (
    "There is plate-like atelectasis in the {place}.",
    "A linear opacity in the {place} is consistent with atelectasis.",
    "Volume loss in the {place} reflects atelectasis.",
  ),
  "Pneumonia": (
    "Patchy opacity in the {place} is concerning for pneumonia.",
    "There is pneumonia in the {place}.",
    "An ill-defined opacity in the {place} suggests pneumonia.",
  ),
  "Consolidation": (
    "There is dense consolidation in the {place}.",
    "Homogeneous consolidation is seen in the {place}.",
    "The {place} is consolidated.",
  ),
  "Pneumothorax": (
    "There is a {side} apical pneumothorax.",
    "A thin pleural line marks a {side} pneumothorax.",
    "A {side} pneumothorax is seen at the apex.",
  ),
  "Fracture": (
    "There is a fracture of a rib in the {place}.",
    "A displaced rib fracture is seen in the {place}.",
    "A rib is fractured in the {place}.",
  ),
  "Infiltration": (
    "There is a reticular infiltrate in the {place}.",
    "Infiltration of the {place} is noted.",
    "Streaky infiltration is seen in the {place}.",
  ),
  "Nodule": (
    "A round nodule projects over the {place}.",
    "There is a nodule in the {place}.",
    "A well-defined nodular opacity lies in the {place}.",
  ),
}
_EDEMA: tuple[tuple[str, ...], ...] = (
  (),
  ("There is mild pulmonary vascular congestion.",
   "The pulmonary vessels are congested."),
  ("There is interstitial pulmonary edema.",
   "Interstitial markings are increased, in keeping with interstitial edema."),
  ("There is alveolar pulmonary edema.",
   "Bilateral perihilar airspace opacities reflect alveolar edema."),
)  # fmt: skip
_EDEMA_IMPRESSION = (
  "", "Vascular congestion", "Interstitial pulmonary edema", "Alveolar pulmonary edema"
)  # fmt: skip
# From this CTR up; two wordings each.
_HEART: tuple[tuple[float, tuple[str, str]], ...] = (
  (0.62, ("The heart is severely enlarged.", "There is severe cardiomegaly.")),
  (0.56, ("The heart is moderately enlarged.", "There is moderate cardiomegaly.")),
  (0.50, ("The heart is mildly enlarged.", "There is mild cardiomegaly.")),
  (0.0, ("The heart is normal in size.", "The cardiac silhouette is not enlarged.")),
)
_ABSENT: tuple[tuple[tuple[str, ...], tuple[str, str]], ...] = (
  (("Pneumothorax", "Pleural Effusion"),
   ("There is no pleural effusion or pneumothorax.",
    "No pneumothorax or pleural effusion is seen.")),
  (("Consolidation", "Pneumonia"),
   ("There is no focal consolidation.", "No consolidation to suggest pneumonia.")),
  (("Pneumothorax",), ("There is no pneumothorax.", "No pneumothorax is seen.")),
  (("Pleural Effusion",),
   ("There is no pleural effusion.", "No pleural effusion is seen.")),
  (("Fracture",), ("The bones are intact.", "No acute fracture is seen.")),
  (("Nodule",), ("No nodule is identified.", "There is no suspicious nodule.")),
)  # fmt: skip
_DEVICE = {
  "pacemaker": "A pacemaker projects over the chest wall.",
  "central line": "A central venous line is in place.",
  "ecg leads": "Electrocardiogram leads overlie the chest.",
}
_NORMAL = (
  "No acute cardiopulmonary process.",
  "No evidence of acute cardiopulmonary disease.",
  "Normal chest radiograph.",
)
_REASONS = ("cough", "shortness of breath", "chest pain", "fever", "___")
# Shares of the reports that do not have both sections.
_LACKING = (("impression only", 0.5), ("findings only", 0.3), ("neither", 0.2))
_ADDENDUM_RATE = 0.05


def findings_text(visit: Visit, ctr: float, rng: np.random.Generator) -> str:
  """Heart size, every finding with its side and zone, then what is absent."""
  study = visit.study
  present = {finding.name for finding in study.findings}
  sentences = [_pick(rng, next(words for edge, words in _HEART if ctr >= edge))]
  for name, side, place in _merged(study.findings):
    text = _pick(rng, _PRESENT[name]).format(side=side, place=place)
    if side == "bilateral":
      text = text.replace("a bilateral pleural effusion", "bilateral pleural effusion")
      text = text.replace("A bilateral", "Bilateral")
      text = text.replace(
        "the bilateral costophrenic angle", "both costophrenic angles"
      )
    sentences.append(text)
  if study.edema_grade:
    sentences.append(_pick(rng, _EDEMA[study.edema_grade]))
  if not present and not study.edema_grade:
    sentences.append(_pick(rng, ("The lungs are clear.", "Both lungs are clear.")))
  sentences += [_DEVICE[device] for device in study.devices]
  denied: set[str] = set()
  wanted = 1 if len(sentences) > 4 else 2 if len(sentences) > 2 else 3
  for names, words in _ABSENT:
    if wanted and not present & set(names) and not denied & set(names):
      sentences.append(_pick(rng, words))
      denied |= set(names)
      wanted -= 1
  return " ".join(sentences)


def impression_text(visit: Visit, rng: np.random.Generator) -> str:
  """The findings again in short, or that there are none."""
  study = visit.study
  parts = []
  for name, side, place in _merged(study.findings):
    if name in ("Pleural Effusion", "Pneumothorax"):
      parts.append(f"{side} {name.lower()}")
    elif name == "Fracture":
      parts.append(f"rib fracture in the {place}")
    else:
      parts.append(f"{place} {name.lower()}")
  if study.edema_grade:
    parts.append(_EDEMA_IMPRESSION[study.edema_grade])
  if not parts:
    return _pick(rng, _NORMAL)
  return " ".join(part[0].upper() + part[1:] + "." for part in parts)


def _merged(findings: Sequence[Finding]) -> list[tuple[str, str, str]]:
  """(name, side, place); effusions of both sides are one; edema is left out."""
  merged: list[tuple[str, str, str]] = []
  effusions = [f.side for f in findings if f.name == "Pleural Effusion"]
  for finding in findings:
    side = finding.side
    if finding.name == "Edema":
      continue
    if finding.name == "Pleural Effusion" and len(effusions) > 1:
      side = "bilateral"
    one = (finding.name, side, f"{side} {finding.zone} zone")
    if one not in merged:
      merged.append(one)
  return merged


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
  return options[int(rng.integers(len(options)))]


def report_text(visit: Visit, ctr: float, form: str, rng: np.random.Generator) -> str:
  """One report; `form` is "both", "impression only", "findings only" or "neither".

  The layout is MIMIC's: a centred first line, one space before every line, blank
  lines of one space, capitals for headers, "___" for what was taken out.
  """
  findings = findings_text(visit, ctr, rng)
  impression = impression_text(visit, rng)
  views = {exposure.case.view for exposure in visit.exposures}
  upright = "PA AND LAT" if "LATERAL" in views else "PA"
  technique = "PORTABLE AP" if "AP" in views else upright
  person = "woman" if visit.study.patient.sex == "f" else "man"
  reason = _pick(rng, _REASONS)
  parts = [
    _section("EXAMINATION", f"CHEST ({technique})", inline=True),
    _section("INDICATION", f"___ year old {person} with {reason}", inline=True),
    _section("COMPARISON", "___", inline=True),
  ]
  inline = bool(rng.random() < 0.5)
  if form in ("both", "findings only"):
    title = "CHEST, PA AND LATERAL" if rng.random() < 0.1 else "FINDINGS"
    parts.append(_section(title, findings, inline=inline))
  if form in ("both", "impression only"):
    title = "CONCLUSION" if rng.random() < 0.1 else "IMPRESSION"
    parts.append(_section(title, impression, inline=inline))
  lines = [
    " " * 33 + "FINAL REPORT",
    *(line for part in parts for line in (*part, " ")),
  ]
  if rng.random() < _ADDENDUM_RATE:
    note = textwrap.wrap("The report was discussed with Dr. ___ by telephone.", 77)
    lines = [
      " " * 33 + "FINAL REPORT",
      *_section("ADDENDUM", " ".join(note), inline=False),
      " ",
      " " + "_" * 78,
      *lines,
    ]
  return "\n".join(lines[:-1]) + "\n"


def _section(title: str, text: str, *, inline: bool) -> list[str]:
  if inline:
    body = textwrap.wrap(f"{title}:  {text}", 77, break_on_hyphens=False)
    return [f" {line}" for line in body]
  return [
    f" {title}: ",
    " ",
    *(f" {line}" for line in textwrap.wrap(text, 77, break_on_hyphens=False)),
  ]


def write_reports(
  path: Path, visits: Sequence[Visit], shots: Shots, *, fraction: float, seed: int
) -> int:
  """mimic-cxr-reports.zip: a text for every study, `fraction` with both sections."""
  path.parent.mkdir(parents=True, exist_ok=True)
  names = [name for name, _ in _LACKING]
  chances = [chance for _, chance in _LACKING]
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for visit in visits:
      rng = np.random.default_rng((seed, 41, visit.number))
      form = "both"
      if rng.random() >= fraction:
        form = names[int(rng.choice(len(names), p=chances))]
      text = report_text(visit, study_ctr(visit, shots), form, rng)
      # A fixed time, so that the same hospital is the same bytes.
      member = zipfile.ZipInfo(f"{visit.folder}.txt", (1980, 1, 1, 0, 0, 0))
      member.compress_type = zipfile.ZIP_DEFLATED
      archive.writestr(member, text)
  return len(visits)
