"""Draws docs/phantom.png, a contact sheet of the phantom hospital: python docs/sheet.py."""

from pathlib import Path

import numpy as np
from PIL import Image

from imax_jax.data.phantom.anatomy import make_case
from imax_jax.data.phantom.anatomy import sample_patient
from imax_jax.data.phantom.anatomy import sample_study
from imax_jax.data.phantom.render import render

_ROWS, _COLUMNS, _PX = 3, 8, 192
_VIEWS = ("PA", "AP", "LATERAL")  # a row each


def main() -> None:
  films = []
  for row in range(_ROWS):
    for column in range(_COLUMNS):
      rng = np.random.default_rng((20, row, column))
      case = make_case(sample_study(rng, sample_patient(rng)), _VIEWS[row], column)
      films.append(Image.fromarray(render(case, 256).pixels).resize((_PX, _PX)))
  sheet = Image.new("L", (_COLUMNS * _PX, _ROWS * _PX))
  for number, film in enumerate(films):
    sheet.paste(film, (number % _COLUMNS * _PX, number // _COLUMNS * _PX))
  sheet.save(Path(__file__).with_name("phantom.png"), optimize=True)


if __name__ == "__main__":
  main()
