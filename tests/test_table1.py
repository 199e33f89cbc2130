"""Table 1 and Figure 3 of any rows: on the page, in the terminal and as files."""

from __future__ import annotations

import csv
import io
import re
import xml.etree.ElementTree

import pytest
from PIL import Image

from imax_jax.evaluate import gains
from imax_jax.report import comparison
from imax_jax.report import radar
from imax_jax.report import rows as rows_lib
from imax_jax.report import sheets
from imax_jax.report import systems
from imax_jax.report import table1
from imax_jax.report import tables
from imax_jax.report import terminal

NAMES = [column.name for column in tables.COLUMNS]
# arXiv 2504.09967: Table 1; the last line is its Table 2.
PAPER = """LLaVA-Med 16 10.14
XrayGPT* 15 21.05
MiniGPT-Med 14 12.94
Uni-Med 14 4.81
LLaVA-Tri 14 10.17
MedM-VL-2D 13 3.20
HealthGPT-M3 15 5.47
HealthGPT-L14 15 16.92"""


def row(lift=10.0, *, runs=("dmax", "imax"), seeds=3, without=(), **changes):
  """An invented row: IMAX is `lift` % better on all metrics, an error by as much less."""
  base = {name: 40.0 + number for number, name in enumerate(NAMES)}
  scores = {"dmax": dict(base), "imax": {}}
  for column in tables.COLUMNS:
    sign = -1 if column.lower_is_better else 1
    scores["imax"][column.name] = base[column.name] * (1 + sign * lift / 100)
  for name in without:
    scores["imax"][name] = None
  per_seed = {run: [scores[run]] * seeds for run in runs}
  results = {
    "about": {"data": "phantom"},
    "folders": ["runs/a", "runs/b"],
    "tables": {run: scores[run] for run in runs},
    "seeds": {run: [f"a/s{seed}" for seed in range(seeds)] for run in runs},
    "per_seed": per_seed,
    "gains": {},
    "caveats": [],
    "config": {"model": {"encoder": {"depth": 2, "width": 16},
                         "decoder": {"depth": 3, "width": 32}}},
  }  # fmt: skip
  if len(runs) == 2:
    gain = gains.paired_gains(per_seed["imax"], per_seed["dmax"])
    results["gains"]["imax"] = gain | {
      "interval": [lift - 4, lift + 4], "p_patients": 0.0004, "dropped": {}, "draws": 4000,
      "over_seeds": [lift - 2, lift + 2] if seeds > 1 else None,
      "p_seeds": 0.25 if seeds > 1 else None,
      "tests": {name: {"gain": change, "gain_interval": [change - 3, change + 3],
                       "p_holm": 0.01} for name, change in gain["per_metric"].items()},
    }  # fmt: skip
  return results | changes


def lines_of(html):
  """{a table's row heading: the texts of its cells}."""
  found = {}
  for line in re.findall(r"<tr.*?</tr>", html):
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line)
    plain = [re.sub(r"<[^>]*>", "", cell) for cell in cells]
    found[plain[0]] = plain[1:]
  return found


def texts_of(svg):
  return re.findall(r"<text[^>]*>(.*?)</text>", svg)


# ── The paper's own ───────────────────────────────────────────────────────────────


def test_the_papers_numbers_stand_as_printed():
  lines = [line.rsplit(" ", 2) for line in PAPER.splitlines()]
  for name, improved, percent in lines:
    found = rows_lib.printed(name)
    assert (found.system, found.improved) == (name, int(improved))
    assert found.percent == float(percent)
  assert [one.system for one in rows_lib.PRINTED] == [line[0] for line in lines] + [
    "Unified model"
  ]
  unified = rows_lib.printed("IMAX, 7B")
  # Of Table 2's sixteen only ROUGE falls, from 40.34 to 40.06.
  assert (unified.improved, unified.percent) == (15, 29.07)


@pytest.mark.parametrize(
  ("title", "system"),
  [
    ("xraygpt", "XrayGPT*"),
    ("healthgpt_m3", "HealthGPT-M3"),
    ("LLaVA-Med (toy size)", "LLaVA-Med"),
    ("MedM-VL-2D, seed of the study", "MedM-VL-2D"),
    ("LLaVA-Med 1.0", "LLaVA-Med"),
    ("LLaVA-Med 1.5", None),
    ("LLaVA-1.5-7B", None),
    ("LLaVA", None),
    ("Uni-Medical", None),
    ("Phantom hospital", None),
    ("", None),
  ],
)
def test_a_row_is_told_by_its_title(title, system):
  found = rows_lib.printed(title)
  assert (found and found.system) == system


def test_rows_stand_in_the_papers_order_and_the_others_after():
  came = ["MedGemma 4B", "unified model", "uni-med", "Another", "LLaVA-Med"]
  rows = rows_lib.ordered({title: {} for title in came})
  assert list(rows) == [
    "LLaVA-Med",
    "uni-med",
    "unified model",
    "MedGemma 4B",
    "Another",
  ]
  left = [one.system for one in rows_lib.unmeasured(rows)]
  assert len(left) == 9 - 3 and "Uni-Med" not in left


# ── Table 1 ───────────────────────────────────────────────────────────────────────


def test_a_line_a_system_and_the_papers_beside_it():
  rows = {"LLaVA-Med": row(10.0), "Mine & <yours>": row(-3.0, seeds=1)}
  html = table1.systems(rows)
  lines = lines_of(html)
  assert lines["LLaVA-Med"] == [
    "3", "16 / 16", "+10.00", "+6.00 to +14.00", "+8.00 to +12.00", "+10.00", "0.25",
    "&lt; 0.001", "better", "16 / 16", "+10.14",
  ]  # fmt: skip
  mine = lines["Mine &amp; &lt;yours&gt;"]
  assert mine[:3] == ["1", "0 / 16", "−3.00"]
  assert mine[4] == mine[6] == "–"
  assert mine[-3:] == ["noise", "", ""]
  assert html.count('class="paper"') == 2 + 1  # the heading and a Δ a row
  assert "Not among these rows: <i>XrayGPT* 15 / 16 +21.05&nbsp;%" in html
  assert "LLaVA-Med 16" not in html.split("Not among")[1]
  assert "All rows: encoder 2 × 16, decoder 3 × 32." in html


def test_what_a_row_lacks_is_said_and_nothing_is_left_out():
  rows = {
    "Uni-Med": row(runs=("imax",)),
    "None": row(runs=()),
    "Apart": row(gains={}),
    "One": row(seeds=1),
    "Lacks": row(without=("rec_iou", "reg_acc")),
    "Uneven": row(seeds=1),
  }
  rows["Uneven"]["seeds"] = {"dmax": ["a/s0", "a/s1"], "imax": ["a/s1"]}
  lines = lines_of(table1.systems(rows))
  assert lines["Uni-Med"] == ["3", "DMAX was not evaluated", "14 / 16", "+4.81"]
  assert lines["None"][:2] == ["0", "DMAX and IMAX were not evaluated"]
  assert lines["Apart"][1] == "no seed has both runs"
  assert lines["Lacks"][1] == "14 / 14"
  said = {sentence: whose for whose, sentence in rows_lib.said_of(rows, rows_lib.lacks)}
  one = "one seed: whether the recipes differ cannot be told from chance."
  assert said[one] == "One, Uneven"
  assert said["DMAX without IMAX in a/s0: not in Δ."] == "Uneven"
  (lacking,) = [sentence for sentence, whose in said.items() if whose == "Lacks"]
  assert lacking == (
    "Δ is of 14 of 16 metrics, without REC IoU (not measured in both runs); REG Acc (not "
    "measured in both runs)."
  )
  both = {"A": row(seeds=1), "B": row(seeds=1)}
  assert rows_lib.said_of(both, rows_lib.lacks) == [("All rows", one)]
  told = terminal.compared(rows)
  page = comparison._page(rows)
  for sentence in said:
    assert " ".join(sentence.split()) in re.sub(r"\s+", " ", told), sentence
    assert sentence in page


def crop(whole, cut, unseen):
  return {
    "geometry": "crop", "boxes": "picture", "image_px": 224, "least": 0.5,
    "splits": {"imax_test": {"heart": {"whole": whole, "cut": cut, "unseen": unseen},
                             "left lung": {"whole": 1, "cut": 0, "unseen": 0}},
               "imax_train": {"heart": {"whole": 0, "cut": 0, "unseen": 900}}},
  }  # fmt: skip


def test_boxes_that_a_system_does_not_see_are_counted_in_one_line():
  rows = {
    "A": row(boxes_seen=crop(1200, 30, 4)),
    "B": row(boxes_seen=crop(9, 0, 0)),
    "C": row(),
  }
  assert rows_lib.notes(rows) == [
    "Boxes, A: of 1,235 of REC and REG the square (crop) cuts 30 and leaves out 4 (less "
    "than 50 % inside). All are asked and scored as whole boxes.",
    "Boxes, B: the square (crop) holds all 10 of REC and REG.",
  ]
  assert "cuts 30 and leaves out 4" in comparison._page(rows)
  assert "cuts 30 and leaves" in terminal.compared(rows)
  assert rows_lib.notes({"C": row()}) == []


def test_rows_of_other_data_are_said_not_to_compare():
  rows = {"A": row(datasets=["x"]), "B": row(datasets=["x"])}
  assert rows_lib.notes(rows) == []
  rows["B"]["datasets"] = ["y"]
  assert "2 sets of data" in rows_lib.notes(rows)[0]


# ── The terminal ──────────────────────────────────────────────────────────────────


def test_ten_rows_fit_a_terminal_a_line_each():
  names = [one.system for one in rows_lib.PRINTED]
  names.append("A system with a name that no terminal has the room for at all")
  rows = {name: row(seeds=1 + number % 3) for number, name in enumerate(names)}
  rows["Uni-Med"] = row(runs=("imax",))
  rows["MedM-VL-2D"] = row(-123.456, caveats=["an invented caveat of a hundred % " * 4])
  told = terminal.compared(rows).splitlines()
  assert max(map(len, told)) <= 100
  lines = told[3:14]
  for name, line in zip(names[:9], lines[1:10], strict=True):
    assert line.startswith(name)
    found = rows_lib.printed(name)
    assert line.endswith(f"{found.improved}/16 {tables.signed(found.percent)}")
  assert re.fullmatch(
    r"XrayGPT\* +2 +16/16 +\+10\.00 +\+6\.0 to \+14\.0 +\+10\.0 +0\.25 +< 0\.001 +better "
    r"+15/16 \+21\.05",
    lines[2],
  )
  assert "no Δ" in lines[4] and "differ" in lines[1]
  assert "… " in lines[10] and lines[10].endswith("differ")
  assert any(line.startswith("! MedM-VL-2D: an invented caveat") for line in told)
  assert (
    "! Uni-Med: DMAX was not evaluated, so there is no Δ: train and evaluate it."
    in told
  )


def test_other_comparisons_follow_table_1_where_there_are_any():
  rows = {"A": row(), "B": row()}
  assert "Δ (Eq. 1)" not in terminal.compared(rows)
  assert "Other comparisons" not in comparison._page(rows)
  rows["B"]["gains"]["pseudo"] = rows["B"]["gains"]["imax"]
  assert terminal.compared(rows).count("pseudo / DMAX") == 1
  assert terminal.compared(rows).count("IMAX / DMAX") == 1  # the heading
  assert "B: DMAX &amp; Pseudo IMAX over DMAX" in comparison._page(rows)


# ── Figure 3 ──────────────────────────────────────────────────────────────────────


def test_every_chart_has_the_same_spokes_and_the_same_scale():
  rows = {
    "LLaVA-Med": row(30.0),
    "A $title$ of \\nothing{": row(-60.0, without=("report_meteor",)),
    "Unified model": row(5.0, seeds=1),
    "No chart": row(runs=("imax",)),
  }
  texts = texts_of(radar.grid(rows))
  charts = 3
  for column in tables.COLUMNS:
    assert texts.count(f"{column.short} {column.arrow}") == charts, column.short
  # 0 to 2 for -60 % and for the paper's +75 %: one range for all, told at its halves.
  for tick in ("0.5×", "1×", "1.5×", "2×"):
    assert texts.count(tick) == charts
  assert "0.75×" not in texts
  assert texts.count("–") == 1
  assert "40.0 → 28.0" in texts and "46.0 → –" not in texts  # CPAR MAE of the first
  assert "No chart" not in texts
  assert "A $title$ of \\nothing{" in texts
  for once in ("DMAX (= 1)", "IMAX", "IMAX in the paper, against its DMAX"):
    assert texts.count(once) == 1
  assert "Δ +30.00 %  ·  16 of 16 better  ·  3 seeds" in texts
  assert "Δ +5.00 %  ·  16 of 16 better  ·  1 seed" in texts
  page = comparison._page(rows)
  assert "No chart: No chart (DMAX was not evaluated)." in page
  narrow = texts_of(radar.grid({"A": row(10.0)}))
  assert "1×" in narrow and "1.5×" not in narrow and "2×" not in narrow
  assert "IMAX in the paper, against its DMAX" not in narrow
  assert radar.grid({"No chart": row(runs=("imax",))}) == ""


def test_no_chart_stands_on_another_and_the_last_line_in_the_middle():
  for count in range(1, 12):
    width, height = radar._size(count)
    places = radar._places(count)
    assert len(set(places)) == len(places) == count
    for number, (x, y) in enumerate(places):
      assert abs(x - width / 2) <= (width - radar._WIDE) / 2 + 1e-9
      assert radar._FOOT - 1e-9 <= y <= height - radar._HIGH + 1e-9
      for other_x, other_y in places[:number]:
        apart = abs(x - other_x) >= radar._WIDE - 1e-9
        assert apart or abs(y - other_y) >= radar._HIGH - 1e-9
    last = [x for x, y in places if y == places[-1][1]]
    assert sum(last) / len(last) == pytest.approx(width / 2)


def test_a_metric_from_nothing_has_no_point_but_its_values():
  results = row(10.0)
  results["tables"]["dmax"] = {**results["tables"]["dmax"], "reg_acc": 0.0}
  texts = texts_of(radar.grid({"A": results}))
  assert "0.0 → 57.2" in texts and "nan" not in " ".join(texts)


# ── Every metric ──────────────────────────────────────────────────────────────────


def test_every_metric_of_every_row_in_one_table():
  worse = row(-10.0)
  worse["gains"]["imax"]["tests"]["reg_acc"]["p_holm"] = 0.06
  worse["ahead"] = {"imax": {"rec_iou": False}}
  rows = {
    "A": row(10.0),
    "B": worse,
    "Uni-Med": row(runs=("imax",)),
    "Unified model": row(),
  }
  html = systems.metrics(rows)
  bodies = re.findall(r"<tbody>.*?</tbody>", html)
  assert [body.count("<tr>") for body in bodies] == [2, 2, 1, 4]
  for body in bodies:
    assert all(line.count("<td") == 16 for line in body.split("</tr>")[:-1])
  assert "<b>36.00</b>" in bodies[0] and "<b>40.00</b>" not in bodies[0]
  assert "<u>44.00</u>" in bodies[1] and "<b>" not in bodies[1]
  assert '">46.80</td>' in bodies[1]  # REG Acc, worse but not told
  assert 'class="behind first"' in bodies[1] and bodies[1].count("<sup>†</sup>") == 1
  assert bodies[3].count("47.14") == 1 and "DMAX, paper" in bodies[3]
  assert "47.14" not in "".join(bodies[:3])
  assert "Without the image" not in html
  for results in rows.values():
    results["tables"] |= {
      run: dict.fromkeys(NAMES, 33.3) for run in ("constant", "blind")
    }
  assert systems.metrics(rows).count("33.30") == 2 * 16
  rows["A"]["tables"]["blind"]["reg_acc"] = 34.0
  assert "and what is scored without the image" in systems.metrics(rows)
  assert "Not run" in systems.metrics({"None": row(runs=())})


# ── Files ─────────────────────────────────────────────────────────────────────────


def test_the_tables_as_files(tmp_path):
  rows = {"XrayGPT*": row(), "50 %, of_A & B": row(-3.0, seeds=1, without=("reg_acc",)),
          "Half": row(runs=("imax",))}  # fmt: skip
  files = sheets.write(rows, tmp_path)
  assert [path.name for path in files] == list(sheets.NAMES)
  with files[0].open(newline="", encoding="utf-8") as file:
    found = {line["row"]: line for line in csv.DictReader(file)}
  assert list(found) == list(rows)
  line = found["XrayGPT*"]
  assert float(line["delta_percent"]) == pytest.approx(10.0, abs=1e-9)
  assert (line["seeds"], line["improved"], line["total"]) == ("3", "16", "16")
  assert (line["low_95"], line["high_95"], line["seeds_low_95"]) == (
    "6.0",
    "14.0",
    "8.0",
  )
  assert (line["paper_system"], line["paper_improved"]) == ("XrayGPT*", "15")
  assert line["paper_delta_percent"] == "21.05"
  other = found["50 %, of_A & B"]
  assert (other["total"], other["p_seeds"], other["paper_system"]) == ("15", "", "")
  half = found["Half"]
  assert (half["delta_percent"], half["read_as"]) == ("", "DMAX was not evaluated")
  with files[2].open(newline="", encoding="utf-8") as file:
    values = list(csv.DictReader(file))
  assert len(values) == (2 + 2 + 1) * 16
  lacking = [(one["row"], one["run"]) for one in values if one["value"] == ""]
  assert lacking == [("50 %, of_A & B", "imax")]
  assert values[0] == {
    "row": "XrayGPT*", "run": "dmax", "metric": "cpar_mae", "better_is": "lower",
    "seeds": "3", "value": "40.0", "low_95": "", "high_95": "",
  }  # fmt: skip
  latex = files[1].read_text("utf-8")
  body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
  assert body[0] == (r"XrayGPT* & 3 & 16 / 16 & $+10.00\,\%$ & $[+6.00, +14.00]$ \\")
  assert body[1].startswith(r"50 \%, of\_A \& B & 1 & 0 / 15 & $-3.00\,\%$")
  assert body[2] == r"Half & 3 & -- & -- & DMAX was not evaluated \\"
  for one in body:
    assert len(re.findall(r"(?<!\\)&", one)) == 4


def test_figure_3_lies_beside_the_page_and_is_the_same_bytes_each_time(tmp_path):
  rows = {"A": row()}
  first = comparison.write_comparison(rows, tmp_path / "report" / "comparison.html")
  again = comparison.write_comparison(rows, tmp_path / "again" / "comparison.html")
  names = [
    "comparison.html",
    *sheets.NAMES,
    "figure3.svg",
    "figure3.pdf",
    "figure3.png",
  ]
  assert [path.name for path in first] == names
  assert sorted(path.name for path in first[0].parent.iterdir()) == sorted(names)
  for one, other in zip(first, again, strict=True):
    assert one.read_bytes() == other.read_bytes(), one.name
  svg = (tmp_path / "report" / "figure3.svg").read_text("utf-8")
  xml.etree.ElementTree.fromstring(svg)
  assert "var(--" not in svg and "#20588a" in svg  # no page gives it its colours
  assert (tmp_path / "report" / "figure3.pdf").read_bytes().startswith(b"%PDF")
  drawn = Image.open(io.BytesIO((tmp_path / "report" / "figure3.png").read_bytes()))
  assert drawn.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
  assert drawn.width == 200 * 6
  page = first[0].read_text("utf-8")
  assert all(name in page for name in names[1:])
  without = comparison.write_comparison({"A": row(runs=())}, tmp_path / "c" / "c.html")
  assert [path.suffix for path in without] == [".html", ".csv", ".tex", ".csv"]
