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
from imax_jax.report import figures
from imax_jax.report import films
from imax_jax.report import markup
from imax_jax.report import spectra
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
_SWATCHES = {"pseudo_vs_dmax_long": "pseudo"}


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
  css = (
    importlib.resources.files("imax_jax.report").joinpath("page.css").read_text("utf-8")
  )
  sections = (
    ("effect", "The effect found", _effect(results)),
    ("table", "Table 2, as measured", table2.table2(results)),
    ("radar", "IMAX relative to DMAX", _radar(results)),
    ("data", "The data sets", _data(results)),
    ("training", "Training", _training(results)),
    ("fisher", "Fisher spectra", spectra.section(results)),
    ("examples", "Radiographs, questions and answers", films.films(examples, about)),
    ("method", "What ran", _method(results)),
  )
  links = " ".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
  body = "".join(
    f'<section id="{name}"><h2>{heading}</h2>{content}</section>'
    for name, heading, content in sections
  )
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{title}</title>\n<style>{css}</style></head>\n<body>"
    f'<header><p class="kicker">imax_jax · study report</p><h1>{title}</h1>'
    '<p class="lede">Does a model learn seven tasks better when each training image '
    "carries many annotations (IMAX) than when the same number of annotations is spread "
    "over many images (DMAX)? The question, the tasks and the metrics are those of "
    "arXiv 2504.09967.</p></header>"
    f'<div class="plainly">{_plainly(about)}</div>'
    f'<nav aria-label="Contents">{links}</nav>\n<main>{body}</main>\n'
    "<footer>Made by imax_jax from results.json. The page holds everything it shows and "
    "loads nothing; it contains radiographs and their texts, so share it only as their "
    "licence allows.</footer></body></html>\n"
  )


def _plainly(about: Mapping[str, Any]) -> str:
  return _PLAINLY.get(
    str(about.get("data")),
    "<p><strong>Mind the scale.</strong> results.json does not say which radiographs "
    "these numbers come from; do not set them beside the paper’s without knowing.</p>",
  )


# ── Effect and radar ──────────────────────────────────────────────────────────


def _effect(results: Results) -> str:
  lines = []
  for name, title in tables.GAIN_TITLES.items():
    gain = tables.section(results, "gains", name)
    swatch = _SWATCHES.get(name, name).replace("_", "-")
    if tables.number(gain, "mean") is None:
      said, more = "not run.", ""
    else:
      said = f"{tables.gain_text(gain)}; {tables.metrics_text(gain)}."
      more = tables.verdict(gain)
    lines.append(
      f'<li style="--swatch:var(--{swatch})"><strong>{markup.text(title)}: '
      f"{markup.text(said)}</strong> {markup.text(more)}</li>"
    )
  intro = (
    "<p>Δ is the average gain of Eq. 1: the mean of the metrics’ relative changes, with "
    "errors counted as gains when they fall. Each seed trains anew and is "
    "compared with the same seed of the other arm; ± is the standard deviation over "
    f"seeds. Differences of ±{tables.NOISE_PERCENT:.0f} % are taken as noise at this "
    "scale: on the phantom hospital two seeds of one and the same arm differ by as much. "
    "A metric whose base is nearly zero can carry the mean; the median metric can not be "
    "carried.</p>"
  )
  caveats = "".join(
    f"<li>{markup.text(caveat)}</li>" for caveat in results.get("caveats") or []
  )
  if caveats:
    intro += f'<ul class="caveats">{caveats}</ul>'
  caption = (
    "Dots are seeds, the upright bar their mean, the pale bar one standard deviation "
    "either way. The grey band is ±5 %. Open diamonds are the paper’s gains."
  )
  drawn = figures.gains(results)
  figure = markup.figure(drawn, caption) if drawn else ""
  return (
    f'{intro}<ul class="verdicts">{"".join(lines)}</ul>{figure}{_excluded(results)}'
  )


def _excluded(results: Results) -> str:
  titles = {column.name: column.label for column in tables.COLUMNS}
  said = []
  for name, title in tables.GAIN_TITLES.items():
    reasons = tables.section(results, "gains", name, "excluded")
    listed = "; ".join(f"{titles.get(m, m)} ({why})" for m, why in reasons.items())
    if listed:
      said.append(f"Left out of {title}, in some seed at least: {listed}.")
  return "".join(f'<p class="small">{markup.text(text)}</p>' for text in said)


def _radar(results: Results) -> str:
  caption = (
    "After the paper’s Figure 3: further out is better, on error metrics too (1 + the "
    "metric’s term of Eq. 1). Beside each axis: DMAX → IMAX, means over seeds; what "
    "lies beyond 2× is drawn at 2×. Dashed: "
    "the same ratio from the paper’s Table 2."
  )
  return markup.figure(figures.radar(results), caption, narrow=True)


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
  return markup.facts(head, rows) + figure if rows else markup.ABSENT


def _training(results: Results) -> str:
  caption = (
    "Loss of the answers’ tokens, smoothed over 1/40 of the run. Thin: seeds; thick: "
    "their mean. The arms train on different entries, so a lower curve is not a better "
    "model: the table is."
  )
  return markup.figure(figures.curves(results), caption)


# ── What ran ──────────────────────────────────────────────────────────────────────

_TERMS = (
  ("Ratios", "Mean absolute and root mean squared error × 100."),
  (
    "Report",
    "BLEU: corpus BLEU-1 with brevity penalty. ROUGE: ROUGE-1 F, rouge-score package. "
    "METEOR: nltk, exact and stem matches only: WordNet’s data is not shipped, so synonyms "
    "do not match, and the value is lower than the Java METEOR 1.5 of the published code.",
  ),
  (
    "Classes, REG, verify",
    "Share of answers equal to the truth after lower-casing and dropping punctuation and "
    "articles. Commas become spaces and “none” stays a word, unlike in the published "
    "normalisation.",
  ),
  (
    "Multi-label",
    "Micro F1 over all labels; macro F1 is the mean over labels that occur in truth or "
    "prediction, 0 for one that is never hit.",
  ),
  ("REC", "IoU of continuous boxes in thousandths; R@0.5 is the share above 0.5."),
  ("Choose, query", "Mean BLEU-1 of each answer on normalised words, no smoothing."),
  (
    "Unreadable answers",
    "Never dropped: they count as the ratio 0, as a box of no area, as no label present "
    "and as a wrong class.",
  ),
)


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
  terms = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in _TERMS)
  config = tables.section(results, "config")
  listed = "\n".join(
    f"{key} = {value!r}" for key, value in tree_lib.flatten(config).items()
  )
  return (
    f'<div class="columns"><div><h3>Time</h3>{times}</div>'
    f"<div><h3>Versions</h3>{programs}</div>"
    f"<div><h3>Unreadable answers</h3>{_unparsed(results)}</div></div>"
    + (f'<h3>Notes</h3><ul class="small">{notes}</ul>' if notes else "")
    + "<details><summary>How each metric is defined here</summary>"
    f'<dl class="terms">{terms}</dl></details>'
    "<details><summary>Configuration, seeds included</summary>"
    f"<pre>{markup.text(listed) or 'not recorded'}</pre></details>"
  )


def _unparsed(results: Results) -> str:
  if "unparsed" not in results:
    return markup.ABSENT
  rows = []
  for run in tables.section(results, "unparsed"):
    counts = tree_lib.flatten(tables.section(results, "unparsed", run))
    for reason, count in counts.items():
      rows.append(
        [tables.RUN_TITLES.get(run, run), reason.replace("/", ": ", 1), f"{count}"]
      )
  if not rows:
    return '<p class="small">None: every answer could be read.</p>'
  return markup.facts(("run", "why", "answers"), rows)


def _duration(seconds: float) -> str:
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  return f"{minutes} min {rest:02d} s"
