"""OpenI's XML files, parsed with nothing in them able to unfold or to fetch."""

from __future__ import annotations

from xml.etree import ElementTree

MAX_XML_BYTES = 2**20
_MAX_DEPTH = 64


class Rejected(Exception):
  """Why an XML file is no report; never a word of it."""


class _Shallow(ElementTree.TreeBuilder):
  """Builds the tree of a file that is not nested beyond reason."""

  def __init__(self) -> None:
    super().__init__()
    self._depth = 0

  def start(self, tag: str, attrs: dict[str, str], /) -> ElementTree.Element:
    self._depth += 1
    if self._depth > _MAX_DEPTH:
      raise Rejected("is nested beyond reason")
    return super().start(tag, attrs)

  def end(self, tag: str, /) -> ElementTree.Element:
    self._depth -= 1
    return super().end(tag)


def tree_of(content: bytes) -> ElementTree.Element:
  """The parsed file. Entities, which could unfold without end, are refused unparsed."""
  if len(content) > MAX_XML_BYTES:
    raise Rejected(f"has over {MAX_XML_BYTES} bytes")
  try:
    text = content.decode("utf-8-sig")
  except UnicodeDecodeError:
    raise Rejected("is not UTF-8") from None
  if "<!DOCTYPE" in text or "<!ENTITY" in text:
    raise Rejected("has a document type or entities")
  parser = ElementTree.XMLParser(target=_Shallow())
  try:
    # As text, for the encoding that the file declares must not choose what is parsed.
    parser.feed(text)
    root = parser.close()
  except (ElementTree.ParseError, ValueError):
    raise Rejected("is not XML") from None
  if root.tag != "eCitation":
    raise Rejected("has another root than eCitation")
  return root
