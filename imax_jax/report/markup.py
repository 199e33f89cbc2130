"""The small pieces of HTML that the report is made of."""

from __future__ import annotations

import html
import re
from collections.abc import Collection
from collections.abc import Sequence

ABSENT = '<p class="absent">Not run.</p>'


def text(value: object) -> str:
  return html.escape(str(value))


def figure(svg: str, caption: str, *, narrow: bool = False) -> str:
  if not svg:
    return ABSENT
  kind = ' class="narrow"' if narrow else ""
  return f"<figure{kind}>{svg}<figcaption>{caption}</figcaption></figure>"


def caveats(said: Sequence[str] | None) -> str:
  """What must be known first, as a list that stands out; "" for nothing."""
  items = "".join(f"<li>{text(caveat)}</li>" for caveat in said or ())
  return f'<ul class="caveats">{items}</ul>' if items else ""


def facts(
  head: Sequence[str], rows: Sequence[Sequence[str]], *, muted: Collection[int] = ()
) -> str:
  """A small table; the first cell of a row is its name, `muted` rows are quoted ones."""
  if not rows:
    return ABSENT
  # Columns of numbers end at one line, columns of words begin at one.
  kinds = [
    "" if number and rows[0][number][:1] in "0123456789+−–<" else ' class="words"'
    for number in range(len(head))
  ]
  first = "".join(
    f'<th scope="col"{kind}>{text(title)}</th>'
    for kind, title in zip(kinds, head, strict=True)
  )
  lines = []
  for number, (name, *cells) in enumerate(rows):
    kind = ' class="quoted"' if number in muted else ""
    values = "".join(
      f"<td{kind}>{text(cell)}</td>"
      for kind, cell in zip(kinds[1:], cells, strict=True)
    )
    lines.append(f'<tr{kind}><th scope="row">{text(name)}</th>{values}</tr>')
  return (
    f'<div class="wide"><table class="facts"><thead><tr>{first}</tr></thead>'
    f"<tbody>{''.join(lines)}</tbody></table></div>"
  )


def apart(content: str, prefix: str) -> str:
  """The same HTML with ids of its own, so that it can stand twice on a page."""
  return re.sub(r'(\bid="|url\(#|xlink:href="#|\bhref="#)', rf"\1{prefix}-", content)
