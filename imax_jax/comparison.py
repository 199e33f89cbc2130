"""`report --runs A,B,C`: work directories side by side, those of one row pooled as seeds.

Work directories with the same `config.row` (the title where it is "") are one row: the
same experiment with other seeds. They may differ in nothing but keys named `seed` or
`seeds`, and in where and how fast things are done (`_MAY_DIFFER`).
"""

from __future__ import annotations

import collections
import json
import sys
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imax_jax import evaluated
from imax_jax import results as results_lib
from imax_jax.evaluate import intervals
from imax_jax.evaluate import pooling
from imax_jax.ledger import differing
from imax_jax.ledger import write_json
from imax_jax.report import arms
from imax_jax.report import comparison as page
from imax_jax.report import rows as rows_lib
from imax_jax.report import terminal
from imax_jax.study import Study

# Names of config keys that a row's work directories need not share.
_MAY_DIFFER = {
  "seed", "seeds",
  "title", "verbs", "mesh", "sharding", "report", "fisher", "runs",
  "root", "roots", "workers", "beam", "features", "features_folder", "rows",
  "save_steps", "keep", "watchdog_seconds", "trackers", "profile",
}  # fmt: skip


def write(study: Study, folders: Sequence[str]) -> None:
  """WORKDIR/comparison.json and, in WORKDIR/report, comparison.html with its tables and
  its Figure 3 as files of their own; prints Table 1."""
  compared = collect([Path(folder) for folder in folders])
  compared["rows"] = rows_lib.ordered(compared["rows"])
  write_json(study.workdir / "comparison.json", compared)
  path = study.workdir / "report" / "comparison.html"
  _, *beside = page.write_comparison(compared["rows"], path)
  names = ", ".join(one.name for one in beside)
  sys.stdout.write(
    f"\n{terminal.compared(compared['rows'])}\n\nReport: {path}\nBeside it: {names}\n"
  )
  sys.stdout.flush()


def collect(folders: Sequence[Path]) -> dict[str, Any]:
  """{"scorer", "definitions", "rows": {row: as results.json, over all its seeds}}.

  Raises:
    ValueError: a results.json that is missing, damaged or of an earlier version; a work
      directory or a seed twice; rows of other configs, dataset versions or metrics; runs
      of a seed that answered other entries.
  """
  if not folders:
    raise ValueError("--runs: expected work directories, as in --runs A,B,C")
  twice = [f for n, f in enumerate(folders) if f.resolve() in _resolved(folders[:n])]
  if twice:
    raise ValueError(f"--runs: {twice[0]} is named twice: a seed counts once")
  found = {folder: _read(folder) for folder in folders}
  first, *others = found.items()
  for folder, results in others:
    for key in ("scorer", "definitions"):
      if results[key] != first[1][key]:
        differ = "".join(f" ({name})" for name in _names(first[1][key], results[key]))
        raise ValueError(
          f"{folder} was scored by other {key}{differ} than {first[0]}: run evaluate and "
          "report in both with one version"
        )
  rows: dict[str, dict[Path, dict[str, Any]]] = {}
  for folder, results in found.items():
    rows.setdefault(results["about"]["row"], {})[folder] = results
  for members in rows.values():
    _check_row(members)
  return {
    "scorer": first[1]["scorer"],
    "definitions": first[1]["definitions"],
    "rows": {row: _row(row, members) for row, members in rows.items()},
  }


def _resolved(folders: Sequence[Path]) -> set[Path]:
  return {folder.resolve() for folder in folders}


def _names(one: Any, other: Any) -> list[str]:
  both = isinstance(one, Mapping) and isinstance(other, Mapping)
  return [", ".join(differing(one, other)[:4])] if both else []


def _read(folder: Path) -> dict[str, Any]:
  """A work directory's results.json."""
  path = folder / "results.json"
  try:
    results = json.loads(path.read_text("utf8"))
  except OSError as error:
    raise ValueError(
      f"{path}: no results there ({error.strerror}); run the verb report in that work "
      "directory, or correct --runs"
    ) from error
  except ValueError as error:
    raise ValueError(f"{path} is damaged: run the verb report there again") from error
  needed = (
    "about", "scorer", "definitions", "seeds", "per_seed", "config", "fisher_caveats",
    "unlabelled",
  )  # fmt: skip
  lacks = [key for key in needed if key not in results]
  lacks += [key for key in ("row", "dataset") if key not in results.get("about", {})]
  if lacks:
    raise ValueError(
      f"{path} lacks {', '.join(lacks)}: an earlier version wrote it; run the verb report "
      "there again"
    )
  if not results["seeds"]:
    raise ValueError(f"{path}: no run was evaluated there; run the verb evaluate first")
  return results


def _check_row(members: Mapping[Path, Mapping[str, Any]]) -> None:
  """Refuses work directories that are no seeds of one experiment."""
  (like, first), *others = members.items()
  seen = {(str(first["about"]["dataset"]["built"]), s): like for s in _all_seeds(first)}
  for folder, results in others:
    row = results["about"]["row"]
    versions = [r["about"]["dataset"]["version"] for r in (first, results)]
    if versions[0] != versions[1]:
      raise ValueError(
        f"row {row!r}: {like} has dataset version {versions[0]} and {folder} version "
        f"{versions[1]}: build both with one, or give each its own config.row"
      )
    keys = [
      key
      for key in differing(first["config"], results["config"])
      if not _MAY_DIFFER & set(key.split("."))
    ]
    if keys:
      raise ValueError(
        f"row {row!r}: {folder} differs from {like} in more than seeds "
        f"({', '.join(keys[:6])}): give each its own config.row"
      )
    for seed in _all_seeds(results):
      key = (str(results["about"]["dataset"]["built"]), seed)
      if key in seen:
        raise ValueError(
          f"row {row!r}: {seen[key]} and {folder} both hold seed {seed} of the same data: "
          "a seed counts once"
        )
      seen[key] = folder


def _all_seeds(results: Mapping[str, Any]) -> list[Any]:
  return list(dict.fromkeys(s for seeds in results["seeds"].values() for s in seeds))


def _row(title: str, members: Mapping[Path, Mapping[str, Any]]) -> dict[str, Any]:
  """A row's results, in the shape of a results.json."""
  seeds: list[dict[str, pooling.Measured]] = []
  names: dict[str, list[str]] = {}
  for folder, results in members.items():
    without_image = {name: _baseline(folder, name) for name in arms.BLIND}
    for seed in _all_seeds(results):
      here = dict(without_image)
      for run, known in results["seeds"].items():
        if seed in known:
          scores = results["per_seed"][run][known.index(seed)]
          here[run] = evaluated.measured(folder, f"{run}-s{seed}", scores)
          names.setdefault(run, []).append(f"{folder.name}/s{seed}")
      try:
        pooling.check_seed(here)
      except ValueError as error:
        raise ValueError(f"{folder}, seed {seed}: {error}") from error
      seeds.append(here)
  pairs = {pair.name: (pair.new, pair.base) for pair in arms.PAIRS}
  pooled = pooling.pool(seeds, pairs, blind=arms.BLIND)
  first = next(iter(members.values()))
  fisher = [
    {"folder": str(folder), **spectrum}
    for folder, results in members.items()
    for spectrum in results["fisher"]
  ]
  lacking = [
    f"{folder.name}: {caveat}"
    for folder, results in members.items()
    for caveat in results["fisher_caveats"]
  ]
  return {
    "about": {**first["about"], "title": title},
    "folders": [str(folder) for folder in members],
    "datasets": sorted(_datasets(members)),
    "definitions": first["definitions"],
    "seeds": names,
    **pooled,
    **evaluated.told(
      [one for results in members.values() for one in results["evaluations"]]
    ),
    **results_lib.of_spectra(fisher, lacking),
    "caveats": results_lib.caveats(
      first["config"]["data"]["source"],
      pooled["gains"],
      [tuple(one) for results in members.values() for one in results["unlabelled"]],
    ),
    **_boxes_seen(members),
    "config": first["config"],
  }


def _datasets(
  members: Mapping[Path, Mapping[str, Any]],
) -> dict[str, Mapping[str, Any]]:
  """{a dataset: the results of the first work directory of it}."""
  return {
    str(results["about"]["dataset"]["built"]): results
    for results in [*members.values()][::-1]
  }


def _boxes_seen(members: Mapping[Path, Mapping[str, Any]]) -> dict[str, Any]:
  """What is said of boxes outside of what the model sees, of all datasets together."""
  told = [r["boxes_seen"] for r in _datasets(members).values() if r.get("boxes_seen")]
  splits: dict[str, dict[str, collections.Counter[str]]] = {}
  for one in told:
    for split, organs in one["splits"].items():
      for organ, counts in organs.items():
        of = splits.setdefault(split, {}).setdefault(organ, collections.Counter())
        of.update(counts)
  return {"boxes_seen": {**told[0], "splits": splits}} if told else {}


def _baseline(folder: Path, name: str) -> pooling.Measured:
  tally = intervals.read_tally(folder / "baselines" / f"{name}.npz")
  return pooling.Measured(intervals.totals(tally), tally)
