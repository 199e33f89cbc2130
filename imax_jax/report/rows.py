"""Several rows side by side: their order, what the paper prints of them, what they lack.

A row is a system: its results, in the shape of a results.json, of all its seeds.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

from imax_jax.report import arms
from imax_jax.report import tables
from imax_jax.report.tables import Results

Rows = Mapping[str, Results]
MAIN = arms.PAIR["imax"]  # Table 1 and Figure 3 are of this comparison
UNIFIED = "Unified model"
# Other titles of the paper's systems: the release that its supplement B describes, and
# the page of its section 4.2.
_ALSO = {"LLaVA-Med 1.0": "LLaVA-Med", "IMAX, 7B": UNIFIED, "Unified MLLM": UNIFIED}


@dataclasses.dataclass(frozen=True, slots=True)
class Printed:
  """What the paper prints of a system: metrics improved of 16, and Δ in %."""

  system: str
  improved: int
  percent: float


def _unified() -> Printed:
  """Of the unified model Δ is printed; how many improve is counted from its Table 2."""
  before, after = (tables.PAPER_TABLE2[run] for run in (MAIN.base, MAIN.new))
  better = [
    (after[c.name] < before[c.name])
    if c.lower_is_better
    else (after[c.name] > before[c.name])
    for c in tables.COLUMNS
  ]
  return Printed(UNIFIED, sum(better), tables.PAPER_GAINS[MAIN.name])


# In the paper's order; arXiv 2504.09967, Tables 1 and 2.
PRINTED: tuple[Printed, ...] = (
  *(Printed(*line) for line in tables.PAPER_TABLE1),
  _unified(),
)


def printed(title: str) -> Printed | None:
  """What the paper prints of the system of that title; None where it is not the paper's.

  Case and punctuation are nothing, and so is what follows a comma, a colon or a bracket:
  "llava_med (toy size)" is LLaVA-Med, "LLaVA-Med 1.5" is another system.
  """
  known = {_words(one.system): one for one in PRINTED}
  known |= {_words(name): known[_words(of)] for name, of in _ALSO.items()}
  short = re.split(r"[,:(\[]", title, maxsplit=1)[0]
  return known.get(_words(title)) or known.get(_words(short))


def _words(title: str) -> tuple[str, ...]:
  return tuple(re.findall(r"[a-z0-9]+", title.casefold()))


def ordered(rows: Rows) -> dict[str, Results]:
  """The paper's systems in the paper's order, the others after, as they came."""

  def place(title: str) -> int:
    found = printed(title)
    return PRINTED.index(found) if found else len(PRINTED)

  return {title: rows[title] for title in sorted(rows, key=place)}


def unmeasured(rows: Rows) -> list[Printed]:
  """The paper's systems that are none of the rows."""
  found = {printed(title) for title in rows}
  return [one for one in PRINTED if one not in found]


def name(title: str, pair: arms.Pair, pairs: Sequence[arms.Pair]) -> str:
  """A line's name, less what all lines share: the one row "", or the one comparison."""
  if not title:
    return pair.title
  return title if len(pairs) == 1 else f"{title}: {pair.title}"


def cut(title: str, width: int) -> str:
  """A title of at most so many letters."""
  return title if len(title) <= width else f"{title[: width - 1]}…"


# ── What is known of a row ────────────────────────────────────────────────────────


def gain_of(results: Results) -> Mapping[str, object]:
  """IMAX over DMAX of a row; empty where one of them was not evaluated."""
  return tables.section(results, "gains", MAIN.name)


def num_seeds(results: Results) -> int:
  """The most seeds that a run of the row has."""
  return max(map(len, tables.section(results, "per_seed").values()), default=0)


def size(results: Results) -> str:
  """The model's layers × width: "encoder 4 × 128, decoder 4 × 128"; "" if unknown."""
  model = tables.section(results, "config", "model")
  parts = []
  for name in ("encoder", "decoder"):
    part = tables.section(model, name)
    depth, width = tables.number(part, "depth"), tables.number(part, "width")
    if depth and width:
      parts.append(f"{name} {depth:.0f} × {width:.0f}")
  return ", ".join(parts)


def why_no_gain(results: Results) -> str:
  """Why Table 1 has no number of a row."""
  there = tables.section(results, "tables")
  lacking = [run for run in (MAIN.base, MAIN.new) if not there.get(run)]
  titles = " and ".join(arms.ARM[run].title for run in lacking)
  if len(lacking) == 1:
    return f"{titles} was not evaluated"
  return f"{titles} were not evaluated" if lacking else "no seed has both runs"


def lacks(results: Results) -> list[str]:
  """Sentences on what a row's line in Table 1 does not rest on."""
  gain = gain_of(results)
  if not gain:
    return [f"{why_no_gain(results)}, so there is no Δ: train and evaluate it."]
  said = []
  known = {run: _named(results, run) for run in (MAIN.base, MAIN.new)}
  for run, other in ((MAIN.base, MAIN.new), (MAIN.new, MAIN.base)):
    alone = [seed for seed in known[run] if seed not in known[other]]
    if alone:
      said.append(
        f"{arms.ARM[run].title} without {arms.ARM[other].title} in {', '.join(alone)}: "
        "not in Δ."
      )
  left_out = excluded(gain)
  if left_out:
    named = "; ".join(f"{label} ({why})" for label, why in left_out.items())
    said.append(
      f"Δ is of {gain.get('total')} of {len(tables.COLUMNS)} metrics, without {named}."
    )
  if tables.num_seeds(gain) == 1:
    said.append("one seed: whether the recipes differ cannot be told from chance.")
  return said


def _named(results: Results, run: str) -> list[str]:
  names = tables.section(results, "seeds").get(run)
  return list(map(str, names)) if isinstance(names, Sequence) else []


def excluded(gain: Mapping[str, object]) -> dict[str, str]:
  """{metric's label: why it is not in a Δ}."""
  labels = {column.name: column.label for column in tables.COLUMNS}
  return {
    labels.get(name, name): str(why)
    for name, why in tables.section(gain, "excluded").items()
  }


def said_of(
  rows: Rows, sentences: Callable[[Results], Sequence[str]]
) -> list[tuple[str, str]]:
  """[(whose, sentence)]: each sentence once, with all the rows of which it is true."""
  whose: dict[str, list[str]] = {}
  for title, results in rows.items():
    for sentence in sentences(results):
      whose.setdefault(sentence, []).append(title)
  every = "All rows" if len(rows) > 1 else next(iter(rows), "")
  return [
    (every if len(titles) == len(rows) else ", ".join(titles), sentence)
    for sentence, titles in whose.items()
  ]


def caveats_of(results: Results) -> list[str]:
  """What must be known before a row's gain is read."""
  return [*(results.get("caveats") or ()), *(results.get("fisher_caveats") or ())]


def notes(rows: Rows) -> list[str]:
  """What is to be known of the rows together: boxes that a system does not see, and
  whether all rows are of the same data."""
  found = [
    f"Boxes, {whose}: {sentence}" for whose, sentence in said_of(rows, _boxes_seen)
  ]
  made = {frozenset(results.get("datasets") or ()) for results in rows.values()}
  if len(made) > 1:
    found.append(
      f"The rows are of {len(made)} sets of data: Δ compares two runs of one row, and "
      "metrics of rows of other data do not compare."
    )
  return found


def _boxes_seen(results: Results) -> list[str]:
  """How many of the test boxes the model's square holds whole, in part, or not."""
  seen = tables.section(results, "boxes_seen")
  organs = tables.section(seen, "splits", "imax_test").values()
  count = {
    kind: sum(int(of.get(kind) or 0) for of in organs)
    for kind in ("whole", "cut", "unseen")
  }
  total = sum(count.values())
  if not total:
    return []
  geometry = str(seen.get("geometry"))
  if count["whole"] == total:
    return [f"the square ({geometry}) holds all {total:,} of REC and REG."]
  least = tables.number(seen, "least") or 0.0
  return [
    f"of {total:,} of REC and REG the square ({geometry}) cuts {count['cut']:,} and leaves "
    f"out {count['unseen']:,} (less than {100 * least:.0f} % inside). All are asked and scored as "
    "whole boxes."
  ]
