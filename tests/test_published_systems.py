"""Every published system's layout becomes our parameters, and every damage is named."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import numpy as np
import published_systems as systems
import pytest
from published_systems import SYSTEMS

from imax_jax import tree
from imax_jax.weights import load
from imax_jax.weights import own
from imax_jax.weights import plan as plan_lib
from imax_jax.weights.convert import convert
from imax_jax.weights.rows_of_layouts import recognise
from imax_jax.weights.vocabulary import Vocabulary


def fields(found: systems.System, **decoder: Any) -> dict[str, dict[str, Any]]:
  return {
    "encoder": {"image_px": 4},
    "connector": {"tasks": found.tasks},
    "decoder": {"lora_rank": 2, "lora_alpha": 4.0, **decoder},
  }


def run(
  found: systems.System, folder: pathlib.Path, ours: systems.Arrays | None = None,
  **options: Any,
) -> tuple[dict[str, Any], systems.Arrays]:  # fmt: skip
  """(foundation.json, what was written)."""
  sources = systems.write(folder, found)
  expected = tree.unflatten(ours or found.ours)
  record = convert(sources, fields(found), expected, folder / "out", **options)
  return record, load.load_params(folder / "out" / "foundation.safetensors")


def assert_equal(got: systems.Arrays, want: systems.Arrays) -> None:
  assert got.keys() == want.keys()
  for path, array in want.items():
    np.testing.assert_array_equal(got[path], array, err_msg=path)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_layout_becomes_our_parameters(name: str, tmp_path: pathlib.Path) -> None:
  found = SYSTEMS[name]()
  record, got = run(found, tmp_path)
  assert_equal(got, found.ours)
  assert not record["absent"] and not record["vocabulary"]


def kinds(names: Any) -> dict[str, str]:
  """{a name without its numbers: one such name}."""
  return {re.sub(r"\d+", "#", name): name for name in sorted(names, reverse=True)}


class Shown:
  """A checkpoint of arrays in memory: what a plan looks at."""

  wrapper, beside = "", ()

  def __init__(self, part: str, arrays: systems.Arrays) -> None:
    self.path = self.folder = pathlib.Path(part)
    self.arrays, self.names = arrays, tuple(sorted(arrays))

  def file(self, name: str) -> pathlib.Path:
    del name
    return self.path

  def shape(self, name: str) -> tuple[int, ...]:
    return self.arrays[name].shape

  def dtype(self, name: str) -> np.dtype:
    return self.arrays[name].dtype


def plan(found: systems.System) -> plan_lib.Plan:
  leaves = plan_lib.stored_leaves(found.ours)
  shown = {id(a): Shown(part, a) for part, a in found.parts.items()}
  sources = []
  for part, arrays in found.parts.items():
    checkpoint: Any = shown[id(arrays)]
    table = recognise(checkpoint, part, leaves).of_tasks(found.tasks)
    sources.append(plan_lib.Source(checkpoint, table))
  return plan_lib.make_plan(sources, leaves)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_damage_is_named(name: str) -> None:
  found = SYSTEMS[name]()
  assert plan(found)
  # A tower's last norm is read by some.
  norm = () if "encoder/norm/scale" in found.ours else (r".*post_layernorm\..*",)
  unread = "|".join((_UNREAD, *norm, *found.spare))
  cases = 0
  for arrays in {id(a): a for a in found.parts.values()}.values():
    for key in kinds(arrays).values():
      if re.fullmatch(unread, key):
        continue
      array = arrays[key]
      others = (
        ("shape", {key: np.concatenate([array, array], -1)}),
        ("unexpected", {key: array, f"{key}_more": array}),
      )
      for damage, changed in (("missing", {}), others[cases % 2]):
        del arrays[key]
        arrays |= changed
        with pytest.raises(ValueError) as caught:
          plan(found)
        message = str(caught.value)
        for more in changed:
          del arrays[more]
        arrays[key] = array
        if damage == "missing" and "expected a published" in message:
          continue  # the file was told by this very name
        assert re.search(damage, message), (key, message)
        assert damage == "missing" or key in message, message
        cases += 1
  assert cases > 20


def _of(place: tuple[str, int | None], pieces: list[plan_lib.Piece]) -> Any:
  """(the group of what they fill, a piece) of those that an adapter's file holds."""
  return [
    (own.group_of(place[0]), piece)
    for piece in pieces
    if piece.source.layout.part == "adapter"
  ]


# PEFT's files may hold LoRA alone, of a decoder that sees nothing.
_WHOLE = [(name, "connector") for name in SYSTEMS if name != "llava_lora"]
_WHOLE += [
  (name, "adapter") for name in ("minigpt_v2", "uni_med", "uni_med_cmoe", "healthgpt")
]


@pytest.mark.parametrize(("name", "group"), _WHOLE)
def test_a_file_without_half_of_what_was_trained_is_refused(
  name: str, group: str
) -> None:
  """Connector and LoRA of a system lie in its files together, or are no system's."""
  found = SYSTEMS[name]()
  pieces = [piece for some in plan(found).slabs.items() for piece in _of(*some)]
  taken = {piece.name for kind, piece in pieces if kind == group}
  assert taken
  for arrays in {id(a): a for a in found.parts.values()}.values():
    for key in taken & arrays.keys():
      del arrays[key]
  with pytest.raises(ValueError, match="missing|expected a published"):
    plan(found)


# Names of what our models do not read.
_UNREAD = "|".join((
  r".*(inv_freq|position_ids|head\.(probe|att.*))",
  r"t5_proj.*|Qformer\.bert\.encoder\.layer\.\d\.output\..*|language_.*",
  r"vision_model\.embeddings\.class_embedding",
))  # fmt: skip


def test_experts_that_differ_under_their_two_names_are_refused(
  tmp_path: pathlib.Path,
) -> None:
  found = SYSTEMS["uni_med_cmoe"]()
  key = "llm_proj.1.0.weight"
  found.parts["adapter"][key] = found.parts["adapter"][key] + 1
  with pytest.raises(ValueError, match=r"1\.0\.weight differs from .*1\.0\.weight"):
    run(found, tmp_path)


def test_a_task_that_the_publisher_lacks_starts_at_zero(tmp_path: pathlib.Path) -> None:
  found = SYSTEMS["uni_med_cmoe"]()
  tokens = found.ours["connector/task_tokens"]
  ours = found.ours | {
    "connector/task_tokens": np.concatenate([0 * tokens[:1], tokens])
  }
  found = found._replace(tasks=("calculation", *found.tasks))
  record, got = run(found, tmp_path, ours)
  assert_equal(got, ours)
  assert record["filled"].keys() >= {"connector/task_tokens[0]"}


def test_a_norm_before_the_connector_is_read_where_it_was_saved(
  tmp_path: pathlib.Path,
) -> None:
  found = SYSTEMS["minigpt_v2"]()
  norm = np.arange(2 * systems.TOWER, dtype=np.float32).reshape(2, -1)
  found.parts["adapter"] |= {"ln_vision.weight": norm[0], "ln_vision.bias": norm[1]}
  ours = found.ours | {"encoder/norm/scale": norm[0], "encoder/norm/bias": norm[1]}
  record, got = run(found, tmp_path, ours)
  assert_equal(got, ours)
  assert not record["filled"]


def test_a_tied_head_may_be_there_if_it_is_the_embedding(
  tmp_path: pathlib.Path,
) -> None:
  found = SYSTEMS["medm_vl"]()
  there = found.parts["decoder"]
  there["llm.lm_head.weight"] = there["llm.model.embed_tokens.weight"]
  _, got = run(found, tmp_path / "one")
  assert_equal(got, found.ours)
  there["llm.lm_head.weight"] = there["llm.model.embed_tokens.weight"] + 1
  with pytest.raises(ValueError, match=r"lm_head.weight differs from llm.model.embed"):
    run(found, tmp_path / "two")


def test_a_qformer_must_be_given(tmp_path: pathlib.Path) -> None:
  found = SYSTEMS["xraygpt"]()
  parts = {part: a for part, a in found.parts.items() if part != "qformer"}
  with pytest.raises(ValueError, match="no file for the Q-Former"):
    run(found._replace(parts=parts), tmp_path)
  found = SYSTEMS["minigpt_v2"]()
  file = SYSTEMS["xraygpt"]().parts["qformer"]
  with pytest.raises(ValueError, match="given for a Q-Former, and the model has none"):
    run(found._replace(parts=found.parts | {"qformer": file}), tmp_path / "two")


# ── Rows of the vocabulary ────────────────────────────────────────────────────────


def longer(found: systems.System, rows: int) -> systems.Arrays:
  """Ours with a vocabulary of so many rows, of which the last ones are 0."""
  more = rows - systems.ROWS
  return found.ours | {
    "decoder/embed/embedding": np.pad(
      found.ours["decoder/embed/embedding"], ((0, more), (0, 0))
    ),
    "decoder/head/kernel": np.pad(
      found.ours["decoder/head/kernel"], ((0, 0), (0, more))
    ),
  }


def test_rows_of_added_tokens_are_the_mean(tmp_path: pathlib.Path) -> None:
  """HealthGPT's rule: also where the file has rows to spare, which no token had."""
  found = SYSTEMS["healthgpt"]()
  rows, added = systems.ROWS + 2, 5
  ours = longer(found, rows)
  record, got = run(found, tmp_path, ours, vocabulary=Vocabulary(added))
  kept = rows - added
  embed = got["decoder/embed/embedding"]
  np.testing.assert_array_equal(embed[:kept], ours["decoder/embed/embedding"][:kept])
  want = np.tile(embed[:kept].mean(0), (added, 1))
  np.testing.assert_allclose(embed[kept:], want, rtol=1e-6)
  head = got["decoder/head/kernel"]
  np.testing.assert_allclose(head[:, kept:].T, np.tile(head[:, :kept].mean(1), (added, 1)),
                             rtol=1e-6)  # fmt: skip
  assert record["vocabulary"]["decoder/head/kernel"] == {
    "rows": rows, "from": [[0, kept, "lm_head.weight"]], "mean": added
  }  # fmt: skip


@pytest.mark.parametrize("added", [0, 1, 3])
def test_other_lengths_are_refused_with_both_numbers(
  tmp_path: pathlib.Path, added: int
) -> None:
  found = SYSTEMS["healthgpt"]()
  ours = longer(found, systems.ROWS + 4)
  with pytest.raises(ValueError, match="20 rows there, vocab_size 24 here"):
    run(found, tmp_path, ours, vocabulary=Vocabulary(added))


def healthgpts_rows(table: int) -> systems.System:
  found = SYSTEMS["healthgpt"]()
  rng = np.random.default_rng(5)
  for name in ("model.embed_tokens", "lm_head"):
    array = rng.normal(size=(table, systems.WIDTH)).astype(np.float32)
    found.parts["adapter"][f"base_model.model.{name}.weight"] = array
  return found


def test_trained_rows_lie_over_the_bases(tmp_path: pathlib.Path) -> None:
  found = healthgpts_rows(26)
  embed, head = (
    found.parts["adapter"][f"base_model.model.{name}.weight"]
    for name in ("model.embed_tokens", "lm_head")
  )
  ours = longer(found, 26)
  record, got = run(found, tmp_path, ours, vocabulary=Vocabulary(6))
  np.testing.assert_array_equal(got["decoder/embed/embedding"], embed)
  np.testing.assert_array_equal(got["decoder/head/kernel"], head.T)
  assert not record["vocabulary"]


def test_rows_of_picture_codes_are_dropped_when_asked(tmp_path: pathlib.Path) -> None:
  found = healthgpts_rows(26)
  embed = found.parts["adapter"]["base_model.model.model.embed_tokens.weight"]
  with pytest.raises(ValueError, match="26 rows there, vocab_size 20 here"):
    run(found, tmp_path / "one")
  record, got = run(found, tmp_path / "two", vocabulary=Vocabulary(0, 8))
  want = np.concatenate([embed[:18], found.ours["decoder/embed/embedding"][18:]])
  np.testing.assert_array_equal(got["decoder/embed/embedding"], want)
  assert record["vocabulary"]["decoder/embed/embedding"]["from"][1][:2] == [0, 18]
  with pytest.raises(
    ValueError, match="26 rows there, vocab_size 20 here, 2 to be dro"
  ):
    run(found, tmp_path / "three", vocabulary=Vocabulary(0, 2))


def test_marks_of_the_image_trained_with_the_projector(tmp_path: pathlib.Path) -> None:
  """mm_projector.bin with the embedding: all rows, or those of the marks alone."""
  found = SYSTEMS["llava_med_1"]()
  there = found.parts["decoder"]
  projector = {name: there.pop(name) for name in [*there] if "mm_projector" in name}
  # llava_med_1's decoder is one array dict under two parts.
  ours = longer(found, 22)
  rng = np.random.default_rng(6)
  for count in (22, 2):
    marks = rng.normal(size=(count, systems.WIDTH)).astype(np.float32)
    adapter = projector | {"model.embed_tokens.weight": marks}
    spread = found._replace(parts=found.parts | {"adapter": adapter})
    record, got = run(spread, tmp_path / str(count), ours, vocabulary=Vocabulary(2))
    embed = got["decoder/embed/embedding"]
    np.testing.assert_array_equal(embed[-2:], marks[-2:])
    plain = marks if count == 22 else found.ours["decoder/embed/embedding"]
    np.testing.assert_array_equal(embed[:20], plain[:20])
    assert record["vocabulary"]["decoder/head/kernel"]["mean"] == 2
