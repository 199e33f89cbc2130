"""One palette and one style for every figure, drawn as inline SVG without a display.

Colours and fonts become the page's CSS variables (`--imax`, `--ink`, …), so that the
figures follow its light and dark scheme.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from imax_jax.ledger import whole
from imax_jax.report import arms

# What matplotlib draws with -> the page's variable that takes its place.
INK, MUTED, RULE, PAPER = "#1c1d21", "#6d6f76", "#d9d6cf", "#fdfcf9"
RUN_COLOURS: dict[str, str] = {arm.name: arm.colour for arm in arms.ARMS}
_VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper"} | {
  arm.colour: arms.variable(arm.name) for arm in arms.ARMS
}
_STYLE: Any = {
  "svg.fonttype": "none",
  "font.family": "DejaVu Sans",
  "font.size": 9.0,
  "text.color": INK,
  "axes.facecolor": "none",
  "axes.edgecolor": MUTED,
  "axes.labelcolor": INK,
  "axes.linewidth": 0.7,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.titlesize": 9.5,
  "axes.titlelocation": "left",
  "axes.titlepad": 9.0,
  "axes.axisbelow": True,
  "grid.color": RULE,
  "grid.linewidth": 0.6,
  "xtick.color": MUTED,
  "ytick.color": MUTED,
  "xtick.labelcolor": INK,
  "ytick.labelcolor": INK,
  "xtick.labelsize": 8.5,
  "ytick.labelsize": 8.5,
  "xtick.major.width": 0.6,
  "ytick.major.width": 0.6,
  "xtick.major.size": 3.0,
  "ytick.major.size": 0.0,
  "legend.frameon": False,
  "legend.fontsize": 8.5,
}


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
  """A figure of the house's style, in inches; nothing global is touched for long."""
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    yield figure


def to_svg(figure: Figure, name: str, description: str) -> str:
  """The figure as one <svg> element that scales with the page."""
  buffer = io.StringIO()
  with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
  text = buffer.getvalue()
  text = text[text.index("<svg") :]
  text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
  text = re.sub(r"'?DejaVu Sans'?(, [^;\"]*)?", "var(--sans)", text)
  for colour, variable in _VARIABLES.items():
    text = text.replace(colour, f"var(--{variable})")
  # Names inside an inline SVG are the page's: keep those of two figures apart.
  text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\1{name}-", text)
  text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
  text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
  label = html.escape(description, quote=True)
  return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def to_file(figure: Figure, path: Path) -> None:
  """The figure on white, whole or not: .svg and .pdf with their fonts, .png at 200 dpi."""
  kind = path.suffix[1:]
  said = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
  looks = {
    **_STYLE,
    "svg.fonttype": "path",
    "svg.hashsalt": path.stem,
    "pdf.fonttype": 42,
  }
  figure.patch.set_alpha(1.0)
  with matplotlib.rc_context(looks), whole(path) as part:
    figure.savefig(part, format=kind, dpi=200, facecolor="white", metadata=said)
