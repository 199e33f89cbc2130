"""Asking: which questions of a film, and MIMIC-Ext-MIMIC-CXR-VQA's three JSON lists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imax_jax.data.phantom.chart import Facts
from imax_jax.data.phantom.chart import Pool
from imax_jax.data.phantom.chart import pool_of
from imax_jax.data.phantom.questions import TEMPLATES
from imax_jax.data.phantom.questions import Asked
from imax_jax.data.phantom.questions import Template
from imax_jax.data.phantom.roster import Exposure
from imax_jax.data.phantom.roster import Visit
from imax_jax.data.phantom.tables import Shots
from imax_jax.data.phantom.tables import chosen

FOLDER = "MIMIC-Ext-MIMIC-CXR-VQA/dataset"
SPLITS = (("train", 0.80), ("valid", 0.14), ("test", 0.06))
QUESTIONS_OF_FILM = (4, 6)
_ARGUMENTS = ("object", "attribute", "category", "viewpos", "gender")
_TRIES = 60

_Drawn = tuple[int, str, Asked]  # the template's number, the question, what was asked


def questions_of(facts: Facts, pool: Pool, rng: np.random.Generator) -> list[_Drawn]:
  """Four to six different questions of one film; the first verifies a finding."""
  wanted = int(rng.integers(QUESTIONS_OF_FILM[0], QUESTIONS_OF_FILM[1] + 1))
  weights = np.array([template.weight for template in TEMPLATES])
  chances = weights / weights.sum()
  drawn: list[_Drawn] = []
  seen: set[object] = set()
  for trial in range(_TRIES):
    if len(drawn) == wanted:
      break
    number = 0 if trial == 0 else int(rng.choice(len(TEMPLATES), p=chances))
    asked = TEMPLATES[number].ask(facts, pool, rng)
    if asked is None:
      continue
    # Other wordings or another order of the same question are the same question.
    key = (number, *((k, tuple(sorted(v))) for k, v in sorted(asked.blanks.items())))
    if key not in seen:
      seen.add(key)
      drawn.append((number, wording(TEMPLATES[number], asked, rng), asked))
  return drawn


def wording(template: Template, asked: Asked, rng: np.random.Generator) -> str:
  """One of the template's wordings with its blanks filled."""
  options = template.opposites if asked.opposite else template.wordings
  blanks = {}
  for name, values in asked.blanks.items():
    for place, value in enumerate(values, start=1):
      blanks[name if place == 1 else f"{name}_{place}"] = value
  return options[int(rng.integers(len(options)))].format(**blanks)


def write_vqa(
  root: Path, visits: Sequence[Visit], shots: Shots, *, fraction: float, seed: int
) -> int:
  """train, valid and test lists, for one frontal film each of `fraction` of studies.

  Returns the number of questions.
  """
  picked = chosen(visits, fraction, seed, 51)
  films = [(v, v.frontals[0]) for v in visits if v.study_id in picked]
  facts = [Facts(e.case, shots[e.image_id].ctr) for _, e in films]
  pool = pool_of(facts)
  lists: dict[str, list[dict[str, object]]] = {split: [] for split, _ in SPLITS}
  for (visit, exposure), one in zip(films, facts, strict=True):
    # One draw a patient: the test patients are in no other list.
    split_rng = np.random.default_rng((seed, 52, int(visit.subject_id)))
    place = int(split_rng.choice(len(SPLITS), p=[chance for _, chance in SPLITS]))
    split = SPLITS[place][0]
    rng = np.random.default_rng((seed, 53, visit.number))
    for item in _items(visit, exposure, one, pool, rng):
      lists[split].append({"split": split, "idx": len(lists[split]), **item})
  (root / FOLDER).mkdir(parents=True, exist_ok=True)
  for split, items in lists.items():
    text = json.dumps(items, indent=4, ensure_ascii=False)
    (root / FOLDER / f"{split}.json").write_text(text, encoding="utf-8")
  return sum(len(items) for items in lists.values())


def _items(
  visit: Visit, exposure: Exposure, facts: Facts, pool: Pool, rng: np.random.Generator
) -> Iterator[dict[str, object]]:
  for number, question, asked in questions_of(facts, pool, rng):
    template = TEMPLATES[number]
    yield {
      "subject_id": visit.subject_id,
      "study_id": visit.study_id,
      "image_id": exposure.image_id,
      "image_path": visit.path(exposure).removeprefix("files/"),
      "question": question,
      "semantic_type": template.semantic_type,
      "content_type": template.content_type,
      "template": template.text,
      "template_program": f"program_{number + 1}",
      "template_arguments": {
        name: {str(i): value for i, value in enumerate(asked.blanks.get(name, ()))}
        for name in _ARGUMENTS
      },
      "answer": list(asked.answers),
    }
