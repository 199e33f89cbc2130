"""Tokens of reports as the published evaluation's Penn Treebank tokenizer makes them.

pycocoevalcap 1.2 runs Stanford's PTBTokenizer 3.4.1 (Java) on every report, in lower
case, and drops punctuation. Its behaviour on text of the kind that reports hold is
written anew here and compared with it token by token in `tests/test_published.py`.
What it knows of the web and of other scripts than Latin ones is left out, but for plain
addresses.

Worth knowing of these tokens: hyphenated words stay whole, round, square and curly
brackets are NOT dropped (their names, "-lrb-" …, are in lower case, and the list of
punctuation is not), "cannot" and "doesn't" become two tokens, and a point belongs to an
abbreviation ("rt.", "a.m.") and to a word that follows without a space ("seen.No").
"""

from __future__ import annotations

import functools
import re
import unicodedata

# What pycocoevalcap drops. The capitals of its brackets' names never occur.
PUNCTUATION = frozenset(
  ("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)

# Abbreviations in any case, those that are words unless they have a capital, and those
# that are abbreviations before a number only.
_SHORT = (
  "jan feb mar apr jun jul aug sept? oct nov dec mon tues? wed thu(?:rs?)? fri ala ariz "
  "calif colo conn ct dak fla ga ind kans? ky md mich minn mo mont neb nev okla penn tenn "
  "va vt wisc? wyo inc cos? corp pt[ye]s? ltd plc rt bancorp dept bhd assn univ intl sys "
  "invt elec natl m[ft]g tel est ext sq ft ph jr sr bros esq blvd rd mr mrs ms drs? "
  "profs? sens? reps? attys? lt col gen messrs govs? adm rev maj sgt cpl pvt capt ste? "
  "ave pres lieut hon brig co?mdr pfc spc supts? det mt adj adv asst assoc ens insp mlle "
  "mme msgr sfc etc al seq vs alex wm jos cie cf treas bldg"
).replace(" ", "|")
_PROPER = "A[Zz]|A[Rr][Kk]|D[Ee][Ll]|I[Ll][Ll]|L[Aa]|M[Aa][Ss][Ss]|M[Ii][Ss][Ss]|O[Rr][Ee]|P[Aa]|T[Ee][Xx]|W[Aa][Ss][Hh]"
_BEFORE_NUMBER = "ca|figs?|prop|nos?|art|bldg|pp|op"

_LETTER = r"(?:[^\W\d_²³¹⁰-₎¼-¾⅐-⅟]|[\u00ad\u0300-\u036f\u0900-\u0dff])"
_CHARACTER = rf"(?:{_LETTER}|\d)"
_TICK = "['’`]"
_DASH = "[-_\u2010\u2011]"
_WORD = rf"{_LETTER}{_CHARACTER}*(?:[.!?]{_LETTER}{_CHARACTER}*)*"
_NUMBER = r"(?:\d*(?:[.:,]\d+)+|\d+)"
_ELIDED = rf"(?:[dDoOlL]{_TICK}{_CHARACTER})?"  # o'clock, d'angio
_SHORTENED = "(?:[msdMSD]|(?i:re|ve|ll))"
_AUXILIARY = f"{_TICK}{_SHORTENED}"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])*"
_PLAIN = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_GAP = "[ \u00a0]"
_PHONE = (
  rf"(?:\(\d{{2,3}}\){_GAP}?|\+{{0,2}}(?:\d{{2,4}}[- \u00a0])?\d{{2,4}}[- \u00a0])"
  rf"\d{{3,4}}[- \u00a0]?\d{{3,5}}"
)
_FRACTION = r"(?:\d{1,4}[- \u00a0])?\d{1,4}[/⁄]\d{1,4}"
_ATTRIBUTE = r"[A-Za-z][\w:.-]*(?:=(?:\"[^\"]*\"|[^\s>]*))?"
_TAG = rf"<(?:[!?][A-Za-z-][^>]*|/?[A-Za-z][\w:.-]*(?: +{_ATTRIBUTE})* */?)>"
# What has the first group is the token; the rest of a match is what must follow it. The
# longest match wins, and of two equal ones the first.
_RULES = tuple(
  re.compile(rule)
  for rule in (
    rf"((?i:can))(?i:not)(?!{_CHARACTER})",
    rf"((?i:gon|wan))(?i:na)(?!{_CHARACTER})|((?i:got))(?i:ta)(?!{_CHARACTER})",
    rf"((?i:lem|gim))(?i:me)(?!{_CHARACTER})",
    rf"({_LETTER}+?)[nN]{_TICK}[tT]",
    rf"({_WORD}){_AUXILIARY}",
    rf"({_WORD}\.)[,;:]",
    rf"({_WORD})",
    rf"([nN]?{_AUXILIARY}|[nN]{_TICK}[tT])(?:[^A-Za-z]|$)",
    rf"(’{_SHORTENED})",
    rf"({_TICK}(?:[2-9]0s|\d\d(?!\d)|[nN]{_TICK}?|em)(?!{_CHARACTER})|{_TICK}[nN])",
    rf"({_TICK}t)(?:is|was)(?!{_CHARACTER})",
    rf"([A-HJ-XZn]{_TICK}{_LETTER}{{2,}}|[A-Za-z]*[aeiou]{_TICK}[aeiou][A-Za-z]*)",
    rf"([dDlL]{_TICK})",
    r"(')[A-Za-z]\S",  # opens a quotation
    rf"({_ELIDED}{_CHARACTER}+(?:{_DASH}{_ELIDED}{_CHARACTER}+)*)",
    r"([A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:[A-Za-z]\.(?:[A-Za-z]\.)+|[A-Za-z0-9]+))+)",
    rf"({_PLAIN}(?:/{_PLAIN}){{1,2}})",
    r"([A-Z]+(?:&[A-Z]+)+)",
    rf"([-+]?{_NUMBER})",
    rf"({_FRACTION})",
    rf"({_PHONE})",
    rf"((?:{_ACRONYM}|(?i:{_SHORT})|{_PROPER}|(?i:ph|ed)\.[dD])\.)",
    rf"((?i:{_BEFORE_NUMBER})\.){_GAP}?\d",
    rf"({_TAG})",
    r"(https?://[^\s\"<>|()]*[^\s\"<>|.!?(){},-])",
    r"([A-Za-z0-9][^\s\"<>()]*@[^\s\"<>()]*[^\s\"<>().,;:])",
    r"(@[A-Za-z_][A-Za-z_0-9]*|#[A-Za-z]+)",
    r"([<>]?[:;=][-o*']?[][()DPdpO\\{@|])(?![A-Za-z0-9])",
    r"(\.{3,5}|[?!]+|-{2,}|_+|\*+|#+|''|``|<<|>>|&(?:amp|lt|gt|quot|apos|nbsp);)",
    r"([A-Z]*\$)",
  )
)
_BRACKETS = {
  "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
}  # fmt: skip
# Marks that are written otherwise, or left out ("").
_MARKS = {
  "½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "£": "#", "€": "$",
  "¤": "$", "¢": "cents", "’": "'", "‘": "`", "“": "``", "”": "''", "«": "``", "»": "''",
  "‹": "`", "›": "'", '"': "''", "–": "--", "—": "--", "―": "--", "…": "...",
  "‐": "-", "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'",
  "&nbsp;": "",
}  # fmt: skip
_CONTRACTED = re.compile(rf"[nN]?’(?:t|T|{_SHORTENED})")
_DASHES, _DOTS = re.compile("-{2,4}"), re.compile(r"\.{3,5}")
# Tokens that hold a space, or hang upon what follows one.
_ACROSS = re.compile(
  rf"{_PHONE}|\d{_GAP}\d{{1,4}}[/⁄]\d|<[!?/A-Za-z][^>]* |(?i:{_BEFORE_NUMBER})\. \d"
)


def report_tokens(text: str) -> list[str]:
  """The tokens of a report without punctuation: "No. Rt.-sided." -> [no, rt.-sided]."""
  text = text.replace("\n", " ")
  pieces = (_scan(text),) if _ACROSS.search(text) else map(_piece, text.split())
  return [token for piece in pieces for token in piece]


@functools.lru_cache(maxsize=1 << 16)
def _piece(text: str) -> tuple[str, ...]:
  return _scan(text)


def _scan(text: str) -> tuple[str, ...]:
  tokens, place = [], 0
  while place < len(text):
    if text[place].isspace():
      place += 1
      continue
    longest, token = 0, text[place]
    for rule in _RULES:
      match = rule.match(text, place)
      if match and match.end() - place > longest and match[match.lastindex or 0]:
        longest, token = match.end() - place, match[match.lastindex or 0]
    place += len(token)
    tokens.append(_written(token))
  return tuple(token for token in tokens if token and token not in PUNCTUATION)


def _written(token: str) -> str:
  """A token as it is printed."""
  if token in _MARKS:
    return _MARKS[token]
  if _DASHES.fullmatch(token):
    return "--"
  if _DOTS.fullmatch(token):
    return "..."
  if len(token) == 1 and not _is_known(token):
    return ""
  if token in _BRACKETS:
    return _BRACKETS[token]
  # Within a longer token only round ones have names.
  token = token.replace("(", "-lrb-").replace(")", "-rrb-")
  if _CONTRACTED.fullmatch(token):
    token = token.replace("’", "'")
  token = token.replace(" ", "\u00a0").replace("\u00ad", "")
  return token.lower()


def _is_known(mark: str) -> bool:
  return mark <= "\uffff" and unicodedata.category(mark) not in ("Cc", "Cf", "Co", "Cs")
