"""Exports as LLaVA, LLaMA-Factory and ms-swift read them, and back as records.

The three readers below follow the documentation and loaders of the three: what they
require of a file, which fields they take, where they look for images.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from imax_jax.data import builder
from imax_jax.data import interchange
from imax_jax.data import prompts
from imax_jax.data.construct import Datasets
from imax_jax.data.construct import Selected
from imax_jax.data.conversations import MARKS
from imax_jax.schema import Annotation
from imax_jax.schema import Answer
from imax_jax.schema import Bits
from imax_jax.schema import Grade
from imax_jax.schema import ImageRecord
from imax_jax.schema import Origin
from imax_jax.schema import Radiograph
from imax_jax.schema import Ratio
from imax_jax.schema import Region
from imax_jax.schema import Report

TARGETS = [
  ("calculation", "ctr", Ratio(0.1 + 0.2)),
  ("report", "", Report('Clear. "Größe" \n ___ \\ \u2028 ')),
  ("multi_class", "", Grade("PA", ("PA", "AP"))),
  ("multi_label", "", Bits((0, 1) * 5)),
  ("rec", "heart", Region("heart", (1 / 3, 0.1, 0.7, 1.0))),
  ("reg", "heart", Region("heart", (1 / 3, 0.1, 0.7, 1.0), (512, 512), "yx")),
  ("vqa", "choose", Answer("Which?", (), "anatomy")),
  ("vqa", "query", Answer("Where?", ("left lung", "é/f (g)"))),
]
STYLES = ["conversations", "messages"]


def picture(seed: int, kind: str) -> bytes:
  pixels = np.random.default_rng(seed).integers(0, 256, (20, 30), np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, kind)
  return buffer.getvalue()


def annotated(number: int, image_id: str) -> list[Annotation]:
  origin = Origin("invented", "f.csv", 7, "invented/rule")
  return [
    Annotation(image_id, task, subtask, target, origin)
    for task, subtask, target in (TARGETS[number:] + TARGETS[:number])[: number + 1]
  ]


def make_record(number: int) -> ImageRecord:
  image_id = f"a/{number} é"
  entries = [
    prompts.make_entry(a, n) for n, a in enumerate(annotated(number, image_id))
  ]
  kind = ("PNG", "JPEG")[number % 2]
  ids = (image_id, f"s{number}", f"p{number}", "PA")
  return ImageRecord(*ids, picture(number, kind), tuple(entries))


RECORDS = [make_record(number) for number in range(len(TARGETS))]


def export(
  folder: Path, records=RECORDS, *, name: str = "x.jsonl", **options
) -> tuple[Path, Path]:
  path, images = folder / "out" / name, folder / "out" / "images"
  count = interchange.export_jsonl(records, path, images, **options)
  assert count == len(objects(path))
  return path, images


def objects(path: Path) -> list[dict]:
  text = path.read_text(encoding="ascii")
  if path.suffix == ".json":
    return json.loads(text)
  return [json.loads(line) for line in text.splitlines()]


# ── What the three programs would see ─────────────────────────────────────────────

# (the image's bytes, [(prompt, answer), …])
Seen = list[tuple[bytes, list[tuple[str, str]]]]


def pairs(texts: list[str]) -> list[tuple[str, str]]:
  return list(zip(texts[::2], texts[1::2], strict=True))


def llava_sees(data_path: Path, image_folder: Path) -> Seen:
  """train.py: json.load of a list; a mark is cut out of its turn, stripped, put first."""
  samples = json.loads(data_path.read_text(encoding="ascii"))
  assert isinstance(samples, list)
  assert len({sample["id"] for sample in samples}) == len(samples)
  seen = []
  for sample in samples:
    texts, marks = [], 0
    for number, turn in enumerate(sample["conversations"]):
      assert turn["from"] == ("human", "gpt")[number % 2]
      text = turn["value"]
      if "<image>" in text:
        marks += 1
        assert number == 0
        text = text.replace("<image>", "").strip()
      texts.append(text)
    assert marks == 1  # as many image features as marks
    image = Path(os.path.join(image_folder, sample["image"])).read_bytes()
    Image.open(io.BytesIO(image)).convert("RGB")
    seen.append((image, pairs(texts)))
  return seen


def llama_factory_sees(dataset_dir: Path, name: str, media_dir: Path) -> Seen:
  """converter.py and mm_plugin.py: roles in turn, as many placeholders as files."""
  info = json.loads((dataset_dir / "dataset_info.json").read_text())[name]
  assert info["formatting"] == "sharegpt"
  columns, tags = info["columns"], info["tags"]
  roles = (tags["user_tag"], tags["assistant_tag"])
  seen = []
  for example in objects(dataset_dir / info["file_name"]):
    messages = example[columns["messages"]]
    assert len(messages) % 2 == 0
    texts = []
    for number, message in enumerate(messages):
      assert message[tags["role_tag"]] == roles[number % 2]
      texts.append(message[tags["content_tag"]])
    everything = "".join(texts)
    files = example[columns["images"]]
    assert everything.count("<image>") == len(files) == 1
    assert "<video>" not in everything and "<audio>" not in everything
    path = os.path.join(media_dir, files[0])
    assert os.path.isfile(path)
    texts[0] = texts[0].replace("<image>", "").removeprefix("\n")
    seen.append((Path(path).read_bytes(), pairs(texts)))
  return seen


def swift_sees(path: Path, root_image_dir: Path) -> Seen:
  """AutoPreprocessor: the names of fields and roles that it knows, in its order."""
  seen = []
  for row in objects(path):
    keys = [k for k in ("conversation", "conversations", "messages") if k in row]
    assert len(keys) == 1  # with two it renames neither
    texts = []
    for number, message in enumerate(row[keys[0]]):
      (role_key,) = {"role", "from"} & message.keys()
      (content_key,) = {"content", "value"} & message.keys()
      known = ({"user", "human"}, {"assistant", "gpt", "bot"})[number % 2]
      assert message[role_key] in known
      assert message[content_key]
      texts.append(message[content_key])
    assert isinstance(row["images"], list)  # "image" beside it is left alone
    assert (
      not {"objects", "label", "tools", "channel", "rejected_response"} & row.keys()
    )
    assert "".join(texts).count("<image>") == len(row["images"]) == 1
    assert len(row["images"][0]) <= 200  # a longer one it takes for base64
    image = os.path.join(root_image_dir, row["images"][0])
    texts[0] = texts[0].replace("<image>", "").removeprefix("\n")
    seen.append((Path(image).read_bytes(), pairs(texts)))
  return seen


def expected(records: list[ImageRecord], per_image: bool) -> Seen:
  wanted = []
  for record in records:
    turns = [(entry.prompt, entry.answer) for entry in record.entries]
    for group in [turns] if per_image else [[turn] for turn in turns]:
      wanted.append((record.image, group))
  return wanted


@pytest.mark.parametrize("per_image", [False, True])
def test_llava_reads_a_json_list(tmp_path, per_image):
  path, images = export(tmp_path, name="x.json", per_image=per_image)
  assert llava_sees(path, images) == expected(RECORDS, per_image)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_swift_reads_both_styles(tmp_path, style, per_image):
  path, images = export(tmp_path, style=style, per_image=per_image)
  assert swift_sees(path, images) == expected(RECORDS, per_image)


@pytest.mark.parametrize("style", STYLES)
def test_each_field_has_one_type_on_all_lines(tmp_path, style):
  """`datasets` takes a column's type from the first lines, and fails at another."""

  def kind(value):
    if isinstance(value, dict):
      return {key: kind(item) for key, item in value.items()}
    if isinstance(value, list):
      (item_kind,) = [k for n, k in enumerate(map(kind, value)) if n == 0]
      assert all(kind(item) == item_kind for item in value)
      return [item_kind]
    return type(value)

  for per_image in (False, True):
    path, _ = export(tmp_path, style=style, per_image=per_image)
    kinds = [kind(line) for line in objects(path)]
    assert all(one == kinds[0] for one in kinds)


# ── A split, out of the built data ────────────────────────────────────────────────


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  folder = tmp_path_factory.mktemp("split")
  groups: dict[str, list[Selected]] = {"imax_train": [], "imax_test": []}
  for number in range(len(TARGETS)):
    path = folder / f"{number}.png"
    path.write_bytes(picture(number, "PNG"))
    ids = (f"i{number}", f"s{number}", f"p{number}", "PA")
    radiograph = Radiograph(*ids, 30, 20, str(path))
    annotations = annotated(number, radiograph.image_id)
    entries = tuple(prompts.make_entry(a, n) for n, a in enumerate(annotations))
    split = "imax_test" if number > 5 else "imax_train"
    groups[split].append(Selected(radiograph, entries))
  builder.build(Datasets(groups, {}, {}, {}), folder / "data")
  return folder / "data"


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_llama_factory_finds_each_exported_split(built, tmp_path, style, per_image):
  options = {"style": style, "per_image": per_image}
  for split in ("imax_train", "imax_test"):
    told: list[int] = []
    count = interchange.export_split(
      built, split, tmp_path, **options, progress=lambda *done, to=told: to.extend(done)
    )
    records = list(builder.open_split(built, split))
    assert told[::2] == list(range(1, len(records) + 1))
    assert set(told[1::2]) == {len(records)}
    wanted = expected(records, per_image)
    assert count == len(wanted)
    images = tmp_path / "images"
    assert llama_factory_sees(tmp_path, split, images) == wanted
    back = interchange.import_jsonl(tmp_path / f"{split}.jsonl", images)
    assert list(back) == records
  info = json.loads((tmp_path / "dataset_info.json").read_text())
  assert list(info) == ["imax_train", "imax_test"]


def test_a_split_goes_to_llava_by_its_suffix(built, tmp_path):
  interchange.export_split(built, "imax_test", tmp_path, suffix=".json")
  records = list(builder.open_split(built, "imax_test"))
  seen = llava_sees(tmp_path / "imax_test.json", tmp_path / "images")
  assert seen == expected(records, per_image=False)
  with pytest.raises(ValueError, match=r"suffix '\.txt': expected one of"):
    interchange.export_split(built, "imax_test", tmp_path, suffix=".txt")
  with pytest.raises(ValueError, match="style 'llava': expected one of"):
    interchange.export_split(built, "imax_test", tmp_path, style="llava")
  with pytest.raises(FileNotFoundError, match="there are imax_test, imax_train"):
    interchange.export_split(built, "dmax_train", tmp_path)


# ── There and back ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_an_export_comes_back_whole(tmp_path, style, per_image, name):
  path, images = export(tmp_path, name=name, style=style, per_image=per_image)
  assert list(interchange.import_jsonl(path, images)) == RECORDS


def test_the_fields_of_a_line_are_those_documented(tmp_path):
  record = RECORDS[4]
  entry = record.entries[0]
  about = {"image_id": "a/4 é", "study_id": "s4", "patient_id": "p4", "view": "PA"}
  origin = {"source": "invented", "file": "f.csv", "row": 7, "rule": "invented/rule"}
  image = "a%2f%4%20%%e9%.png"
  path, images = export(tmp_path, [record])
  line = objects(path)[0]
  assert json.loads(line.pop("target"))["kind"] == "Region"
  assert line == {
    "image": image,
    "images": [image],
    "conversations": [
      {"from": "human", "value": f"<image>\n{entry.prompt}"},
      {"from": "gpt", "value": entry.answer},
    ],
    "id": "a/4 é/rec/heart/0",
    "task": "rec",
    "subtask": "heart",
    "origin": origin,
    **about,
  }
  assert (images / line["image"]).read_bytes() == record.image

  path, _ = export(tmp_path, [record], style="messages", per_image=True)
  (line,) = objects(path)
  assert line["messages"][:3] == [
    {"role": "user", "content": f"<image>{entry.prompt}"},
    {"role": "assistant", "content": entry.answer},
    {"role": "user", "content": record.entries[1].prompt},
  ]
  assert line["id"] == "a/4 é"
  assert line["ids"] == [entry.id for entry in record.entries]
  assert line["tasks"] == ["rec", "reg", "vqa", "vqa", "calculation"]
  assert "image" not in line and line["origins"] == [origin] * 5


TEXT = st.text(min_size=1).filter(lambda text: not any(mark in text for mark in MARKS))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), st.data())
def test_any_words_come_back(tmp_path_factory, texts, data):
  entry = RECORDS[0].entries[0]
  entries = tuple(
    dataclasses.replace(entry, prompt=prompt, answer=answer) for prompt, answer in texts
  )
  record = dataclasses.replace(RECORDS[0], entries=entries)
  options = {
    "style": data.draw(st.sampled_from(STYLES)),
    "per_image": data.draw(st.booleans()),
    "name": data.draw(st.sampled_from(["x.jsonl", "x.json"])),
  }
  path, images = export(tmp_path_factory.mktemp("any"), [record], **options)
  assert list(interchange.import_jsonl(path, images)) == [record]


def test_a_very_long_id_has_a_file_too(tmp_path):
  records = [
    dataclasses.replace(
      RECORDS[0],
      image_id=image_id,
      entries=(dataclasses.replace(RECORDS[0].entries[0], image_id=image_id),),
    )
    for image_id in ("folder/" * 60 + "a", "folder/" * 60 + "b")
  ]
  path, images = export(tmp_path, records)
  assert swift_sees(path, images) == expected(records, per_image=False)
  assert list(interchange.import_jsonl(path, images)) == records


# ── What is refused ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("field", ["prompt", "answer"])
@pytest.mark.parametrize("mark", MARKS)
def test_a_text_that_spells_a_mark_is_refused_unseen(tmp_path, mark, field):
  entry = dataclasses.replace(RECORDS[1].entries[1], **{field: f"secret {mark}"})
  record = dataclasses.replace(RECORDS[1], entries=(RECORDS[1].entries[0], entry))
  with pytest.raises(ValueError, match=f"entry {entry.id}: its text spells") as error:
    export(tmp_path, [RECORDS[0], record], per_image=True)
  assert "secret" not in str(error.value)
  assert [path.name for path in (tmp_path / "out").iterdir()] == ["images"]


def test_what_can_not_come_back_is_refused(tmp_path):
  with pytest.raises(ValueError, match="image a/1 é: comes twice"):
    export(tmp_path, [RECORDS[1], RECORDS[0], RECORDS[1]])
  with pytest.raises(ValueError, match="image a/1 é: has no entry"):
    export(tmp_path, [dataclasses.replace(RECORDS[1], entries=())])
  silent = dataclasses.replace(RECORDS[0].entries[0], answer="")
  with pytest.raises(ValueError, match=f"entry {silent.id}: its answer is empty"):
    export(tmp_path, [dataclasses.replace(RECORDS[0], entries=(silent,))])


def test_a_failed_export_leaves_the_one_before(tmp_path):
  path, images = export(tmp_path)
  before = path.read_bytes()
  with pytest.raises(ValueError, match="comes twice"):
    export(tmp_path, [RECORDS[0], RECORDS[0]])
  assert path.read_bytes() == before
  assert list(interchange.import_jsonl(path, images)) == RECORDS


def test_only_the_owner_reads_it(tmp_path):
  (tmp_path / "out" / "images").mkdir(parents=True, mode=0o700)
  seen_by_all = tmp_path / "out" / "images" / "a%2f%0%20%%e9%.png"
  seen_by_all.write_bytes(b"before")
  seen_by_all.chmod(0o644)
  path, images = export(tmp_path)
  assert seen_by_all.read_bytes() == RECORDS[0].image
  for file in (path, *images.iterdir()):
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
  path = tmp_path / "new" / "x.jsonl"
  interchange.export_jsonl(RECORDS, path, tmp_path / "new" / "images")
  for folder in (path.parent, path.parent / "images"):
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def _damaged(line: dict, change: str) -> str:
  turns = line.get("conversations") or line["messages"]
  match change:
    case "cut":
      return json.dumps(line)[:-9]
    case "nested":
      return "[" * 100_000
    case "no object":
      return '"secret"'
    case "task":
      del line["task"]
    case "kind":
      line["target"] = line["target"].replace("Ratio", "Secret")
    case "roles":
      who = "from" if "from" in turns[0] else "role"
      turns[0][who], turns[1][who] = turns[1][who], turns[0][who]
    case "half a turn":
      turns.append(turns[0])
    case "no mark":
      text = "value" if "value" in turns[0] else "content"
      turns[0][text] = turns[0][text].replace("<image>", "")
    case "two images":
      line["images"] *= 2
    case "origin":
      del line["origin"]["rule"]
    case "number":
      line["image_id"] = 3
    case "no turn":
      turns.clear()
  return json.dumps(line)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
  "change",
  ["cut", "nested", "no object", "task", "kind", "roles", "half a turn", "no mark",
   "two images", "origin", "number", "no turn"],
)  # fmt: skip
def test_a_bad_line_is_named_and_not_shown(tmp_path, change, style):
  path, images = export(tmp_path, RECORDS[:2], style=style)
  first, second, third = path.read_text().splitlines()
  path.write_text("\n".join([first, second, _damaged(json.loads(first), change)]))
  assert third
  with pytest.raises(ValueError, match=r"x\.jsonl line 3: expected a conv") as error:
    list(interchange.import_jsonl(path, images))
  assert "Based on" not in str(error.value) and "ecret" not in str(error.value)


@pytest.mark.parametrize("image", ["../x.png", "/etc/passwd", "a\\b.png", ".."])
def test_images_outside_their_folder_are_not_read(tmp_path, image):
  path, images = export(tmp_path, RECORDS[:1])
  (line,) = objects(path)
  path.write_text(json.dumps(line | {"images": [image]}))
  with pytest.raises(ValueError, match="outside its own folder"):
    list(interchange.import_jsonl(path, images))


def test_a_missing_image_and_scattered_lines_are_named(tmp_path):
  path, images = export(tmp_path, RECORDS[:2])
  lines = path.read_text().splitlines()
  path.write_text("\n".join([lines[1], lines[0], lines[2]]))
  with pytest.raises(ValueError, match="found those of a/1 é apart"):
    list(interchange.import_jsonl(path, images))
  path.write_text("\n".join(lines))
  (images / json.loads(lines[1])["image"]).unlink()
  with pytest.raises(FileNotFoundError, match=r"expected an image that x\.jsonl names"):
    list(interchange.import_jsonl(path, images))
