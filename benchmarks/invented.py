"""Reports and answers that nobody wrote, in pairs, for scores to be measured on.

A pair is a reference and what a model might have said: the same, cut, reworded, of
another film, or nothing.
"""

from __future__ import annotations

import random

_SIDES = ("left", "right", "bilateral", "left-sided", "right-sided", "Lt.", "Rt.")
_ZONES = (
  "lower lobe", "upper lobe", "base", "apex", "perihilar region", "mid-to-lower zone",
  "costophrenic angle", "retrocardiac area", "lung base", "RUL", "LLL",
)  # fmt: skip
_FINDINGS = (
  "pleural effusion", "pneumothorax", "consolidation", "atelectasis", "rib fracture",
  "interstitial edema", "nodule", "opacity", "infiltrate", "hilar/mediastinal mass",
  "peri-bronchial cuffing", "scarring", "calcified granuloma", "hyperinflation",
)  # fmt: skip
_DEGREES = ("small", "moderate", "large", "mild", "subtle", "tiny", "stable", "new")
_SENTENCES = (
  "There is a {degree} {side} {finding}.",
  "No {finding} or {finding} is seen.",
  "No evidence of {finding}.",
  "The heart is {degree}ly enlarged, with a cardiothoracic ratio of 0.{n}.",
  "Heart size is normal.",
  "The cardiomediastinal silhouette is within normal limits.",
  "{Finding} in the {side} {zone}, {degree} since ___.",
  "A {n} mm {finding} projects over the {side} {zone}.",
  "A 1.{n} x 2.{n} cm mass is seen in the {zone}; CT is advised.",
  "{Side} {zone} {finding} has increased/decreased.",
  "Cannot exclude {finding} (versus {finding}).",
  "There's no change; the patient's lines don't project over the {zone}.",
  "Endotracheal tube tip is {n}.5 cm above the carina",
  "PICC line ends in the mid SVC.",
  "IMPRESSION: {n}. {Finding}. 2. No {finding}.",
  "Findings were discussed with Dr. ___ at {n}:30 p.m. on ___ by phone.",
  "The lungs are clear, without {finding},{finding} or {finding}",
  'Possible "{finding}" vs. {finding}, e.g. {zone}.',
  "T{n}-T12 vertebral bodies are intact; {n}/12 ribs seen.",
  "COPD/CHF changes persist - {degree} {finding} -- correlate clinically.",
  "Compared to [**2013-1-{n}**], the {finding} is {degree}.",
)
_ANSWERS = (
  "yes", "no", "none", "No.", "Yes", "left lung", "Right Lung", "left lung, right lung.",
  "heart", "the heart", "a small effusion", "two nodules", "0 nodules", "1,0,0,1",
  "0.49", "don't know", "can't tell", "normal", "not seen", "x-ray", "pleural effusion",
  "right-sided", "lower lobe, left lung", "3.5 cm", "Kerley-B lines", "vascular congestion",
)  # fmt: skip
# What breaks scorers: nothing, one word, repeats, other scripts, marks alone.
EDGES: tuple[tuple[str, str], ...] = (
  ("", ""), ("", "effusion"), ("effusion", ""), (" ", "effusion"), (".", "."),
  ("...", "no"), ("effusion", "effusion"), ("effusion", "Effusions."), ("the", "a"),
  ("no no no no", "no"), ("no", "no no no no"), ("the the the heart the", "the heart"),
  ("naïve Größe é", "naive größe É"), ("µ 5° ≥3 ½", "u 5 3 1/2"), ("肺 清晰", "肺 清晰"),
  ("heart.lungs", "heart lungs"), ("a b c d e", "e d c b a"), ("x", "y"),
  ("effusion effusion heart", "heart effusion effusion"), ("No.", "none"),
  ("“clear” lungs – normal", '"clear" lungs - normal'), ("don't", "do not"),
  ("<unk> effusion", "effusion <unk>"), ("1,234.5", "1234.5"), ("large heart", "big heart"),
  ("children's dilated vessels", "child blood vessel distended"), ("-", "--"),
  ("(5 mm)", "5mm"), ("___ year old", "___-year-old"), ("AP/PA/LAT", "ap and pa views"),
  ("seen. . . . seen", "seen"), ("a\nb  c\td", "a b c d"),
)  # fmt: skip


def pairs(count: int, *, seed: int = 0) -> list[tuple[str, str]]:
  """The edges, then reports (of 55 words on average) and short answers, two to one."""
  rng = random.Random(seed)
  made = list(EDGES)
  while len(made) < count:
    if rng.random() < 1 / 3:
      truth = rng.choice(_ANSWERS)
      made.append((truth, truth if rng.random() < 0.4 else rng.choice(_ANSWERS)))
    else:
      made.append(report_pair(rng))
  return made[:count]


def report_pair(rng: random.Random) -> tuple[str, str]:
  truth = _report(rng)
  other = _report(rng)
  kind = rng.random()
  if kind < 0.05:
    return " ".join(truth), ""
  if kind < 0.15:
    return " ".join(truth), " ".join(truth)
  # Some sentences are kept, some come from another film, the order may change.
  said = [rng.choice((mine, mine, theirs)) for mine, theirs in zip(truth, other)]  # noqa: B905
  if rng.random() < 0.3:
    rng.shuffle(said)
  words = " ".join(said).split(" ")
  kept = [w for w in words if rng.random() > 0.1]
  text = " ".join(kept[: rng.randint(1, len(words))] if kind < 0.4 else kept)
  return " ".join(truth), text.lower() if rng.random() < 0.3 else text


def _report(rng: random.Random) -> list[str]:
  return [_sentence(rng) for _ in range(rng.randint(2, 10))]


def _sentence(rng: random.Random) -> str:
  text = rng.choice(_SENTENCES)
  for key, options in (
    ("degree", _DEGREES), ("side", _SIDES), ("zone", _ZONES), ("finding", _FINDINGS),
    ("n", tuple(map(str, range(1, 20)))),
  ):  # fmt: skip
    for key_here, form in ((key, str), (key.capitalize(), str.capitalize)):
      while f"{{{key_here}}}" in text:
        text = text.replace(f"{{{key_here}}}", form(rng.choice(options)), 1)
  return text
