"""Torch's pickles (`.bin`, `.pth`, `.pt`) to safetensors, in a process of their own.

A pickle is a program. This process never runs one: a child of the same interpreter does,
with torch's reader of tensors alone (`weights_only`), and hands back plain files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

import imax_jax

_CHILD = "imax_jax.weights.unpickle"
REFUSED = 2  # the child's exit status for what it has a message about


def to_safetensors(sources: Sequence[Path], folder: Path) -> dict[Path, Path]:
  """{pickle: its tensors as a safetensors file in `folder`}, in the same dtypes.

  Raises:
    ValueError: a file that holds more than tensors and plain values or is damaged;
      torch is missing or too old to be trusted with it.
  """
  made = {
    source: folder / f"{number:05}-{source.stem}.safetensors"
    for number, source in enumerate(sources)
  }
  root = str(Path(imax_jax.__file__).parent.parent)
  paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
  pairs = [str(path) for pair in made.items() for path in pair]
  done = subprocess.run(
    # -P: what lies in the folder that the user stands in is not imported.
    [sys.executable, "-P", "-m", _CHILD, *pairs],
    env=os.environ | {"PYTHONPATH": paths},
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    lines = done.stderr.strip().splitlines() or ["no message"]
    if done.returncode == REFUSED:
      raise ValueError(lines[-1])
    raise ValueError(
      f"{sources[0]}: the process that reads pickles ended with status "
      f"{done.returncode}: {lines[-1]}"
    )
  return made


def beside(metadata: Mapping[str, str]) -> list[str]:
  """What a pickle held that is no tensor, as the child wrote it down."""
  return json.loads(metadata["beside"]) if "wrapper" in metadata else []
