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

from imax_jax.report import examples
from imax_jax.report import figures
from imax_jax.report import page
from imax_jax.report import spectra
from imax_jax.report import tables
from imax_jax.schema import Bits
from imax_jax.schema import Entry
from imax_jax.schema import Origin
from imax_jax.schema import Prediction
from imax_jax.schema import Region

SECTIONS = (
  "effect", "table", "radar", "data", "training", "fisher", "examples", "method"
)  # fmt: skip


def gain(mean, std, per_seed):
  return {
    "mean": mean, "std": std, "per_seed": per_seed, "median": 1.23, "improved": 9,
    "total": 16,
    "excluded": {"reg_acc": "the base run scores 0"},
  }  # fmt: skip


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
    "gains": {
      "imax": gain(29.0, 3.0, [27.0, 31.0]),
      "pseudo": gain(-3.0, 4.0, [-6.0, 0.0]),
      "dmax_long": gain(6.0, 1.0, [5.0, 7.0]),
      "pseudo_vs_dmax_long": gain(0.5, None, [0.5]),
    },
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


def test_numbers_bold_underline_and_dagger(tmp_path):
  text = written(tmp_path, study())
  assert "<b>3.31</b>" in text  # IMAX's CPAR MAE, measured and the paper's
  assert "<u>5.29</u>" in text
  assert "26.97<sup" in text  # no better than the constant's 40
  assert "±1.50" in text
  assert "+29.00" in text
  assert "+29.07" in text
  assert "1 min 42 s" in text
  assert "train.peak_lr = 1e-06" in text or "train/peak_lr = 1e-06" in text


def test_it_says_what_it_is_and_what_was_found(tmp_path):
  text = written(tmp_path, study())
  assert "These are phantom numbers" in text
  assert "differences of ±5 % are noise at this scale" in text
  assert "A study of &lt;phantoms&gt;" in text
  assert "a &lt;b&gt;note&lt;/b&gt; &amp; more" in text
  open_data = {"about": {"title": "Real", "data": "open"}}
  assert "openly licensed" in written(tmp_path, open_data)
  assert "DMAX, seed 1<" in text
  assert "of IMAX, seed 0." in written(
    tmp_path, {"about": study()["about"]}, [example()]
  )
  assert "agreements" in written(tmp_path, {"about": {"data": "physionet"}})


@pytest.mark.parametrize(
  "key",
  [None, "tables", "gains", "fisher", "statistics", "curves", "unparsed", "about"],
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
  tables.text_table(results)


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
  [figures.gains, figures.radar, figures.composition, figures.curves, spectra.fisher],
  ids=lambda f: f.__name__,
)
def test_a_figure_is_one_accessible_svg_or_nothing(draw):
  svg = draw(study())
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
  assert figures.gains({"gains": {"imax": {"mean": 1.0, "std": None, "per_seed": [1]}}})


def test_seeds_are_pooled_and_arms_kept_apart():
  rows = study()["fisher"]
  pooled = spectra.samples(rows, "imax", "mid", "entropy")
  assert len(pooled) == 2 * 2 * 5  # seeds, kinds, draws
  assert len(spectra.samples(rows, "pseudo", "mid", "entropy")) == 0


# ── Tables ────────────────────────────────────────────────────────────────────────


def test_the_terminals_table_is_aligned_and_fits():
  text = tables.text_table(study())
  lines = text.splitlines()
  assert max(map(len, lines)) <= 120
  metrics = [line for line in lines if line[:2] in ("↓ ", "↑ ")]
  assert len(metrics) == 16
  assert len({len(line) for line in metrics}) == 1
  assert "3.31±1.50*" in metrics[0]
  assert "26.97±1.50 <" in next(line for line in metrics if "Multi-class" in line)
  assert "paper +29.07 %" in text
  assert "over 2 seeds" in text
  assert "! An <invented> caveat." in text
  assert "no tables" in tables.text_table({})


def test_ranks_go_by_the_printed_number():
  column = tables.COLUMNS[0]
  rows = {"a": {column.name: 3.001}, "b": {column.name: 3.004}, "c": {column.name: 4.0}}
  assert tables.ranks(rows, column) == {"a": 1, "b": 1}
  up = tables.COLUMNS[4]
  rows = {"a": {up.name: 3.0}, "b": {up.name: 5.0}, "c": {up.name: 4.0}, "d": {}}
  assert tables.ranks(rows, up) == {"b": 1, "c": 2}


@pytest.mark.parametrize(
  ("mean", "std", "seeds", "says"),
  [
    (3.0, 1.0, [2.0, 3.0, 4.0], "shows no effect"),
    (-3.0, 1.0, [-2.0, -3.0, -4.0], "3.0 % worse"),
    (9.0, 12.0, [-3.0, 9.0, 21.0], "cannot be told from zero"),
    (29.0, 2.0, [27.0, 29.0, 31.0], "beyond the 95 % interval"),
    (29.0, None, [29.0], "one seed"),
    (None, None, [], "No metric can be compared"),
  ],
)
def test_the_verdict_whichever_its_sign(mean, std, seeds, says):
  assert tables.verdict({}) == "Not run."
  assert says in tables.verdict({"mean": mean, "std": std, "per_seed": seeds})


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
