"""Makes prompt_ids.json.gz: what the slow Hugging Face tokenizer says of 2,100 pairs.

  python make_prompt_ids.py texts texts.json                       (with imax_jax)
  python make_prompt_ids.py ids texts.json prompt_ids.json.gz mistral=DIR llama=DIR

The second runs where transformers 4.30.0 and sentencepiece 0.1.99 are (Python 3.10), the
versions that Uni-Med names; each DIR holds a tokenizer.model and a tokenizer_config.json
of Llama-2's form. mistral: mistral-common's tokenizer.model.v1 (Apache-2.0). llama:
LLaMA's own, of which only a digest of the ids and some ids are kept.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import sys

LINES = (
  "The heart is mildly enlarged.",
  "There is a small left pleural effusion with adjacent atelectasis.",
  "No pneumothorax or focal consolidation.",
  "Degenerative changes of the thoracic spine, unchanged since the prior study.",
  "IMPRESSION: 1. Mild cardiomegaly. 2. No acute process.",
  "ET tube ends 3.5 cm above the carina; NG tube courses below the diaphragm.",
)
ODD = (
  "  two  spaces   three    four ", "\tTab\n\nlines\r\n", "≥ 2 cm, 38 °C, ½, µm", "肺の影 — 肺炎",
  "Ödem, épanchement, nódulo", "e\u0301 o\u0308 combining", "😀👩‍⚕️", "\u200bzero\u00a0width", "‘quotes’ “both”",
  "----====....____", "<0x0A> <Img> </Img> [INST] [/INST]", "$$ a$$ $$$$", "</ s> <|im_start|>", "Здравствуйте",
  "مرحبا", "1,0,1,1,0", "<12><345><6><1000>", "a" * 40, " " * 37, "\n" * 5, "x", "-", " ", "{prompt}{}{0}",
  "pneumonoultramicroscopicsilicovolcanoconiosis", "\u2028\u2029", "\x01\x7f", "\U0002a6d7",
)  # fmt: skip


def texts() -> dict[str, list[list[str]]]:
  """{"pairs": [[prompt, answer]] of the seven tasks, "raw": [[text]]}; all invented."""
  from imax_jax import schema
  from imax_jax.data import prompts

  rng, origin = random.Random(0), schema.Origin("invented", "none", 0, "none")

  def odd() -> str:
    return " ".join(rng.choice(ODD) for _ in range(rng.randint(1, 3)))

  def pair(task: str, subtask: str, target: schema.Target) -> list[str]:
    annotation = schema.Annotation(f"i{rng.random()}", task, subtask, target, origin)
    entry = prompts.make_entry(annotation, 0)
    return [entry.prompt, entry.answer]

  pairs = []
  for _ in range(300):
    x, y = (
      sorted(rng.random() for _ in range(2)),
      sorted(rng.random() for _ in range(2)),
    )
    region = schema.Region(
      rng.choice((*schema.ORGANS, "Nodule", odd() + ".")), (x[0], y[0], x[1], y[1])
    )
    report = " ".join(rng.choice(LINES) for _ in range(rng.randint(1, 8)))
    bits = tuple(rng.randint(0, 1) for _ in schema.FINDINGS)
    questions = ("is there edema?", "which side is the effusion on?", odd() + "?")
    answers = tuple(f"{rng.choice(LINES)} {odd()}." for _ in range(rng.randint(0, 2)))
    pairs += [
      pair("calculation", rng.choice(("ctr", "cpar")), schema.Ratio(rng.random())),
      pair("report", "", schema.Report(f"{report} {odd()}" if rng.random() < 0.4 else report)),
      pair("multi_class", "", schema.Grade(rng.choice(schema.EDEMA_GRADES))),
      pair("multi_label", "", schema.Bits(bits)),
      pair("rec", "", region),
      pair("reg", "", region),
      pair("vqa", "", schema.Answer(rng.choice(questions), answers)),
    ]  # fmt: skip
  marks = ("<s>", "</s>", "<unk>", "a<unk> b", " <s> x</s>")
  raw = [*ODD, *marks, "".join(ODD), *(rng.choice(" -=aé\n") * n for n in range(1, 60))]
  return {"pairs": pairs, "raw": [[text] for text in raw]}


def strings(data: dict[str, list[list[str]]]) -> list[str]:
  """All that is tokenised, in the published layout; as `Uni-Med` splits its text."""
  found = ["[INST] <Img>", "<s>[INST] <Img>"]
  for prompt, answer in data["pairs"]:
    found += [f"</Img> {prompt} [/INST]", f"</Img> {prompt}  [/INST]", f"{answer}</s>"]
  return [*found, *(text for (text,) in data["raw"])]


def digest(ids: list[list[int]]) -> str:
  return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def ids_of(folder: str, wanted: list[str]) -> list[list[int]]:
  from transformers import LlamaTokenizer

  slow = LlamaTokenizer.from_pretrained(folder, use_fast=False)
  ids = [slow(text, add_special_tokens=False)["input_ids"] for text in wanted]
  # The evaluation's first piece is the only one that asks for special tokens.
  ids[1] = slow(wanted[1], add_special_tokens=True)["input_ids"]
  return ids


def main() -> None:
  verb, source, *rest = sys.argv[1:]
  if verb == "texts":
    with open(source, "w", encoding="utf8") as file:
      json.dump(texts(), file)
    return
  with open(source, encoding="utf8") as file:
    made = json.load(file)
  for part in rest[1:]:
    name, folder = part.split("=")
    ids = ids_of(folder, strings(made))
    made[name] = {"digest": digest(ids), "ids": ids if name == "mistral" else ids[:600]}
  text = json.dumps(made, separators=(",", ":")).encode()
  with open(rest[0], "wb") as out:
    out.write(gzip.compress(text, 9, mtime=0))


if __name__ == "__main__":
  main()
