"""The model card of what is handed out, README.md: what it is, who may have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SYNTHETIC = (
  "Trained on radiographs that were drawn by a program, of patients that do not exist: "
  "no agreement binds it."
)
_CREDENTIALED = (
  "**Trained on credentialed PhysioNet data (MIMIC-CXR and what is derived from it).** "
  "Weights can give back what they were trained on. Under PhysioNet's policy and its "
  "data use agreement, share this folder only with people who have signed the same "
  "agreement, never by a public link, and send neither it nor its answers about that "
  "data to a third party's service."
)
_OTHER = (
  "**Trained on radiographs whose terms of use hold for these weights too**: weights can "
  "give back what they were trained on. Share this folder only with people who may have "
  "the data themselves."
)
# By the config's `data.source`; of one that is not here the strictest that can be said.
_DATA_USE = {"phantom": _SYNTHETIC, "physionet": _CREDENTIALED}

_FRAMES = {"picture": "whole picture", "seen": "square that the model sees"}

_TEXT = """# {name}

A LoRA adapter of a language model and a connector to an image encoder, for chest
radiographs, trained with imax_jax. Encoder and base decoder are not in this folder.

**Not a medical device, and not for clinical use.** For research only: nobody has tested
it on patients, and it says wrong things fluently.

## Data use

{data_use}

## Trained on

Run {run}: {steps} steps, seed {seed}, source "{source}"{counted}.

## Base weights needed

Foundation {digest}. {files}

## How to load it

With imax_jax, which checks that everything fits (bundle.json says what must):

    python -m imax_jax.main --config CONFIG --workdir DIR predict \\
      --image film.jpg --task report --checkpoint THIS_FOLDER

CONFIG is the one that it was trained with. Prompts are of style {style}, images of
{image_px} px ({geometry}), boxes in order {order} on a scale of {scale}, of the
{frame}.

The decoder's adapter alone, which then sees no image, with PEFT:

    model = AutoModelForCausalLM.from_pretrained(BASE_DECODER)
    model = PeftModel.from_pretrained(model, THIS_FOLDER)
"""


_PUBLISHED = """# {name}

A model of chest radiographs, trained with imax_jax and written in the files of layout
"{layout}", which its publisher's own code loads. {about}

**Not a medical device, and not for clinical use.** For research only: nobody has tested
it on patients, and it says wrong things fluently.

## Data use

{data_use}

## Trained on

Run {run}: {steps} steps, seed {seed}, source "{source}"{counted}.

## Base weights

Foundation {digest}. {files}

## How it was trained to be asked

Prompts are of style {style}, images of {image_px} px ({geometry}), boxes in order {order}
on a scale of {scale}, of the {frame}. Another prompt or another geometry is another task
to it: a loader that crops what was stretched shows it other pictures.
"""


def text(name: str, facts: Mapping[str, Any]) -> str:
  """The card of a bundle of that name, from the facts in its bundle.json."""
  return _TEXT.format(name=name, **_words(facts))


def published(name: str, layout: str, about: str, facts: Mapping[str, Any]) -> str:
  """The card of a published folder.

  Args:
    about: how its loader is to be told, and what can not be done with it.
    facts: as for a bundle.
  """
  words = _words(facts)
  return _PUBLISHED.format(name=name, layout=layout, about=about, **words)


def _words(facts: Mapping[str, Any]) -> dict[str, Any]:
  """What both cards say of the training, the base and the way of asking."""
  training, foundation = facts["training"], facts["foundation"]
  eye = facts["image"].get("eye", {})
  files = [
    f"\n- {source['part']}: {file['name']}, SHA-256 {file['sha256']}"
    for source in foundation.get("sources", ())
    for file in source["files"]
  ]
  made_from = (
    f"Made from:\n{''.join(files)}\n\nThe licences of their publishers hold for them and "
    "for what is made with them: get the\nweights from them, and read their licences first."
    if files
    else "It was never published by itself: it is imax_jax's own, of the config below."
  )
  counted = ""
  if "images" in training:
    counted = (
      f", {training['split']}: {training['images']:,} images with "
      f"{training['entries']:,} entries"
    )
  return {
    "data_use": _DATA_USE.get(training["source"], _OTHER),
    "counted": counted,
    "digest": foundation["digest"],
    "files": made_from,
    **{key: training[key] for key in ("run", "steps", "seed", "source")},
    **{key: facts["prompt"][key] for key in ("style",)},
    "image_px": facts["image"]["image_px"],
    "geometry": eye.get("geometry", facts["image"]["geometry"]),
    "frame": _FRAMES[eye.get("boxes", "picture")],
    **{key: facts["boxes"][key] for key in ("order", "scale")},
  }
