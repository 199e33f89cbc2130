"""A recipe remakes the very datasets, notices what changed, and tells no patient's text."""

import dataclasses
import gzip
import json

import pytest

from imax_jax.data import construct
from imax_jax.data import recipe
from imax_jax.schema import ORGANS
from imax_jax.schema import Annotation
from imax_jax.schema import Answer
from imax_jax.schema import Origin
from imax_jax.schema import Radiograph
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report

SETTINGS = {"boxes.order": "xy", "max_report_words": 0, "options.vqa.keep_empty": True}
PLANTED = "Invented words about an invented patient"


def sources():
  """60 images of 30 patients: reports, ratios, boxes and questions, two a row."""
  radiographs, annotations = {}, []

  def say(image, task, subtask, target, row):
    origin = Origin("made", f"{task}.csv", row, f"made/{task}")
    annotations.append(Annotation(image, task, subtask, target, origin))

  for n in range(60):
    image = f"i{n:02}"
    radiographs[image] = Radiograph(
      image, f"s{n}", f"p{n // 2}", "PA" if n % 3 else "AP", 30, 20, f"/x/{n}.png"
    )
    say(image, "report", "", Report(f"{PLANTED}, the {n}th."), n)
    if n % 2:
      for organ in ORGANS:
        for task in ("rec", "reg"):
          say(image, task, organ, Region(organ, (0.1, 0.2, 0.3, 0.4 + n / 100)), n)
    if n % 4 != 2:
      for name in ("ctr", "cpar"):
        say(image, "calculation", name, Ratio(0.4 + n / 1000), n)
    for k in range(n % 3):
      answers = (f"{PLANTED} {n} {k}",)
      say(image, "vqa", "query", Answer(f"Where is it? {PLANTED}", answers), n // 2)
  return radiographs, annotations


def made(annotations=None):
  radiographs, said = sources()
  return construct.construct(
    radiographs,
    said if annotations is None else annotations,
    seed=3,
    num_images=30,
    controls=("same_images",),
  )


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch):
  monkeypatch.setattr(recipe, "GROUP", 8)


@pytest.fixture
def path(tmp_path):
  recipe.write_recipe(made(), tmp_path / "recipe.jsonl.gz", SETTINGS)
  return tmp_path / "recipe.jsonl.gz"


def test_a_recipe_remakes_the_datasets(path):
  radiographs, annotations = sources()
  got = recipe.select(radiographs, reversed(annotations), recipe.read_recipe(path))
  assert got == made()
  assert set(got.splits) > {"imax_train", "imax_test", "dmax_train", "core_train"}


def test_it_tells_where_and_not_what(path):
  text = gzip.decompress(path.read_bytes()).decode()
  assert PLANTED not in text and "Where is it" not in text
  header, *lines = map(json.loads, text.splitlines())
  splits = made().splits
  entries = [e for group in splits.values() for s in group for e in s.entries]
  assert len(lines) == len(entries)
  answers = {e.answer for e in entries if e.task not in ("reg",)}
  assert not any(answer in text for answer in answers)
  total = sum(map(len, splits.values()))
  assert len(header["groups"]) == total // 8
  assert header["publishable"] is True
  assert header["splits"]["imax_test"]["images"] == len(splits["imax_test"])
  line = next(line for line in lines if line["task"] == "rec")
  image, task, organ, number = line["id"].split("/")
  assert (line["image"], line["task"], line["subtask"], number) == (
    image, task, organ, "0",
  )  # fmt: skip
  assert line["template"] in ("rec/0", "rec/1")
  assert (line["source"], line["file"]) == ("made", "rec.csv")
  assert (line["row"], line["rule"]) == (int(image[1:]), "made/rec")


def test_fewer_images_than_a_group_are_not_to_be_published(tmp_path, monkeypatch):
  total = sum(map(len, made().splits.values()))
  for group, publishable in ((total, True), (total + 1, False)):
    monkeypatch.setattr(recipe, "GROUP", group)
    recipe.write_recipe(made(), tmp_path / "r.gz", SETTINGS)
    header = recipe.read_recipe(tmp_path / "r.gz").header
    assert (header["publishable"], len(header["groups"])) == (publishable, 1)


def test_equal_datasets_have_equal_recipes(path, tmp_path):
  recipe.write_recipe(made(), tmp_path / "other name", SETTINGS)
  packed = path.read_bytes()
  assert (tmp_path / "other name").read_bytes() == packed
  assert packed[4:8] == bytes(4)  # the time in gzip's header (RFC 1952, 2.3.1)


def changed(place, **fields):
  _, annotations = sources()
  annotations[place] = dataclasses.replace(annotations[place], **fields)
  return annotations


def test_a_changed_annotation_is_noticed(path):
  radiographs, annotations = sources()
  content = recipe.read_recipe(path)
  used = {line["id"] for line in content.entries}
  place = next(
    n
    for n, a in enumerate(annotations)
    if a.task == "report" and f"{a.image_id}/report//0" in used
  )
  image = annotations[place].image_id
  with pytest.raises(ValueError, match=r"\d+ of \d+ groups of images") as error:
    recipe.select(radiographs, changed(place, target=Report("Else.")), content)
  assert "Else" not in str(error.value) and PLANTED not in str(error.value)
  held = sum(line["id"] == f"{image}/report//0" for line in content.entries)
  assert int(str(error.value).split()[0]) <= held

  moved = dataclasses.replace(annotations[place].origin, row=1000)
  with pytest.raises(ValueError, match=f"come from another row.*{image}/report//0"):
    recipe.select(radiographs, changed(place, origin=moved), content)

  with pytest.raises(ValueError, match=f"are not there.*{image}/report//0"):
    recipe.select(radiographs, changed(place, task="vqa", subtask="x"), content)


@pytest.mark.parametrize("place", [0, -1])
def test_a_changed_patient_is_noticed(tmp_path, monkeypatch, place):
  splits = made().splits
  total = sum(map(len, splits.values()))
  size = next(n for n in range(3, 9) if total % n)  # the last group is larger
  monkeypatch.setattr(recipe, "GROUP", size)
  recipe.write_recipe(made(), tmp_path / "r.gz", SETTINGS)
  radiographs, annotations = sources()
  content = recipe.read_recipe(tmp_path / "r.gz")
  assert len(content.header["groups"]) == total // size
  image = content.entries[place]["image"]
  radiographs[image] = dataclasses.replace(radiographs[image], patient_id="p99")
  number = range(total // size)[place]
  with pytest.raises(ValueError, match=f"group {number} "):
    recipe.select(radiographs, annotations, content)


def test_missing_images_are_counted(path):
  radiographs, annotations = sources()
  content = recipe.read_recipe(path)
  image = content.entries[0]["image"]
  del radiographs[image]
  count = sum(line["image"] == image for line in content.entries)
  with pytest.raises(
    ValueError, match=f"{count} of {len(content.entries)} entries are"
  ):
    recipe.select(radiographs, annotations, content)


def test_an_annotation_without_words_matters_only_where_it_is_used(path):
  radiographs, annotations = sources()
  content = recipe.read_recipe(path)
  wordless = Answer("", (), "")
  for image in radiographs:
    annotations.append(
      Annotation(image, "vqa", "verify", wordless, Origin("z", "z.csv", 0, "z"))
    )
  assert recipe.select(radiographs, annotations, content) == made()


def test_other_settings_are_named(path):
  content = recipe.read_recipe(path)
  recipe.check_settings(content, SETTINGS)
  # What only one of the two knows does not matter: an option of a source not used here.
  recipe.check_settings(content, {"boxes.order": "xy", "options.nih.x": 1})
  with pytest.raises(
    ValueError, match=r"boxes\.order='xy' \(here 'yx'\); give the same"
  ):
    recipe.check_settings(content, SETTINGS | {"boxes.order": "yx"})


def test_an_entry_is_found(path):
  entry = made().splits["imax_train"][0].entries[0]
  found = recipe.find(path, entry.id)
  assert {line["split"] for line in found} >= {"imax_train"}
  assert {line["row"] for line in found} == {entry.origin.row}
  with pytest.raises(ValueError, match="no entry 'i00/none'"):
    recipe.find(path, "i00/none")


def refused(path, why):
  """That the recipe is refused with the one error, which says `why`."""
  said = rf"recipe\.jsonl\.gz: expected a whole recipe of format 2 \(.*{why}.*copy it"
  with pytest.raises(ValueError, match=said) as error:
    recipe.read_recipe(path)
  assert type(error.value) is ValueError


@pytest.mark.parametrize(
  ("damage", "why"),
  [
    ("cut", "end-of-stream"),
    ("empty", "not enough values"),
    ("text", "Expecting value"),
    ("flipped", "decompressing"),
    ("line", "not what its header says"),
    ("deep", "recursion"),
    ("latin", "ascii"),
  ],
)
def test_a_damaged_file_is_named(path, damage, why):
  packed = path.read_bytes()
  text = gzip.decompress(packed)
  path.write_bytes(
    {
      "cut": packed[:-20],
      "empty": b"",
      "text": b"an invented letter",
      "flipped": packed[:10] + b"\xff" * 64,
      "line": gzip.compress(text.rsplit(b"\n", 2)[0] + b"\n"),
      "deep": gzip.compress(text + b"[" * 100_000 + b"]" * 100_000),
      "latin": gzip.compress(text + b"\xe9\n"),
    }[damage]
  )
  refused(path, why)


def test_one_that_a_browser_unpacked_is_the_same(path):
  expected = recipe.read_recipe(path)
  path.write_bytes(gzip.decompress(path.read_bytes()))
  assert recipe.read_recipe(path) == expected


def test_a_bomb_is_not_unpacked(path):
  packed = path.read_bytes()
  assert len(gzip.decompress(packed)) < 20 * len(packed)  # the limit is 200
  path.write_bytes(gzip.compress(b" " * 2**24 + gzip.decompress(packed)))
  refused(path, "over 200 times its size")


def test_none_at_all_is_another_matter(tmp_path):
  with pytest.raises(FileNotFoundError):
    recipe.read_recipe(tmp_path / "recipe.jsonl.gz")


COUNTS = {"shortfall": {}, "quota_shortfall": {}, "dropped": {}}
SIZES = {"images": 0, "entries": 0}


@pytest.mark.parametrize(
  ("key", "value", "why"),
  [
    ("format", 1, "another format"),
    ("publishable", "yes", "publishable"),
    ("settings", "x", "settings"),
    ("splits", [], "splits"),
    ("splits", {}, "other splits"),
    ("splits", {"../x": SIZES}, "other splits"),
    ("splits", {"imax_test": 3}, "splits or counts"),
    ("splits", {"imax_test": {"images": 0}}, "splits of another kind"),
    ("splits", {"imax_test": SIZES | {"x": 0}}, "splits of another kind"),
    ("splits", {"imax_test": SIZES | {"images": "0"}}, "splits or counts"),
    ("splits", {"imax_test": SIZES | {"images": True}}, "splits or counts"),
    ("splits", {"imax_test": {"images": 6, "entries": -1}}, "splits or counts"),
    ("groups", None, "groups"),
    ("groups", {}, "groups"),
    ("groups", [], "groups"),
    ("groups", "numbers", "groups"),
    ("counts", None, "counts"),
    ("counts", [], "counts"),
    ("counts", COUNTS | {"splits": {}}, "counts"),
    ("counts", {"dropped": {}}, "counts"),
    ("counts", COUNTS | {"dropped": []}, "counts"),
    ("counts", COUNTS | {"dropped": {"x": "1"}}, "counts"),
    ("counts", COUNTS | {"dropped": {"\x1b[2J": 1}}, "counts"),
  ],
)
def test_a_damaged_header_is_named(path, key, value, why):
  header, *lines = map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
  if value == "numbers":
    value = [7] * len(header["groups"])
  if key == "splits" and value:
    value = header["splits"] | value
  rewrite(path, header | {key: value}, lines)
  refused(path, why)
  if value is None:
    del header[key]
    rewrite(path, header, lines)
    refused(path, why)


def rewrite(path, header, lines):
  text = "".join(f"{json.dumps(line)}\n" for line in (header, *lines))
  path.write_bytes(gzip.compress(text.encode()))


@pytest.mark.parametrize("header", [None, 3, "x", [], {}, list(range(9))])
def test_a_header_that_is_none_is_named(path, header):
  rewrite(path, header, [])
  refused(path, "format")


def test_damaged_entries_are_named(path):
  header, *lines = map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
  first, *others = lines
  for entry, why in (
    (dict.fromkeys(first, 1), "another kind"),
    (first | {"row": "1"}, "another kind"),
    (first | {"row": True}, "another kind"),
    (first | {"id": None}, "another kind"),
    (first | {"image": ["i7"]}, "another kind"),
    (first | {"split": {}}, "another kind"),
    (first | {"split": "other"}, "its header does not name"),
    (others[0], "twice"),
    (first | {"image": "other"}, "images in imax_train, not what its header"),
    (first | {"more": 1}, "other fields"),
    ({"line": 1}, "other fields"),
    (list(first), "other fields"),
    (None, "other fields"),
  ):
    rewrite(path, header, [entry, *others])
    refused(path, why)
  rewrite(path, header, lines)
  assert recipe.read_recipe(path).entries == lines
