"""The report: one HTML page that needs nothing beside itself.

No network, no script, no file beside it: style, figures (SVG) and radiographs (base64)
stand in the page. It shows what `results` holds and says "not run" of the rest.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imax_jax import tree as tree_lib
from imax_jax.ledger import whole
from imax_jax.report import arms
from imax_jax.report import figures
from imax_jax.report import films
from imax_jax.report import markup
from imax_jax.report import radar as radar_lib
from imax_jax.report import scorers
from imax_jax.report import spectra
from imax_jax.report import table1
from imax_jax.report import table2
from imax_jax.report import tables
from imax_jax.report.examples import Example
from imax_jax.report.tables import Results

_PLAINLY = {
  "phantom": (
    "<p><strong>These are phantom numbers.</strong> Every radiograph, report and question "
    "was drawn by a program, and the models are toys that train in minutes. The page shows "
    "that the study's whole protocol runs, and what it finds here. It says nothing about "
    "patients, and it can neither confirm nor refute the paper’s result.</p>"
  ),
  "open": (
    "<p><strong>These are small numbers.</strong> The radiographs are real and openly "
    "licensed, but few; the models are toys that train in minutes, from an encoder that "
    "was trained on synthetic films. The page shows that the study's protocol runs on "
    "real images. It says nothing about clinical use, and it can neither confirm nor "
    "refute the paper’s result.</p>"
  ),
  "physionet": (
    "<p><strong>These numbers are of real patients’ radiographs</strong>, read under the "
    "data use agreements of their sources. They can be set beside the paper’s only as far "
    "as the configuration below is the paper’s. The page shows radiographs and reports: "
    "keep it where the agreements allow.</p>"
  ),
}


def write_report(
  results: Results, examples: Sequence[Example], path: str | Path
) -> None:
  """Writes the page of `results` (the content of results.json) to `path`, whole or not.

  `results["about"]`, if there, is {"title": …, "data": "phantom", "open" or "physionet",
  "examples": whose answers the examples show, as in "IMAX, seed 0"}. Examples appear in
  the order given, by task.
  """
  with whole(path) as part:
    part.write_text(_page(results, examples), encoding="utf-8")


def _page(results: Results, examples: Sequence[Example]) -> str:
  about = tables.section(results, "about")
  title = markup.text(about.get("title") or "IMAX against DMAX")
  sections = (
    ("effect", "The effect found", effect(results)),
    ("table", "Table 2, as measured", table2.table2(results)),
    ("radar", "IMAX relative to DMAX", radar(results)),
    ("data", "The data sets", _data(results)),
    ("training", "Training", _training(results)),
    ("fisher", "Fisher spectra", spectra.section(results)),
    ("scorers", "Two scorers", scorers.scorers(results)),
    ("examples", "Radiographs, questions and answers", films.films(examples, about)),
    ("method", "What ran", _method(results)),
  )
  lede = (
    "Does a model learn seven tasks better when each training image carries many "
    "annotations (IMAX) than when the same number of annotations is spread over many "
    "images (DMAX)? The question, the tasks and the metrics are those of arXiv 2504.09967."
  )
  return document(title, lede, plainly(about), sections, "results.json")


def document(
  title: str,
  lede: str,
  notice: str,
  sections: Sequence[tuple[str, str, str]],
  source: str,
  *,
  kicker: str = "study report",
  holds: str = "it may contain radiographs and their texts, so share it only as their "
  "licence allows",
) -> str:
  """A whole page: title and notice, then the (id, heading, HTML) of each section.

  `source` is what it was made from, `holds` what that means for who may see it.
  """
  css = (
    importlib.resources.files("imax_jax.report").joinpath("page.css").read_text("utf-8")
  )
  links = " ".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
  body = "".join(
    f'<section id="{name}"><h2>{heading}</h2>{content}</section>'
    for name, heading, content in sections
  )
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{title}</title>\n<style>{arms.css()}{css}</style></head>\n<body>"
    f'<header><p class="kicker">imax_jax · {kicker}</p><h1>{title}</h1>'
    f'<p class="lede">{lede}</p></header>'
    f'<div class="plainly">{notice}</div>'
    f'<nav aria-label="Contents">{links}</nav>\n<main>{body}</main>\n'
    f"<footer>Made by imax_jax from {source}. The page holds everything it shows and "
    f"loads nothing; {holds}.</footer></body></html>\n"
  )


def plainly(about: Mapping[str, Any]) -> str:
  return _PLAINLY.get(
    str(about.get("data")),
    "<p><strong>Mind the scale.</strong> results.json does not say which radiographs "
    "these numbers come from; do not set them beside the paper’s without knowing.</p>",
  )


# ── Effect and radar ──────────────────────────────────────────────────────────


def effect(results: Results) -> str:
  """Every average gain in words, as Table 1 and as a figure."""
  pairs = tables.measured_pairs(results)
  caveats = markup.caveats(results.get("caveats"))
  if not pairs:
    return markup.ABSENT + caveats
  lines = [verdict_line(results, pair) for pair in pairs]
  intro = (
    "<p>Δ is the average gain of Eq. 1: the mean of the metrics’ relative changes, with "
    "errors counted as gains when they fall. Each seed trains anew and is compared with "
    "the same seed of the other run, on the same test patients. A metric whose base is "
    "nearly zero can carry the mean; the median metric can not be carried.</p>"
  )
  intro += caveats
  caption = (
    "Dots are seeds, the upright bar their mean. The pale bar is the 95 % interval over "
    "seeds and patients, the thin line that over seeds alone. Grey: how far two seeds of "
    "the base itself are apart. Open diamonds are the paper’s gains. "
    "An arrow: what ends beyond the axis, and where."
  )
  drawn = figures.gains({"": results})
  figure = markup.figure(drawn, caption) if drawn else ""
  return (
    f'{intro}<ul class="verdicts">{"".join(lines)}</ul>{figure}'
    f"<h3>Table 1, as measured</h3>{table1.table1({'': results})}"
    f"{table1.tests(results)}{_excluded(results)}"
  )


def verdict_line(results: Results, pair: arms.Pair) -> str:
  """A comparison's gain and what it shows, as an item of a list."""
  gain = tables.section(results, "gains", pair.name)
  said = f"{tables.gain_text(gain)}; {tables.metrics_text(gain)}".rstrip("; ")
  more = tables.verdict(
    gain, tables.number(tables.section(results, "noise"), pair.base)
  )
  return (
    f'<li style="--swatch:var(--{arms.variable(pair.new)})">'
    f"<strong>{markup.text(pair.title)}: {markup.text(said)}.</strong> "
    f"{markup.text(more)}</li>"
  )


def _excluded(results: Results) -> str:
  """Metrics that are in no Δ, the comparisons that lack the same ones together."""
  titles = {column.name: column.label for column in tables.COLUMNS}
  lacking: dict[str, list[str]] = {}
  for pair in tables.measured_pairs(results):
    reasons = tables.section(results, "gains", pair.name, "excluded")
    listed = "; ".join(f"{titles.get(m, m)} ({why})" for m, why in reasons.items())
    if listed:
      lacking.setdefault(listed, []).append(pair.title)
  return "".join(
    f'<p class="small">Left out of {markup.text(", of ".join(names))}, in some seed at '
    f"least: {markup.text(listed)}.</p>"
    for listed, names in lacking.items()
  )


def radar(results: Results) -> str:
  """Figure 3 with its caption."""
  caption = (
    "After the paper’s Figure 3: further out is better, on error metrics too (1 + the "
    "metric’s term of Eq. 1). Bars along the axes: 95 % intervals. Beside each axis: DMAX → "
    "IMAX, means over seeds; what lies beyond 2× is drawn at 2×. Dashed: the same ratio from "
    "the paper’s Table 2."
  )
  return markup.figure(radar_lib.radar(results), caption, narrow=True)


# ── Data, training, Fisher ────────────────────────────────────────────────────────


def _data(results: Results) -> str:
  statistics = tables.section(results, "statistics")
  rows = []
  for name, title in (
    ("imax_train", "IMAX, training"), ("imax_test", "IMAX, test"), ("dmax_train", "DMAX, training")
  ):  # fmt: skip
    numbers = tables.section(statistics, name)
    if numbers:
      means = (
        tables.number(numbers, f"mean_{kind}_per_image")
        for kind in ("tasks", "entries")
      )
      cells = [f"{numbers['images']:,}", f"{numbers['entries']:,}"]
      cells += ["–" if mean is None else f"{mean:.2f}" for mean in means]
      rows.append([title, *cells])
  head = ("", "images", "entries", "tasks an image", "entries an image")
  caption = (
    "After the paper’s Figure 2. There, IMAX has 4.10 tasks and 7.46 training entries an "
    "image, DMAX 1.25 and 2.09; DMAX matches IMAX’s training entries task by task."
  )
  figure = markup.figure(figures.composition(results), caption)
  if not rows:
    return markup.ABSENT
  return markup.facts(head, rows) + _boxes_seen(results) + figure


def _boxes_seen(results: Results) -> str:
  """Which boxes the model's square shows; nothing of one that shows the whole picture."""
  said = tables.section(results, "boxes_seen")
  if not said:
    return ""
  kinds = ("whole", "cut", "unseen")
  rows = [
    [split, name, f"{sum(of.values()):,}", *(f"{of[kind]:,}" for kind in kinds)]
    for split, counts in tables.section(said, "splits").items()
    for name, of in counts.items()
  ]
  least, seen = f"{100 * said['least']:.0f} %", said["boxes"] == "seen"
  told = (
    "Boxes are told in fractions of that square; those not seen are not trained on."
    if seen
    else "Boxes are told in fractions of the whole picture, as if all of it were seen."
  )
  return (
    f"<h3>Boxes that the model sees</h3>"
    f'<p class="small">Pictures become a square of {said["image_px"]} px by '
    f"{markup.text(said['geometry'])}. Not seen: less than {least} of a box's area is on "
    f"it. {told} In the test split all are asked and scored, against the whole box in the "
    "picture.</p>" + markup.facts(("", "", "boxes", "whole", "cut", "not seen"), rows)
  )


def _training(results: Results) -> str:
  caption = (
    "Loss of the answers’ tokens, smoothed over 1/40 of the run. Thin: seeds; thick: "
    "their mean. The arms train on different entries, so a lower curve is not a better "
    "model: the table is."
  )
  return markup.figure(figures.curves(results), caption)


# ── What ran ──────────────────────────────────────────────────────────────────────


def _method(results: Results) -> str:
  timings = tables.section(results, "timings")
  seconds = {
    name: s for name in timings if (s := tables.number(timings, name)) is not None
  }
  rows = [[name, _duration(value)] for name, value in seconds.items()]
  if len(rows) > 1:
    rows.append(["together", _duration(sum(seconds.values()))])
  versions = tables.section(results, "versions")
  times = markup.facts(("station", "time"), rows)
  programs = markup.facts(
    ("program", "version"), [[k, str(v)] for k, v in versions.items()]
  )
  notes = "".join(
    f"<li>{markup.text(note)}</li>" for note in results.get("notes") or []
  )
  config = tables.section(results, "config")
  listed = "\n".join(
    f"{key} = {value!r}" for key, value in tree_lib.flatten(config).items()
  )
  return (
    f'<div class="columns"><div><h3>Time</h3>{times}</div>'
    f"<div><h3>Versions</h3>{programs}</div>"
    f"<div><h3>Unreadable answers</h3>{scorers.unparsed(results)}"
    f"<h3>Generated reports</h3>{scorers.reports(results)}</div></div>"
    + (f'<h3>Notes</h3><ul class="small">{notes}</ul>' if notes else "")
    + "<details><summary>Configuration, seeds included</summary>"
    f"<pre>{markup.text(listed) or 'not recorded'}</pre></details>"
  )


def _duration(seconds: float) -> str:
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  return f"{minutes} min {rest:02d} s"
