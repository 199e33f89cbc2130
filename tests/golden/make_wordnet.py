"""Makes `imax_jax/assets/wordnet.json.gz` of WordNet 3.0's own files.

    python tests/golden/make_wordnet.py FOLDER

FOLDER holds data.noun … and noun.exc … (Debian's package wordnet-base 3.0 puts them into
/usr/share/wordnet). METEOR asks which single words share a synset with a word, and no
more; what is kept is, for each part of speech n, v, a, r:

    synsets     the synsets' names as they are spelt; a word that shares none is in a list
                of its own. Names of several words, with "_", only where an irregular
                form of one word leads to them (bases-on-balls: base_on_balls).
    exceptions  irregular forms and what they are forms of
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path

PARTS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
ASSET = Path(__file__).parents[2] / "imax_jax" / "assets" / "wordnet.json.gz"


def synsets(path: Path, bases: set[str]) -> list[list[str]]:
  sets: set[tuple[str, ...]] = set()
  for line in path.read_text("utf-8").splitlines():
    if line.startswith("  "):  # the licence
      continue
    fields = line.split()
    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    # Adjectives carry where they may stand: "galore(ip)".
    names = {re.sub(r"\((a|p|ip)\)$", "", word) for word in words}
    sets.add(tuple(sorted(n for n in names if "_" not in n or n.lower() in bases)))
  shared = {name for names in sets if len(names) > 1 for name in names}
  return sorted(list(names) for names in sets if len(names) > 1 or set(names) - shared)


def exceptions(path: Path) -> dict[str, list[str]]:
  forms = {}
  for line in path.read_text("utf-8").splitlines():
    form, *bases = line.split()
    if "_" not in form:
      forms[form] = bases
  return dict(sorted(forms.items()))


def main(folder: Path) -> None:
  table = {}
  for letter, part in PARTS.items():
    irregular = exceptions(folder / f"{part}.exc")
    bases = {base for bases in irregular.values() for base in bases}
    names = synsets(folder / f"data.{part}", bases)
    table[letter] = {"synsets": names, "exceptions": irregular}
  text = json.dumps(table, ensure_ascii=False, separators=(",", ":"))
  ASSET.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
  print(f"{ASSET}: {ASSET.stat().st_size} bytes")


if __name__ == "__main__":
  main(Path(sys.argv[1]))
