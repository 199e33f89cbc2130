"""The census's questions: MIMIC-Ext-MIMIC-CXR-VQA's three lists in their real size.

A pool of cases is asked by the phantom's templates, each wording a program of its own;
an image gets some of the questions of a case of its view.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from imax_jax.data.phantom import anatomy
from imax_jax.data.phantom import inquiry
from imax_jax.data.phantom.census_people import AP
from imax_jax.data.phantom.census_people import VIEWS
from imax_jax.data.phantom.census_people import People
from imax_jax.data.phantom.census_people import portions
from imax_jax.data.phantom.census_people import scaled
from imax_jax.data.phantom.chart import Facts
from imax_jax.data.phantom.chart import Pool
from imax_jax.data.phantom.chart import pool_of
from imax_jax.data.phantom.questions import TEMPLATES
from imax_jax.data.phantom.questions import Template

# split: (questions, images, patients); train and valid share patients, test none.
SPLITS: dict[str, tuple[int, int, int]] = {
  "train": (290_031, 133_687, 52_453),
  "valid": (73_567, 8_610, 3_461),
  "test": (13_793, 500, 500),
}
SHARED_PATIENTS = 698
NUM_PROGRAMS = 48
MOST = 48  # questions of an image
_CASES = (8, 300)  # of each view, fewest and most
_IMAGES_OF_CASE = 200
_FRONTAL: tuple[anatomy.View, ...] = ("AP", "PA")
_TRIES = 3000
# So that nothing applies to one in twenty of the choices and lists, as released.
_NOTHING_DROPPED = 0.38
_ARGUMENTS = ("object", "attribute", "category", "viewpos", "gender")


@dataclasses.dataclass(frozen=True)
class Program:
  """One of the 48: a template with one wording. `opposite`: it asks for the contrary."""

  name: str
  template: Template
  opposite: bool
  text: str


def _programs() -> list[Program]:
  """Every wording of every template, then the first ones again with other opening
  words, up to the release's number.
  """
  forms = [
    (template, opposite, form)
    for template in TEMPLATES
    for opposite, wordings in ((False, template.wordings), (True, template.opposites))
    for form in wordings
  ]
  forms += [
    (template, opposite, f"On this film, {form[0].lower()}{form[1:]}")
    for template, opposite, form in forms[: NUM_PROGRAMS - len(forms)]
  ]
  found = []
  for number, (template, opposite, form) in enumerate(forms, start=1):
    text = form.replace("{", "${")
    for name in _ARGUMENTS:
      if f"{name}_2}}" in text:
        text = text.replace(f"{{{name}}}", f"{{{name}_1}}")
    one = dataclasses.replace(
      template,
      weight=template.weight / (len(template.wordings) + len(template.opposites)),
      wordings=() if opposite else (form,),
      opposites=(form,) if opposite else (),
    )
    found.append(Program(f"program_{number}", one, opposite, text))
  return found


def _questions(
  facts: Facts, pool: Pool, programs: list[Program], rng: np.random.Generator
) -> list[str]:
  """`MOST` different questions of one case, each the end of a JSON object."""
  weights = np.array([program.template.weight for program in programs])
  turns = rng.choice(len(programs), _TRIES, p=weights / weights.sum())
  items: list[str] = []
  seen: set[str] = set()
  for turn in turns.tolist():
    program = programs[turn]
    asked = program.template.ask(facts, pool, rng)
    if asked is None or asked.opposite != program.opposite:
      continue
    listing = program.template.semantic_type != "verify"
    if listing and not asked.answers and rng.random() < _NOTHING_DROPPED:
      continue
    question = inquiry.wording(program.template, asked, rng)
    if question in seen:
      continue
    seen.add(question)
    item = {
      "question": question,
      "semantic_type": program.template.semantic_type,
      "content_type": program.template.content_type,
      "template": program.text,
      "template_program": program.name,
      "template_arguments": {
        name: {str(i): value for i, value in enumerate(asked.blanks.get(name, ()))}
        for name in _ARGUMENTS
      },
      "answer": list(asked.answers),
    }
    # Without the list's first two lines and its last.
    text = json.dumps([item], indent=4, ensure_ascii=False)
    items.append(text.split("\n", 2)[2].rsplit("\n", 1)[0])
    if len(items) == MOST:
      return items
  raise AssertionError(f"{len(items)} questions in {_TRIES} tries: expected {MOST}")


def draw_pool(people: People) -> dict[int, list[list[str]]]:
  """By view, the questions of each of some cases."""
  rng = people.rng(51)
  number = int(np.clip(people.frontal.size // _IMAGES_OF_CASE, *_CASES))
  facts: dict[int, list[Facts]] = {}
  for view in _FRONTAL:
    cases = [anatomy.sample_case(rng, view=view) for _ in range(number)]
    facts[VIEWS.index(view)] = [Facts(case, case.ctr) for case in cases]
  pool = pool_of([one for group in facts.values() for one in group])
  programs = _programs()
  return {
    view: [_questions(one, pool, programs, rng) for one in group]
    for view, group in facts.items()
  }


def choose_studies(people: People, rng: np.random.Generator) -> dict[str, np.ndarray]:
  """The studies of each split: images and patients as many as released, near enough.

  A study gives one image. A few patients are in train and valid; none is in test too.
  """
  studies = rng.permutation(np.flatnonzero(people.first_frontal >= 0))
  whose = people.patient[studies]
  # A patient's studies by number 0, 1, …, in the shuffled order.
  order = np.argsort(whose, kind="stable")
  starts = np.flatnonzero(np.diff(whose[order], prepend=-1))
  turn = np.empty(studies.size, int)
  turn[order] = np.arange(studies.size) - np.repeat(
    starts, np.diff(np.append(starts, studies.size))
  )
  patients = rng.permutation(whose[order][starts])
  having = np.bincount(whose, minlength=len(people.subject_ids))
  scale = people.scale
  patients = patients[np.argsort(having[patients] < 2, kind="stable")]
  numbers = {name: scaled(count, scale) for name, (_, _, count) in SPLITS.items()}
  shared, rest = np.split(patients, [scaled(SHARED_PATIENTS, scale)])
  rest = rng.permutation(rest)
  edges = np.cumsum((numbers["test"], numbers["valid"] - shared.size,
                     numbers["train"] - shared.size))  # fmt: skip
  parts = dict(zip(("test", "valid", "train"), np.split(rest, edges), strict=False))
  chosen = {}
  for name, (_, images, _) in SPLITS.items():
    fits = np.isin(whose, parts[name])
    if name == "valid":
      fits |= np.isin(whose, shared) & (turn == 0)
    elif name == "train":
      fits |= np.isin(whose, shared) & (turn > 0)
    # Each patient's first study, then the others.
    first = turn == (np.isin(whose, shared) & (name == "train"))
    ranked = np.flatnonzero(fits)[np.argsort(~first[fits], kind="stable")]
    chosen[name] = np.sort(studies[ranked[: scaled(images, scale)]])
  return chosen


def write_vqa(root: Path, people: People) -> int:
  """train, valid and test lists; returns the number of questions."""
  rng = people.rng(52)
  pool = draw_pool(people)
  folder = root / inquiry.FOLDER
  folder.mkdir(parents=True)
  written = 0
  for split, studies in choose_studies(people, rng).items():
    number = scaled(SPLITS[split][0], people.scale)
    counts = portions(number, studies.size, MOST, rng)
    with (folder / f"{split}.json").open("w", encoding="utf-8") as file:
      file.write("[\n")
      comma = ""
      for text in _items(people, pool, split, studies, counts, rng):
        file.write(f"{comma}{text}")
        comma = ",\n"
      file.write("\n]")
    written += number
  return written


def _items(
  people: People,
  pool: dict[int, list[list[str]]],
  split: str,
  studies: np.ndarray,
  counts: np.ndarray,
  rng: np.random.Generator,
) -> Iterator[str]:
  cases = rng.integers(len(pool[AP]), size=studies.size).tolist()
  starts = rng.integers(MOST, size=studies.size).tolist()
  images = people.first_frontal[studies].tolist()
  index = 0
  for study, image, case, start, count in zip(
    studies.tolist(), images, cases, starts, counts.tolist(), strict=True
  ):
    questions = pool[int(people.view[image])][case]
    head = (
      f'        "subject_id": "{people.subject_of_study[study]}",\n'
      f'        "study_id": "{people.study_ids[study]}",\n'
      f'        "image_id": "{people.image_ids[image]}",\n'
      f'        "image_path": "{people.paths[image].removeprefix("files/")}",\n'
    )
    for step in range(count):
      tail = questions[(start + step) % MOST]
      yield (
        f'    {{\n        "split": "{split}",\n        "idx": {index},\n{head}{tail}'
      )
      index += 1
