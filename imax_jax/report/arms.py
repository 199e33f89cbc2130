"""The study's runs and which of them are compared: the one place that names them.

A new run is a line of `ARMS`, a new comparison a line of `PAIRS`; results, tables,
figures and colours follow. What was not run is absent from all of them.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Arm:
  """A run, or a baseline that never looks at the image (evaluate/constants.py)."""

  name: str
  title: str
  short: str  # for a terminal
  told: str  # what it is, in a legend
  colour: str  # and on dark paper
  dark: str
  trained: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
  """The gain of one run over another. `name` is its key in results.json."""

  name: str
  new: str
  base: str
  title: str
  short: str


# In the tables' order.
ARMS: tuple[Arm, ...] = (
  Arm("constant", "Best constant answer", "const.",
      "one answer for each kind of question", "#9b9a94", "#8a8983", trained=False),
  Arm("blind", "Best answer to the prompt alone", "blind",
      "a question’s most rewarding answer, the organ whose mean box is nearest",
      "#b9b8b2", "#6f6e69", trained=False),
  Arm("dmax", "DMAX", "DMAX", "as many entries as IMAX, of many images",
      "#c8702e", "#e5935a"),
  Arm("imax", "IMAX", "IMAX", "many entries of each of few images",
      "#20588a", "#6fadde"),
  Arm("pseudo", "DMAX & Pseudo IMAX", "pseudo", "the three stages on DMAX",
      "#7a4f8f", "#bd94d0"),
  Arm("pseudo_confidence", "Pseudo IMAX, confident labels", "confident",
      "the three stages, less the labels that were least certain", "#9a76b0", "#cdb2dc"),
  Arm("pseudo_agreement", "Pseudo IMAX, agreeing labels", "agreeing",
      "the three stages, less the labels that contradict each other", "#5f6fa8", "#a3b0de"),
  Arm("pseudo_balance", "Pseudo IMAX, balanced labels", "balanced",
      "the three stages, less what a class has more of than in training", "#a0609a", "#dba3d6"),
  Arm("dmax_long", "DMAX, step-matched", "DMAX long",
      "DMAX for as many steps as the three stages take together", "#dba765", "#b98c54"),
  Arm("same_images", "IMAX’s images, one task each", "same im.",
      "IMAX’s very images, one task of each", "#4d8f86", "#7fc4b9"),
  Arm("core", "IMAX’s images, few and full", "core",
      "as many entries as the images with one task each, from as few images as hold them",
      "#2f6f4f", "#74c795"),
  Arm("same_count", "DMAX, as many images as IMAX", "same n.",
      "DMAX cut down to as many images as IMAX has", "#a8576b", "#df93a6"),
)  # fmt: skip
# The first over the second, seed by seed.
PAIRS: tuple[Pair, ...] = (
  Pair("imax", "imax", "dmax", "IMAX over DMAX", "IMAX / DMAX"),
  Pair("pseudo", "pseudo", "dmax", "DMAX & Pseudo IMAX over DMAX", "pseudo / DMAX"),
  Pair("dmax_long", "dmax_long", "dmax", "DMAX, step-matched, over DMAX",
       "DMAX long / DMAX"),
  Pair("pseudo_vs_dmax_long", "pseudo", "dmax_long",
       "DMAX & Pseudo IMAX over DMAX, step-matched", "pseudo / DMAX long"),
  Pair("pseudo_confidence", "pseudo_confidence", "pseudo",
       "Confident labels over all labels", "conf. / pseudo"),
  Pair("pseudo_agreement", "pseudo_agreement", "pseudo",
       "Agreeing labels over all labels", "agree / pseudo"),
  Pair("pseudo_balance", "pseudo_balance", "pseudo",
       "Balanced labels over all labels", "bal. / pseudo"),
  Pair("core_vs_same_images", "core", "same_images",
       "IMAX’s images, few and full, over one task each", "core / same im."),
  Pair("same_images_vs_same_count", "same_images", "same_count",
       "One task each: IMAX’s images over DMAX’s", "same im. / same n."),
  Pair("imax_vs_same_count", "imax", "same_count",
       "IMAX over DMAX of as many images", "IMAX / same n."),
)  # fmt: skip

ARM: dict[str, Arm] = {arm.name: arm for arm in ARMS}
PAIR: dict[str, Pair] = {pair.name: pair for pair in PAIRS}
TRAINED: tuple[str, ...] = tuple(arm.name for arm in ARMS if arm.trained)
BLIND: tuple[str, ...] = tuple(arm.name for arm in ARMS if not arm.trained)


def variable(name: str) -> str:
  """The page's CSS variable of an arm's colour, without its dashes."""
  return name.replace("_", "-")


def css() -> str:
  """The arms' colours as CSS variables, on light paper and on dark."""
  light = " ".join(f"--{variable(arm.name)}: {arm.colour};" for arm in ARMS)
  dark = " ".join(f"--{variable(arm.name)}: {arm.dark};" for arm in ARMS)
  return (
    f":root {{ {light} }}\n"
    f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
  )
