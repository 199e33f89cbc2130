"""One image, one task, one answer."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from imax_jax import choices
from imax_jax import deliver
from imax_jax.data import images
from imax_jax.data import prompts
from imax_jax.data import spelling
from imax_jax.evaluate import predictions as predictions_lib
from imax_jax.evaluate.grid import Sampling
from imax_jax.ledger import whole
from imax_jax.report import examples
from imax_jax.schema import FINDINGS
from imax_jax.schema import ORGANS
from imax_jax.schema import TASKS
from imax_jax.schema import WHOLE
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Entry
from imax_jax.schema import Grade
from imax_jax.schema import Origin
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report
from imax_jax.schema import Target
from imax_jax.study import Study
from imax_jax.study import UsageError


def run(study: Study, request: Mapping[str, str | None]) -> None:
  """Prints the answer; for REC also writes WORKDIR/predict/IMAGE-rec.png with the box.

  Args:
    request: "image", "task", "checkpoint" and, where the task needs one, "question":
      the question (vqa), the organ (rec), the box "<x><y><x><y>" in thousandths of the
      picture, whatever the model is told boxes in (reg),
      "ctr" or "cpar" (calculation). With "temperature" the answer is drawn, from the
      "top_p" likeliest tokens and by "sample_seed"; without, it is greedy.

  Raises:
    UsageError: something is missing or unknown.
    FileNotFoundError: no such image or checkpoint.
  """
  for key in ("image", "task", "checkpoint"):
    if not request[key]:
      raise UsageError(f"predict needs --{key}; --help shows an example")
  path, task, sampling = (
    Path(str(request["image"])), str(request["task"]), sampling_of(request)
  )  # fmt: skip
  entry = make_request(path.stem, task, request["question"])
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such image; give a JPEG or PNG with --image")
  d = study.config.data
  choices.needs_thousandths(d, "predict")
  # What the model was trained on: the stored pictures.
  data = images.to_stored(
    path.read_bytes(), d.image_px or None, name=str(path),
    geometry=choices.geometry_of(d), draft=d.draft,
  )  # fmt: skip
  eye = study.eye
  entry = spelling.respell(entry, eye.frame(data, name=str(path)))
  pixels = eye.pixels(data, name=str(path))[None]
  trained = deliver.weights_from(study, Path(str(request["checkpoint"])))
  [(text, log_prob, _)] = study.answer(
    trained, pixels, [(0, entry.prompt)], "", sampling, [task]
  )
  [prediction] = predictions_lib.predict_values([entry], [text])
  shown: dict[str, Any] = {
    "task": task,
    "prompt": entry.prompt,
    "text": text,
    "reason": prediction.reason,
    "log_prob": round(log_prob, 4),
  }
  if task == "rec" and isinstance(prediction.value, Region):
    out = study.workdir / "predict" / f"{path.stem}-rec.png"
    mark = examples.Mark(prediction.value.box, "predicted", entry.subtask)
    if prediction.value.frame != WHOLE:  # the text is not of the picture
      shown["box"] = spelling.box_text(
        dataclasses.replace(prediction.value, frame=WHOLE)
      )
    grey = images.encode_png(images.decode(data, name=str(path)))
    with whole(out) as part:
      part.write_bytes(examples.draw_boxes(grey, [mark]))
    shown["picture"] = str(out)
  sys.stdout.write(json.dumps(shown, ensure_ascii=False, indent=1) + "\n")


def sampling_of(request: Mapping[str, str | None]) -> Sampling | None:
  """What "temperature", "top_p" and "sample_seed" ask for; None: greedy.

  Raises:
    UsageError: a value out of range, or the others without a temperature.
  """
  temperature, *others = (
    request.get(key) for key in ("temperature", "top_p", "sample_seed")
  )
  if not temperature:
    if any(others):
      raise UsageError("--top_p and --sample_seed need --temperature, e.g. 0.7")
    return None
  top_p, seed = others
  try:
    sampling = Sampling(float(temperature), float(top_p or 1), int(seed or 0))
    sampling.check()
  except ValueError as error:
    raise UsageError(f"--temperature, --top_p, --sample_seed: {error}") from None
  return sampling


def make_request(name: str, task: str, question: str | None) -> Entry:
  """An entry without an answer.

  >>> make_request("a1", "rec", "heart").prompt
  '[rec] Based on the input image, could you tell me the location of the heart.'

  Raises:
    UsageError: an unknown task, or a question that the task needs or can not read.
  """
  if task not in TASKS:
    raise UsageError(f"--task {task!r}: expected one of {', '.join(TASKS)}")
  needs = {
    "calculation": "ctr or cpar",
    "rec": "an organ, e.g. heart",
    "reg": "a box in thousandths, e.g. '<300><400><600><800>'",
    "vqa": "a question",
  }
  if task in needs and not question:
    raise UsageError(f"--task {task} needs --question: {needs[task]}")
  if task == "rec" and question not in ORGANS:
    logging.warning("%r is none of %s: the model was not taught it", question, ORGANS)
  subtask = question if task in ("calculation", "rec") and question else ""
  target = _target(task, question or "")
  entry_id = f"{name}/{task}/{subtask}/0"
  prompt = prompts.prompt_of(task, subtask, target, entry_id=entry_id)
  return Entry(
    entry_id,
    name,
    task,
    subtask,
    prompt,
    "",
    target,
    Origin("predict", "predict", 0, "predict"),
  )


def _target(task: str, question: str) -> Target:
  """What is asked; the values stand for nothing."""
  match task:
    case "calculation":
      return Ratio(0.0)
    case "report":
      return Report("")
    case "multi_class":
      return Grade("none")
    case "multi_label":
      return Bits((0,) * len(FINDINGS))
    case "rec":
      return Region(question, WHOLE)
    case "reg":
      numbers = np.array([int(side) for side in re.findall(r"\d+", question)])
      if len(numbers) != 4 or numbers.max() > prompts.BOX_SCALE:
        raise UsageError(
          f"--question {question!r}: expected a box of four numbers from 0 to "
          f"{prompts.BOX_SCALE}, e.g. '<300><400><600><800>'"
        )
      x_min, y_min, x_max, y_max = (numbers / prompts.BOX_SCALE).tolist()
      return Region("", (x_min, y_min, x_max, y_max))
    case _:
      return Answer(question, ())
