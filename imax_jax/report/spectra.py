"""The page's Fisher section: Figure 5, its changes with tests, tasks and layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from imax_jax.report import arms
from imax_jax.report import markup
from imax_jax.report import style
from imax_jax.report import tables
from imax_jax.report import tasks
from imax_jax.report.tables import Results

PHASES: tuple[str, ...] = ("initial", "early", "mid", "late")
_ARMS = ("dmax", "imax")
# Section 4.2.3 of the paper: IMAX against DMAX at the four phases, in percent.
_PAPER = {"entropy": (-3.38, -6.38, -5.80, -4.05), "dominant": (2.24, 4.62, 2.70, 2.19)}
_INDICATORS = {
  "entropy": "spectral entropy",
  "dominant": "dominant eigenvalue ratio, %",
}
_PAPER_S = ("sampled", "data")  # the paper's kind
_KINDS = {
  ("sampled", "data"): "one scalar a matrix",
  ("exact", "data"): "all trainable parameters",
  ("sampled", "model"): "one scalar a matrix, the model’s answers",
  ("exact", "model"): "all trainable parameters, the model’s answers",
}


def section(results: Results) -> str:
  """The whole section; "not run" without a spectrum."""
  caveats, figure = markup.caveats(results.get("fisher_caveats")), fisher(results)
  if not figure:
    return caveats + markup.figure("", "")
  rows = _rows(results)
  caption = "After the paper’s Figure 5: violin, quartiles and median of the groups, seeds pooled."
  parts = [caveats, _intro(rows), markup.figure(figure, caption), _changes(results)]
  if svg := tasks.figure(results, PHASES[-1]):
    parts.append(markup.figure(svg, tasks.caption(results, PHASES[-1])))
  if svg := layers(results):
    shown = tasks.seeds_text(
      {arm: len(of) for arm, of in _traces(results, PHASES[-1]).items()}
    )
    parts.append(
      markup.figure(
        svg,
        "What each part adds to the trace, the sum of all eigenvalues, at the first and "
        f"the last phase: mean shares over seeds ({shown}).",
      )
    )
  return "".join(parts)


# ── Words and tables ──────────────────────────────────────────────────────────────


def _intro(rows: Sequence[Mapping[str, Any]]) -> str:
  text = (
    "<p>How evenly the Fisher information spreads over directions (spectral entropy of "
    "the non-zero eigenvalues), and what share the largest eigenvalue holds. The paper "
    "samples one scalar of every trainable matrix; the exact version takes all trainable "
    "parameters, through the Gram matrix of the examples’ gradients, which has the same "
    "non-zero eigenvalues.</p>"
  )
  said = []
  if words := {str(row["normalised"]) for row in rows if row.get("normalised")}:
    how = {
      "sum": "summed over its tokens, as Eq. 2 has it",
      "mean": "averaged over its tokens",
    }
    said.append(
      f"An answer’s log-likelihood is {' or '.join(how.get(w, w) for w in sorted(words))}."
    )
  if any(row.get("answers") == "model" for row in rows):
    said.append(
      "The model’s answers are drawn from it token after token, one an entry: their "
      "spectra are those of the true Fisher matrix, the data’s those of the empirical one."
    )
  limits = [float(row["entropy_limit"]) for row in rows if row.get("entropy_limit")]
  if limits:
    said.append(
      f"No entropy can exceed {max(limits):.3f}, the logarithm of a group’s entries."
    )
  first = [r for r in rows if r.get("phase") == PHASES[0] and r.get("vanishing")]
  if gone := next((row for row in first if row["kind"] == "sampled"), None):
    said.append(
      "At the initial phase LoRA’s B is zero, and with it every gradient of its A: "
      f"{gone['vanishing']} of {gone['parameters']} chosen scalars have no gradient there."
    )
  return f"{text}<p>{' '.join(said)}</p>" if said else text


def _changes(results: Results) -> str:
  """The relative changes beside the paper's, with intervals and test."""
  found = {
    (c["indicator"], c["kind"], c["answers"], c["phase"]): c
    for c in results.get("fisher_changes") or []
    if isinstance(c, Mapping)
  }
  titles = {"entropy": "spectral entropy", "dominant": "dominant ratio"}
  lines = []
  for indicator, title in titles.items():
    for (kind, answers), words in _KINDS.items():
      for phase, paper in zip(PHASES, _PAPER[indicator], strict=True):
        if one := found.get((indicator, kind, answers, phase)):
          quoted = f"{tables.signed(paper)} %" if (kind, answers) == _PAPER_S else "–"
          lines.append([f"{title}, {words}, {phase}", *_change(one), quoted])
  if not lines:
    return ""
  note = (
    "<p>Over groups: the 95 % bootstrap interval. p: the two-sided permutation test that "
    "exchanges groups between the data sets. Both are about groups of these very models, "
    "not about trainings: another training of the same data may differ by more. p is not "
    f"adjusted for the {len(lines)} tests of this table. Over trainings: Student’s 95 % "
    "interval over the seeds’ own changes, where there are three or more.</p>"
  )
  head = (
    "IMAX against DMAX", "change", "over groups", "p, groups", "over trainings",
    "seeds that fall", "the paper’s",
  )  # fmt: skip
  return markup.facts(head, lines) + note


def _change(found: Mapping[str, Any]) -> list[str]:
  seeds, over = found.get("seeds", ()), tables.limits(found, "student")
  groups = tables.limits(found, "interval")
  falling = sum(change < 0 for change in seeds)
  return [
    f"{tables.signed(found['change'])} %",
    tables.between(groups) if groups else "–",
    tables.chance(found["p"]),
    tables.between(over) if over else "–",
    f"{falling} of {len(seeds)}" if len(seeds) > 1 else "–",
  ]


# ── Figures ───────────────────────────────────────────────────────────────────────


def fisher(results: Results) -> str:
  """Figure 5, extended: both indicators of each estimate at each phase."""
  rows = _rows(results)
  kinds = [kind for kind in _KINDS if any(_kind(row) == kind for row in rows)]
  if not kinds:
    return ""
  with style.new_figure(9.8, 2.75 * len(kinds) + 0.5) as figure:
    engine: Any = figure.get_layout_engine()
    engine.set(hspace=0.09, wspace=0.05)
    grid = figure.subplots(len(kinds), 2, squeeze=False)
    for kind, line in zip(kinds, grid, strict=True):
      chosen = [row for row in rows if _kind(row) == kind]
      for axes, (key, title) in zip(line, _INDICATORS.items(), strict=True):
        _violins(axes, chosen, key)
        axes.set_title(f"{title} ({_KINDS[kind]})")
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    return style.to_svg(
      figure, "fisher", "Spectral entropy and dominant eigenvalue ratio of the Fisher "
      "information by training phase for DMAX and IMAX; changes in the table below",
    )  # fmt: skip


def samples(
  rows: Sequence[Mapping[str, Any]], arm: str, phase: str, key: str
) -> np.ndarray:
  """All finite values of an arm at a phase, its seeds pooled."""
  values = [
    value
    for row in rows
    if _arm(row) == arm and row.get("phase") == phase
    for value in row.get(key) or []
    if value is not None
  ]
  array = np.array(values, float)
  return array[np.isfinite(array)]


def layers(results: Results) -> str:
  """Each layer's share of the trace, LoRA's A and B apart, first and last phase."""
  found = {phase: _traces(results, phase) for phase in (PHASES[0], PHASES[-1])}
  found = {phase: of for phase, of in found.items() if of}
  if not found:
    return ""
  with style.new_figure(9.8, 2.9) as figure:
    grid = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axes, (phase, of) in zip(grid, found.items(), strict=True):
      for arm, seeds in of.items():
        _stack(axes, _mean(seeds), arm)
      axes.set_title(f"share of the trace, %, {phase}")
      axes.grid(axis="y")
      axes.spines["left"].set_visible(False)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    return style.to_svg(
      figure, "fisher-layers", "Share of the trace of the Fisher information by layer for "
      "DMAX and IMAX at the first and last phase",
    )  # fmt: skip


def _rows(results: Results) -> list[Mapping[str, Any]]:
  return [row for row in results.get("fisher") or [] if isinstance(row, Mapping)]


def _kind(row: Mapping[str, Any]) -> tuple[str, str]:
  return str(row.get("kind")), str(row.get("answers", "data"))


def _arm(row: Mapping[str, Any]) -> str:
  return re.sub(r"-s\d+$", "", str(row.get("run")))


def _traces(results: Results, phase: str) -> dict[str, list[Mapping[str, Any]]]:
  """{arm: each seed's shares of the trace}, exact, of the data's answers."""
  found: dict[str, list[Mapping[str, Any]]] = {arm: [] for arm in _ARMS}
  for row in _rows(results):
    named = _kind(row) == ("exact", "data") and row.get("phase") == phase
    if named and row.get("trace") and _arm(row) in _ARMS:
      found[_arm(row)].append(row["trace"])
  return {arm: of for arm, of in found.items() if of}


def _mean(seeds: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
  return {
    path: np.mean([of[path] for of in seeds], axis=0).tolist() for path in seeds[0]
  }


def _violins(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str) -> None:
  for arm, shift in zip(_ARMS, (-0.2, 0.2), strict=True):
    colour = style.RUN_COLOURS[arm]
    for place, phase in enumerate(PHASES):
      values = samples(rows, arm, phase, key)
      if not len(values):
        continue
      at = place + shift
      if len(values) > 2 and np.ptp(values) > 0:
        parts: Any = axes.violinplot([values], [at], widths=0.36, showextrema=False)
        for body in parts["bodies"]:
          body.set(facecolor=colour, alpha=0.25, edgecolor="none")
      line = {"color": colour, "linewidth": 1.0}
      axes.boxplot(
        [values], positions=[at], widths=0.11, showfliers=False, patch_artist=True,
        boxprops={"facecolor": style.PAPER, "edgecolor": colour, "linewidth": 1.0},
        medianprops={"color": colour, "linewidth": 1.8}, whiskerprops=line,
        capprops={"linewidth": 0},
      )  # fmt: skip
    axes.fill([], [], color=colour, alpha=0.5, label=arms.ARM[arm].title)
  axes.set_xticks(range(len(PHASES)), PHASES)
  axes.set_xlim(-0.55, len(PHASES) - 0.45)
  axes.grid(axis="y")
  axes.spines["left"].set_visible(False)


def _stack(axes: Axes, traces: Mapping[str, Sequence[float]], arm: str) -> None:
  """Bars: the connector, every layer's B (and routes) and on it its A, all the rest."""
  depth = max([len(x) for path, x in traces.items() if "/layers/" in path], default=0)
  low, high = np.zeros(depth + 2), np.zeros(depth + 2)
  for path, shares in traces.items():
    if path.startswith("connector/"):
      low[0] += sum(shares)
    elif "/layers/" in path:
      part = high if path.endswith("lora_a") else low
      part[1 : 1 + len(shares)] += shares
    else:
      low[-1] += sum(shares)
  names = ["connector", *map(str, range(1, depth + 1)), "rest"]
  if not low[-1]:
    low, high, names = low[:-1], high[:-1], names[:-1]
  at = np.arange(len(names)) + (-0.2 if arm == "dmax" else 0.2)
  colour, title = style.RUN_COLOURS[arm], arms.ARM[arm].title
  routed = any(path.endswith("lora_route") for path in traces)
  weights = f"{title}: weights, LoRA’s B" + (" and routes" if routed else "")
  axes.bar(at, low, 0.36, color=colour, alpha=0.85, label=weights)
  axes.bar(at, high, 0.36, low, color=colour, alpha=0.4, label=f"{title}: LoRA’s A")
  every = 1 + depth // 12
  shown = [n if n[0] in "cr" or int(n) % every == 0 else "" for n in names]
  axes.set_xticks(range(len(names)), shown)
