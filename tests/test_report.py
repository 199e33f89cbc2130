"""The page and the terminal's table: whole, self-contained, honest and never broken."""

from __future__ import annotations

import copy
import dataclasses
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from imax_jax.report import arms
from imax_jax.report import comparison
from imax_jax.report import examples
from imax_jax.report import figures
from imax_jax.report import page
from imax_jax.report import radar
from imax_jax.report import scorers
from imax_jax.report import spectra
from imax_jax.report import tables
from imax_jax.report import tasks
from imax_jax.report import terminal
from imax_jax.schema import Bits
from imax_jax.schema import Entry
from imax_jax.schema import Origin
from imax_jax.schema import Prediction
from imax_jax.schema import Region

SECTIONS = (
  "effect", "table", "radar", "data", "training", "fisher", "scorers", "examples", "method"
)  # fmt: skip


def gain(mean, interval, per_seed, over_seeds=None, **changes):
  return {
    "mean": mean, "std": None, "per_seed": per_seed, "median": 1.23, "improved": 9,
    "total": 16, "interval": interval, "over_seeds": over_seeds, "p_seeds": 0.5,
    "p_patients": 0.0004, "dropped": {}, "draws": 4000,
    "tests": {
      "cpar_mae": {"gain": 52.2, "gain_interval": [47.1, 57.0], "difference": -3.6,
                   "interval": [-4.1, -3.2], "p": 0.001,
                   "p_holm": 0.015},
    },
    "excluded": {"reg_acc": "the base run scores 0"},
  } | changes  # fmt: skip


def study() -> dict:
  """Results of every kind, small and invented."""
  rng = np.random.default_rng(0)
  paper = copy.deepcopy(tables.PAPER_TABLE2)
  constant = {column.name: 40.0 for column in tables.COLUMNS}
  without_image = {"constant": constant, "blind": dict(constant)}
  runs = {**without_image, **paper, "dmax_long": dict(paper["pseudo"])}
  fisher = [
    {"run": f"{arm}-s{seed}", "phase": phase, "step": 10 * number, "kind": kind,
     "entropy": list(rng.normal(2, 0.1, 5)), "dominant": list(rng.uniform(30, 40, 5))}
    for arm in ("dmax", "imax") for seed in range(2) for kind in ("sampled", "exact")
    for number, phase in enumerate(spectra.PHASES)
  ]  # fmt: skip
  split = {
    "images": 3, "entries": 9, "entries_per_task": {"rec": 5, "vqa": 4},
    "tasks_per_image": {"1": 1, "2": 2}, "entries_per_image": {"1": 1, "4": 2},
    "mean_tasks_per_image": 1.67, "mean_entries_per_image": 3.0,
  }  # fmt: skip
  return {
    "tables": runs,
    "spread": {run: {column.name: 1.5 for column in tables.COLUMNS} for run in paper},
    "per_seed": {"dmax": [paper["dmax"]] * 2, "imax": [paper["imax"]] * 2},
    "seeds": {"dmax": [3, 4], "imax": [3, 4]},
    "intervals": {run: {"cpar_mae": [3.04, 3.66]} for run in runs},
    "no_interval": {"imax": {"reg_acc": "1 test patient: nothing can be resampled"}},
    "ahead": {"imax": {"cpar_mae": True, "multi_class_acc": False}},
    "noise": {"dmax": 4.2},
    "gains": {
      "imax": gain(29.0, [25.1, 33.2], [27.0, 31.0], [3.6, 54.4]),
      "pseudo": gain(-3.0, [-7.0, 1.0], [-6.0, 0.0], [-41.1, 35.1]),
      "dmax_long": gain(6.0, [4.0, 8.0], [5.0, 7.0], [-6.7, 18.7]),
      "pseudo_vs_dmax_long": gain(0.5, [0.1, 0.9], [0.5], p_seeds=None),
    },
    "scorer": "strict",
    "definitions": {
      "strict": {
        "rec_iou": {
          "definition": "Mean <IoU>.",
          "version": "imax_jax 1",
          "unparsed": "0.",
        }
      },
      "legacy": {
        "rec_iou": {
          "definition": "Plus one.",
          "version": "scripts",
          "unparsed": "Lost.",
        }
      },
      "not_legacy": {"reg_acc": "an invented reason"},
    },
    "legacy": {"imax": {**paper["imax"], "multi_class_acc": 50.14}},
    "asked": {"dmax": {"rec": 1200}},
    "reports": {"imax": [{"distinct": 7, "of": 90, "findings_f1": {"micro": 51.5}}]},
    "fisher": fisher,
    "statistics": {"imax_train": split, "imax_test": split, "dmax_train": split},
    "curves": {
      "imax-s0": [[step, 1 / step] for step in range(1, 50)],
      "imax-s1": [[step, 1.1 / step] for step in range(1, 50)],
      "foundation": [[step, 2.0] for step in range(1, 9)],
    },
    "unparsed": {"dmax": {"rec": {"no box": 3}}, "imax": {}},
    "versions": {"jax": "0.10.2"},
    "timings": {"train imax": 102.3, "build": 4.0},
    "config": {"seeds": [0, 1], "train": {"peak_lr": 1e-6}},
    "caveats": ["An <invented> caveat."],
    "notes": ["a <b>note</b> & more"],
    "about": {
      "title": "A study of <phantoms>",
      "data": "phantom",
      "examples": "IMAX, seed 0",
    },
  }


def film(size=48, kind="PNG") -> bytes:
  buffer = io.BytesIO()
  Image.new("L", (size, size), 90).save(buffer, format=kind)
  return buffer.getvalue()


def example(task="rec", **changes) -> examples.Example:
  made = examples.Example(
    task=task,
    image=film(),
    prompt="[rec] where is the <heart>?",
    truth="<300><400><700><800>",
    prediction="<310><400><700><800>",
    boxes=(
      examples.Mark((0.3, 0.4, 0.7, 0.8), "truth"),
      examples.Mark((0.31, 0.4, 0.7, 0.8), "predicted"),
    ),
    correct=True,
    note="IoU 0.97",
  )
  return dataclasses.replace(made, **changes)


class Outline(html.parser.HTMLParser):
  """Ids, links, sources and the balance of tags."""

  VOID = frozenset(["meta", "img", "br", "hr", "link", "input", "path", "rect", "use"])

  def __init__(self) -> None:
    super().__init__()
    self.open: list[str] = []
    self.ids: list[str] = []
    self.outside: list[str] = []
    self.tags: list[str] = []
    self.without_alt = 0

  def handle_starttag(self, tag, attrs):
    values = dict(attrs)
    self.tags.append(tag)
    if "id" in values:
      self.ids.append(values["id"])
    for key in ("src", "href", "xlink:href"):
      if key in values and not re.match(r"#|data:image/", values[key] or ""):
        self.outside.append(values[key])
    self.without_alt += tag == "img" and not values.get("alt")
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    if tag not in self.VOID:
      assert self.open.pop() == tag


def outline(text: str) -> Outline:
  parser = Outline()
  parser.feed(text)
  parser.close()
  assert parser.open == []
  return parser


def written(tmp_path, results, shown=()) -> str:
  path = tmp_path / "report" / "index.html"
  page.write_report(results, shown, path)
  assert [p.name for p in path.parent.iterdir()] == ["index.html"]
  return path.read_text("utf-8")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
  """The page of `study()`."""
  return written(tmp_path_factory.mktemp("page"), study())


# ── The page ──────────────────────────────────────────────────────────────────────


def test_the_page_is_whole_and_needs_nothing_else(tmp_path):
  text = written(tmp_path, study(), [example(), example("vqa", boxes=())])
  parsed = outline(text)
  assert parsed.outside == []
  assert "script" not in parsed.tags
  assert "link" not in parsed.tags
  assert not re.search(r"@import|url\((?!#)", text)
  assert parsed.without_alt == 0
  assert set(SECTIONS) <= set(parsed.ids)
  assert len(parsed.ids) == len(set(parsed.ids))
  assert parsed.tags.count("svg") >= 5 + 1  # five figures and one film with boxes
  assert "not run" not in text.lower()
  assert len(text) < 2_000_000


def test_numbers_bold_underline_and_dagger(text):
  assert "<b>3.31</b>" in text  # IMAX's CPAR MAE, measured and the paper's
  assert "<u>5.29</u>" in text
  assert "<small>3.0–3.7</small>" in text
  assert "standard deviation over seeds 1.50" in text
  assert "26.97<sup" in text  # DMAX is below the constant's 40
  assert "<b>47.14</b><sup" in text  # above it, but its interval holds 0
  assert "<b>3.31</b><sup" not in text
  assert "1 test patient" in text
  assert "+29.00<small>+25.10<br>to +33.20</small>" in text
  assert "+29.07" in text
  assert "1 min 42 s" in text
  assert "train.peak_lr = 1e-06" in text or "train/peak_lr = 1e-06" in text


def test_table_1_and_the_tests_of_each_metric(text):
  row = re.search(r"<tr><th scope=\"row\">IMAX over DMAX</th>.*?</tr>", text).group()
  for cell in ("9 / 16", "+29.00", "+25.10 to +33.20", "+3.60 to +54.40", "0.50",
               "&lt; 0.001", "better"):  # fmt: skip
    assert f">{cell}<" in row
  assert (
    ">noise<" in re.search(r"<tr><th[^>]*>DMAX, step-matched, over.*?</tr>", text)[0]
  )
  assert "<b>+52.20</b><small>+47.10 to +57.00</small><small>p 0.015</small>" in text
  assert "4,000 exchanges show none below &lt; 0.001" in text
  assert 'title="the base run scores 0">–' in text
  assert text.count("Left out of") == 1  # one sentence for all that lack the same


def test_both_scorers_and_their_difference(text):
  assert "47.14 → 50.14<small>+3.00</small>" in text
  assert "<small>the same</small>" in text
  assert "Mean &lt;IoU&gt;. 0." in text
  assert "imax_jax 1" in text
  assert "Plus one. Lost." in text
  assert "REG Acc, legacy</dt><dd>None: an invented reason." in text
  assert "3 of 1,200" in text
  assert "7 of 90" in text
  assert "51.50" in text
  without = study()
  del without["legacy"]["imax"]["reg_acc"]
  assert 'title="an invented reason"' in scorers.scorers(without)


def test_it_says_what_it_is_and_what_was_found(text, tmp_path):
  assert "These are phantom numbers" in text
  assert "told from zero: +3.60 to +54.40 % over seeds" in text
  assert "Two seeds of the base alone differ by 4.2 %" in text
  assert "A study of &lt;phantoms&gt;" in text
  assert "a &lt;b&gt;note&lt;/b&gt; &amp; more" in text
  open_data = {"about": {"title": "Real", "data": "open"}}
  assert "openly licensed" in written(tmp_path, open_data)
  assert "DMAX, seed 3<" in text
  assert "of IMAX, seed 0." in written(
    tmp_path, {"about": study()["about"]}, [example()]
  )
  assert "agreements" in written(tmp_path, {"about": {"data": "physionet"}})


def test_absent_runs_are_simply_absent_and_new_ones_appear(text, tmp_path):
  results = study()
  assert "as many images as IMAX" not in text
  results["tables"]["same_count"] = results["tables"]["dmax"]
  results["gains"]["imax_vs_same_count"] = results["gains"]["imax"]
  text = written(tmp_path, results)
  assert "DMAX, as many images as IMAX" in text
  assert "IMAX over DMAX of as many images" in text
  assert "same n." in terminal.text_table(results)
  assert "IMAX / same n." in terminal.text_table(results)


def test_names_colours_and_pairs_agree():
  assert len({arm.name for arm in arms.ARMS}) == len(arms.ARMS)
  assert len({arm.colour for arm in arms.ARMS}) == len(arms.ARMS)  # told apart in SVG
  for pair in arms.PAIRS:
    assert {pair.new, pair.base} <= set(arms.TRAINED)
  for arm in arms.ARMS:
    assert f"--{arms.variable(arm.name)}: {arm.colour};" in arms.css()
    assert f"--{arms.variable(arm.name)}: {arm.dark};" in arms.css()


@pytest.mark.parametrize(
  "key",
  [
    None,
    "tables",
    "gains",
    "fisher",
    "statistics",
    "curves",
    "unparsed",
    "about",
    "legacy",
    "reports",
  ],
)
def test_any_missing_part_is_said_to_be_not_run(tmp_path, key):
  results = study()
  results = {} if key is None else {k: v for k, v in results.items() if k != key}
  text = written(tmp_path, results)
  outline(text)
  assert "nan" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL).split()
  if key != "about":
    assert "not run" in text.lower()


@pytest.mark.parametrize(
  "run", ["constant", "blind", "dmax", "imax", "pseudo", "dmax_long"]
)
def test_any_missing_run_or_metric_leaves_the_rest(tmp_path, run):
  results = {key: study()[key] for key in ("tables", "spread", "gains")}
  del results["tables"][run]
  other = "imax" if run != "imax" else "dmax"
  del results["tables"][other]["rec_iou"]
  results["tables"][other]["rec_r50"] = None
  outline(written(tmp_path, results))
  terminal.text_table(results)


def test_the_page_is_the_same_bytes_each_time(tmp_path):
  assert written(tmp_path, study(), [example()]) == written(
    tmp_path, study(), [example()]
  )


def test_a_failed_report_leaves_the_old_one(tmp_path):
  before = written(tmp_path, {})
  with pytest.raises(OSError, match="cannot identify"):
    written(tmp_path, {}, [example(image=b"no image")])
  assert [p.name for p in (tmp_path / "report").iterdir()] == ["index.html"]
  assert (tmp_path / "report" / "index.html").read_text("utf-8") == before


def test_large_films_are_made_small(tmp_path):
  noise = np.random.default_rng(0).integers(0, 255, (900, 700), np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(noise).save(buffer, format="PNG")
  text = written(tmp_path, {}, [example(image=buffer.getvalue())])
  assert len(text) < 300_000
  assert "data:image/jpeg;base64" in text


def test_texts_of_a_film_can_not_break_the_page(tmp_path):
  nasty = '"><script>alert(1)</script>'
  shown = [example(prompt=nasty, truth=nasty, prediction=nasty, note=nasty)]
  assert "script" not in outline(written(tmp_path, {}, shown)).tags


# ── Figures ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
  "draw",
  [figures.gains, radar.radar, figures.composition, figures.curves, spectra.fisher],
  ids=lambda f: f.__name__,
)
def test_a_figure_is_one_accessible_svg_or_nothing(draw):
  results = {"": study()} if draw is figures.gains else study()
  svg = draw(results)
  assert svg.startswith('<svg role="img" aria-label="')
  assert svg.endswith("</svg>")
  assert "#20588a" not in svg  # colours are the page's
  assert "var(--" in svg
  assert draw({}) == ""


def test_one_seed_one_phase_and_equal_values_can_be_drawn():
  row = {"run": "imax-s0", "phase": "mid", "step": 1, "kind": "exact"}
  flat = {"entropy": [2.0, 2.0, 2.0], "dominant": [0.3, None, float("nan")]}
  assert spectra.fisher({"fisher": [row | flat]})
  assert figures.curves({"curves": {"dmax-s0": [[1, 2.0], [2, 1.0]]}})
  assert figures.curves({"curves": {"dmax-s0": [[1, 2.0]]}}) == ""
  assert figures.gains({"": {"gains": {"imax": {"mean": 1.0, "per_seed": [1]}}}})


def test_a_gain_from_nearly_nothing_leaves_the_others_their_axis():
  results = study()
  gains = results["gains"]
  before = figures.gains({"": results})
  assert ">to +" not in before
  gains["pseudo"] = gain(310.4, [0.0, 15_815_327.8], [-999.0, 5.0], [-1250.0, 90.0])
  drawn = figures.gains({"": results})
  texts = re.findall(r"<text[^>]*>(.*?)</text>", drawn)
  assert texts.count("to +15,815,328, mean +310") == 1
  assert texts.count("to −1,250") == 1
  ticks = [float(t.replace("−", "-")) for t in texts if re.fullmatch(r"−?[\d.]+", t)]
  assert (min(ticks), max(ticks)) == (-200, 200)


def test_the_same_answers_are_read_as_the_same(tmp_path):
  results = study()
  results["gains"]["imax"] = gain(0.0, [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])
  text = written(tmp_path, results)
  row = re.search(r"<tr><th scope=\"row\">IMAX over DMAX</th>.*?</tr>", text).group()
  assert ">the same<" in row
  assert "another choice of test patients" not in text


def test_a_legend_lies_on_no_bar():
  """Figure 2(c)'s stands below the axis and its numbers."""
  drawn = figures.composition(study())
  axes, legend = drawn[drawn.index("axes_3") :].split("legend_1", 1)
  height = r'<text[^>]* y="([\d.]+)"'
  ticks, words = (
    [float(y) for y in re.findall(height, part)]
    for part in (axes[: axes.index("matplotlib.axis_6")], legend)
  )
  assert len(ticks) == 4
  assert len(words) == 2
  assert min(words) > max(ticks)


def test_seeds_are_pooled_and_arms_kept_apart():
  rows = study()["fisher"]
  pooled = spectra.samples(rows, "imax", "mid", "entropy")
  assert len(pooled) == 2 * 2 * 5  # seeds, kinds, draws
  assert len(spectra.samples(rows, "pseudo", "mid", "entropy")) == 0


def meeting(names=("rec", "vqa"), pairs=((60, 80), (80, 12)), seeds=3) -> dict:
  values = [[0.5, 7.25], [7.25, 1.0]]
  return {"names": list(names), "pairs": [list(line) for line in pairs], "seeds": seeds,
          "overlap": values, "cosine": values, "conflict": [[0.25, 0.5], [0.5, 0.0]]}  # fmt: skip


def test_a_measure_of_few_pairs_is_no_number_and_no_colour():
  """7.25 is no overlap: the second task meets itself in twelve pairs."""
  found = meeting()
  assert tasks.known(found, "overlap") == [[0.5, None], [None, None]]
  assert tasks.known(found, "cosine") == [[0.5, 7.25], [7.25, None]]
  drawn = tasks.figure({"fisher_tasks": {"late": {"imax": found}}}, "late")
  texts = re.findall(r"<text[^>]*>(.*?)</text>", drawn)
  assert texts.count("–") == 3 + 1 + 1
  assert len(re.findall(r"opacity: 0\.\d", drawn)) == 1 + 3 + 1
  assert {"60", "80", "12"} <= set(texts)
  more = meeting(pairs=((60, 80), (80, 50)))
  assert tasks.known(more, "overlap") == more["overlap"]
  assert tasks.figure({}, "late") == ""


def test_the_fisher_section_says_of_what_it_is(tmp_path):
  results = study()
  one = {
    "kind": "exact", "answers": "data", "phase": "late", "indicator": "entropy",
    "change": -4.0, "interval": [-5.0, -3.0], "p": 0.0001, "seeds": [-6.0, -4.0, -2.0],
    "student": [-8.97, 0.97],
  }  # fmt: skip
  few = one | {"phase": "mid", "seeds": [-4.0], "student": None, "kind": "sampled"}
  results["fisher_changes"] = [one, few]
  results["fisher_tasks"] = {"late": {"dmax": meeting(seeds=1), "imax": meeting()}}
  results["fisher_caveats"] = ["no <spectra> of DMAX, seed 1"]
  for row in results["fisher"]:
    # The first seeds have all of it in one part, the second in another.
    row["trace"] = {"connector/w": [100.0 * row["run"].endswith("0")],
                    "decoder/layers/q/lora_b": [100.0 * row["run"].endswith("1")]}  # fmt: skip
  text = written(tmp_path, results)
  line = re.search(
    r"<tr><th scope=\"row\">spectral entropy, all trainable parameters, late.*?</tr>",
    text,
  ).group()
  cells = re.findall(r"<td.*?>(.*?)</td>", line)
  assert cells == [
    "−4.00 %",
    "−5.00 to −3.00",
    "&lt; 0.001",
    "−8.97 to +0.97",
    "3 of 3",
    "–",
  ]
  line = re.search(r"<tr><th scope=\"row\">spectral entropy, one.*?</tr>", text).group()
  assert re.findall(r"<td.*?>(.*?)</td>", line)[3:] == ["–", "–", "−5.80 %"]
  assert "over trainings</th>" in text
  assert "not adjusted for the 2 tests" in text
  assert (
    "phase late, all groups of all seeds together (DMAX 1 seed, IMAX 3 seeds)" in text
  )
  assert "may leave 0 to 1 by noise" in text
  assert "mean shares over seeds (DMAX 2 seeds, IMAX 2 seeds)" in text
  assert "<li>no &lt;spectra&gt; of DMAX, seed 1</li>" in text
  assert "! no <spectra> of DMAX, seed 1" in terminal.text_table(results)
  alone = written(tmp_path, {"fisher_caveats": results["fisher_caveats"]})
  assert "no &lt;spectra&gt;" in alone
  assert "no &lt;spectra&gt;" in comparison._page(
    {"row": {"fisher_caveats": results["fisher_caveats"]}}
  )
  mean = spectra._mean(spectra._traces(results, "late")["imax"])
  assert mean == {"connector/w": [50.0], "decoder/layers/q/lora_b": [50.0]}


# ── Tables ────────────────────────────────────────────────────────────────────────


def test_the_terminals_table_is_aligned_and_fits():
  text = terminal.text_table(study())
  lines = text.splitlines()
  assert max(map(len, lines)) <= 100
  metrics = [line.ljust(100) for line in lines if line[:2] in ("↓ ", "↑ ")]
  assert len(metrics) == 16
  assert len({line[:60].rindex(".") for line in metrics if "±" not in line}) == 1
  assert "3.31±0.31*" in metrics[0]
  assert "26.97 <" in next(line for line in metrics if "Multi-class" in line)
  assert re.search(
    r"IMAX / DMAX +\+29\.00 +\+25\.10 to \+33\.20 +9 of 16 +\+1\.23 +0\.50 +< 0\.001",
    text,
  )
  assert "over 2 seeds" in text
  assert "! An <invented> caveat." in text
  assert "no tables" in terminal.text_table({})


def test_a_wide_terminal_table_is_broken_between_runs():
  results = study()
  for run in [run for run in arms.TRAINED if run not in results["tables"]]:
    results["tables"][run] = results["tables"]["dmax"]
    results["intervals"][run] = {c.name: [111.1, 222.2] for c in tables.COLUMNS}
  lines = terminal.text_table(results).splitlines()
  assert max(map(len, lines)) <= 100
  assert sum(line.startswith("↓ CPAR MAE") for line in lines) == 3
  heads = " ".join(line for line in lines if line.startswith("metric (× 100)"))
  assert all(heads.count(f" {arm.short}") >= 1 for arm in arms.ARMS)


def test_ranks_go_by_the_printed_number():
  column = tables.COLUMNS[0]
  rows = {"a": {column.name: 3.001}, "b": {column.name: 3.004}, "c": {column.name: 4.0}}
  assert tables.ranks(rows, column) == {"a": 1, "b": 1}
  up = tables.COLUMNS[4]
  rows = {"a": {up.name: 3.0}, "b": {up.name: 5.0}, "c": {up.name: 4.0}, "d": {}}
  assert tables.ranks(rows, up) == {"b": 1, "c": 2}


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({}, "told from zero"),
    ({"mean": -29.0, "interval": [-33.0, -25.0], "over_seeds": [-54.0, -3.0]},
     "29.0 % worse on average over 2 seeds, told from zero"),
    ({"over_seeds": [-1.0, 59.0]}, "noise: the 95 % interval over seeds holds zero (−1.00"),
    ({"interval": [-1.0, 33.0]}, "over seeds and patients holds zero (−1.00 to +33.00 %)"),
    ({"over_seeds": None, "per_seed": [29.0]}, "one seed cannot tell from chance"),
    ({"over_seeds": None, "per_seed": [29.0], "interval": [-1.0, 9.0]},
     "in one seed, which is noise: another choice"),
    ({"over_seeds": None, "per_seed": [29.0], "p_patients": 0.19},
     "one seed, which is noise: exchanged answers of the same patients come to as much (p = 0.19"),
    ({"mean": 0.0, "interval": [0.0, 0.0], "over_seeds": None, "per_seed": [0.0]},
     "No difference at all"),
    ({"mean": 0.0, "interval": [0.0, 0.0], "over_seeds": [0.0, 0.0]},
     "No difference at all"),
    ({"mean": 0.0, "interval": [-1.0, 1.0], "over_seeds": None, "per_seed": [0.0]},
     "0.0 % of difference on average in one seed, which is noise"),
    ({"interval": None}, "too few test patients"),
    ({"mean": None, "interval": None, "over_seeds": None}, "No metric can be compared"),
  ],
)  # fmt: skip
def test_the_verdict_rests_on_the_intervals(changes, says):
  assert tables.verdict({}) == "Not run."
  found = study()["gains"]["imax"] | changes
  assert says in tables.verdict(found)
  assert "differ by 4.2 %" not in tables.verdict(found)
  assert tables.is_told(found) == (says.endswith("told from zero"))
  differ = tables.read_as(found) == "one seed: these models differ"
  assert ("cannot tell from chance" in says) == differ


@pytest.mark.parametrize(
  ("p", "text"),
  [
    (None, "–"),
    (0.0004, "< 0.001"),
    (0.001, "0.001"),
    (0.0625, "0.062"),
    (0.5, "0.50"),
  ],
)
def test_a_p_value_in_words(p, text):
  assert tables.chance(p) == text


# ── Several rows ──────────────────────────────────────────────────────────────────


def test_rows_stand_on_one_page_and_their_figures_apart(tmp_path):
  one, other = study(), study()
  one["folders"] = ["runs/<equal>-0", "runs/equal-1"]
  path = tmp_path / "comparison.html"
  comparison.write_comparison({"equal <images>": one, "few": other}, path)
  text = path.read_text("utf-8")
  parsed = outline(text)
  assert parsed.outside == []
  assert len(parsed.ids) == len(set(parsed.ids))
  for anchor in re.findall(r'(?:url\(#|href="#)([^)"]+)', text):
    assert anchor in parsed.ids
  assert '<th scope="row">equal &lt;images&gt;</th>' in text
  assert "equal &lt;images&gt;: DMAX, step-matched, over DMAX" in text
  assert "2 seeds, of &lt;equal&gt;-0, equal-1." in text
  assert text.count("MedM-VL-2D") == 1  # the paper's Table 1
  assert '<th scope="row">few</th>' in text
  assert (
    text.count('<table class="table2">') == 4
  )  # Table 2 and the scorers, a row each
  told = terminal.compared({"equal": one, "few": other})
  assert max(map(len, told.splitlines())) <= 100
  assert told.count("DMAX long / DMAX") == 2


# ── Examples ──────────────────────────────────────────────────────────────────────


def prediction(task="rec", subtask="heart", image="i0", number=0, **changes):
  target = changes.pop("target", Region("heart", (0.3, 0.4, 0.7, 0.8)))
  entry = Entry(
    f"{image}/{task}/{subtask}/{number}", image, task, subtask, "[x] where?",
    "<300><400><700><800>", target, Origin("made", "invented.csv", 0, "made"),
  )  # fmt: skip
  return Prediction(entry, **{"text": "?", "value": None, "reason": "no box"} | changes)


def test_examples_are_drawn_by_chance_over_images_and_subtasks():
  pool = [
    prediction("vqa", subtask, f"i{image}", number)
    for subtask, count in (("verify", 9), ("choose", 2), ("query", 2))
    for image in range(count)
    for number in range(3)
  ] + [prediction("rec", "heart", "i1")]
  chosen = examples.choose(pool, per_task=6, seed=3)
  vqa = [p.entry for p in chosen if p.entry.task == "vqa"]
  assert len(vqa) == 6
  assert len({entry.image_id for entry in vqa}) == 6
  assert {entry.subtask for entry in vqa} == {"verify", "choose", "query"}
  assert [p.entry.task for p in chosen].count("rec") == 1
  again = examples.choose(pool[::-1], per_task=6, seed=3)
  assert [p.entry.id for p in again] == [p.entry.id for p in chosen]
  assert examples.choose(pool, seed=4) != chosen


def test_an_example_shows_the_boxes_of_its_task():
  box = (0.1, 0.1, 0.5, 0.5)
  found = prediction(text="…", value=Region("heart", box), reason="")
  kinds = [m.kind for m in examples.make_example(film(), found).boxes]
  assert kinds == ["truth", "predicted"]
  lost = examples.make_example(film(), prediction(), correct=False, note="no box")
  assert [m.kind for m in lost.boxes] == ["truth"]
  assert (lost.correct, lost.note) == (False, "no box")
  asked = examples.make_example(film(), prediction("reg"))
  assert [(m.kind, m.label) for m in asked.boxes] == [("asked", "")]
  bits = Bits((1, 0), ("Edema", "Nodule"))
  named = examples.make_example(film(), prediction("multi_label", "", target=bits))
  assert named.truth.endswith("\nEdema")


def test_boxes_are_drawn_where_they_are():
  mark = examples.Mark((0.25, 0.25, 0.75, 0.75), "predicted", "heart")
  drawn = Image.open(io.BytesIO(examples.draw_boxes(film(100), [mark])))
  colour = examples.MARK_COLOURS["predicted"]
  assert drawn.size == (100, 100)
  assert drawn.getpixel((25, 50)) == colour
  assert drawn.getpixel((50, 75)) == colour
  assert drawn.getpixel((5, 5)) == (90, 90, 90)
  with pytest.raises(ValueError, match="encoded image"):
    examples.draw_boxes(b"none", [])
