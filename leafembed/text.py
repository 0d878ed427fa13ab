"""Reading text strictly and comparing it loosely: shared by training data and evaluation tasks.

A damaged line is an error that names file and line, never a line silently skipped or patched: a corpus that reads
"almost right" gives a model that is almost right.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any, cast

from leafembed.errors import DataError
from leafembed.progress import say

__all__ = [
    "clean_text",
    "decode_lines",
    "languages_of",
    "normalise_lang",
    "normalise_text",
    "read_lines",
    "read_objects",
    "read_rows",
    "read_texts",
    "stream_texts",
    "text_hash",
]

# ISO 639-1 code, then what else means it: ISO 639-3, the bibliographic code of ISO 639-2, the largest member of a
# macrolanguage as the FLORES and Tatoeba sets name it, and codes that are withdrawn or merely common.
_ALIASES = """
aa aar|ab abk|ae ave|af afr|ak aka|am amh|an arg|ar ara arb|as asm|av ava|ay aym ayr|az aze azj|ba bak|be bel|bg bul
bi bis|bm bam|bn ben|bo bod tib|br bre|bs bos|ca cat|ce che|ch cha|co cos|cr cre|cs ces cze|cu chu|cv chv|cy cym wel
da dan|de deu ger|dv div|dz dzo|ee ewe|el ell gre|en eng|eo epo|es spa|et est ekk|eu eus baq|fa fas per pes|ff ful fuv
fi fin|fj fij|fo fao|fr fra fre|fy fry|ga gle|gd gla|gl glg|gn grn gug|gu guj|gv glv|ha hau|he heb iw|hi hin|ho hmo
hr hrv|ht hat|hu hun|hy hye arm|hz her|ia ina|id ind in|ie ile|ig ibo|ii iii|ik ipk|io ido|is isl ice|it ita|iu iku
ja jpn jp|jv jav|ka kat geo|kg kon|ki kik|kj kua|kk kaz|kl kal|km khm|kn kan|ko kor|kr kau knc|ks kas|ku kur kmr|kv kom
kw cor|ky kir|la lat|lb ltz|lg lug|li lim|ln lin|lo lao|lt lit|lu lub|lv lav lvs|mg mlg plt|mh mah|mi mri mao|mk mkd mac
ml mal|mn mon khk|mr mar|ms msa may zsm|mt mlt|my mya bur|na nau|nb nob|nd nde|ne nep npi|ng ndo|nl nld dut|nn nno
no nor|nr nbl|nv nav|ny nya|oc oci|oj oji|om orm gaz|or ori ory|os oss|pa pan|pi pli|pl pol|ps pus pbt|pt por|qu que quy
rm roh|rn run|ro ron rum|ru rus|rw kin|sa san|sc srd|sd snd|se sme|sg sag|sh hbs|si sin|sk slk slo|sl slv|sm smo|sn sna
so som|sq sqi alb als|sr srp|ss ssw|st sot|su sun|sv swe|sw swa swh|ta tam|te tel|tg tgk|th tha|ti tir|tk tuk
tl tgl|tn tsn|to ton|tr tur|ts tso|tt tat|tw twi|ty tah|ug uig|uk ukr|ur urd|uz uzb uzn|ve ven|vi vie|vo vol|wa wln
wo wol|xh xho|yi yid ydd ji|yo yor|za zha|zh zho chi cmn|zu zul
"""
_SHORT = {
    alias: entry.split()[0] for entry in _ALIASES.replace("\n", "|").split("|") for alias in entry.split()[1:] if entry
}

_STDIN = "-"

_OTHERS = dict.fromkeys((".csv", ".tsv", ".parquet"), "write its column of texts to such a file") | {
    ".json": "jq -c '.[]' makes one of an array of objects"
}
"""Files that are not read line by line, and what to do with one."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff]")


def clean_text(text: str) -> str:
    """Return a text in NFC, without control characters, white space collapsed."""
    return " ".join(_CONTROL.sub(" ", unicodedata.normalize("NFC", text)).split())


def normalise_text(text: str) -> str:
    """Return the form in which two texts count as the same: cleaned and case folded."""
    # Folding can undo the composition (and the reverse), hence NFC on both sides of it.
    return clean_text(unicodedata.normalize("NFC", text).casefold())


def text_hash(normalised: str) -> int:
    """A number of 64 bits for a normalised text; among 10 million texts two share one with a chance of 3e-6."""
    return int.from_bytes(hashlib.blake2b(normalised.encode(), digest_size=8).digest(), "little")


def normalise_lang(tag: str | None) -> str:
    """Return the short form of a language tag: ``deu``, ``de-AT`` and ``DE`` are all ``de``.

    Script and region are dropped, so ``zh-TW`` is ``zh``; three letters become two where ISO 639-1 has a code. An
    empty tag is ``und``.
    """
    primary = re.split(r"[-_]", (tag or "").strip().lower(), maxsplit=1)[0]
    return _SHORT.get(primary, primary) or "und"


def languages_of(lang: str) -> list[str]:
    """The short tags of a language, or of both languages of a pair such as ``deu-eng``."""
    return [normalise_lang(side) for side in lang.split("-")]


def decode_lines(file: IO[bytes], name: str, *, max_line_bytes: int | None = None) -> Iterator[tuple[int, str]]:
    """Yield line number (from 1) and text of each line of an open UTF-8 stream, without the line end.

    Args:
        file: What to read.
        name: What an error calls it.
        max_line_bytes: Longest line, its end not counted; ``None``: no limit.

    Raises:
        DataError: If a line is too long or not UTF-8; names the line.
    """
    number = 0
    # Two bytes beyond the limit leave room for the line end; more than that cannot be a legal line.
    while line := file.readline(-1 if max_line_bytes is None else max_line_bytes + 2):
        number += 1
        yield number, _decode(line.rstrip(b"\r\n"), f"{name}:{number}", max_line_bytes)


def read_lines(path: Path, *, max_line_bytes: int | None = None) -> Iterator[tuple[int, str]]:
    """Yield line number (from 1) and text of each line of a UTF-8 file, ``.gz`` or plain, without the line end.

    Args:
        path: The file; its name decides whether it is unpacked. ``-``: standard input.
        max_line_bytes: Longest line, its end not counted; ``None``: no limit.

    Raises:
        DataError: If the file cannot be opened or unpacked, or a line is too long or not UTF-8; names the line.
    """
    number, name = 0, _name(path)
    try:
        with _opened(path) as file:
            for number, line in decode_lines(file, name, max_line_bytes=max_line_bytes):
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.filename is not None:  # it was not opened
            raise DataError(f"{name}: {error.strerror}; expected a file that can be read") from error
        raise DataError(f"{name}: cannot be read after line {number} ({error}); expected a complete file") from error


def _opened(path: Path) -> AbstractContextManager[IO[bytes]]:
    if str(path) == _STDIN:
        # The bytes, since sys.stdin would decode as the locale says and pass damaged text on.
        return nullcontext(sys.stdin.buffer)
    return cast("IO[bytes]", gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))


def _name(path: Path) -> str:
    return "standard input" if str(path) == _STDIN else str(path)


def read_objects(path: Path, *, max_line_bytes: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number (from 1) and content of each line of a file that holds one JSON object a line.

    Raises:
        DataError: As :func:`read_lines`, and if a line is no JSON object or the file has no line; names the line.
    """
    number = 0
    for number, line in read_lines(path, max_line_bytes=max_line_bytes):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{_name(path)}:{number}: malformed JSON ({error}); expected one object a line") from error
        if not isinstance(value, dict):
            raise DataError(f"{_name(path)}:{number}: got a JSON {type(value).__name__}, expected one object a line")
        yield number, value
    if number == 0:
        raise DataError(f"{_name(path)}: the file is empty; expected one JSON object a line")


def read_rows(
    path: Path,
    *,
    texts: Sequence[str] = (),
    names: Sequence[str] = (),
    numbers: Sequence[str] = (),
    lists: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Return the named columns of every line of a file of JSON objects, checked.

    Args:
        path: The file.
        texts: Columns that hold text which is not blank.
        names: Columns that hold an id or label: text, or a whole number that becomes text.
        numbers: Columns that hold a finite number, which becomes a float.
        lists: Columns that hold a list of at least one text, none of them blank.
        optional: Columns of text that may be absent, null or blank, which becomes ``""``.

    Raises:
        DataError: As :func:`read_objects`, and if a column is missing or of another kind; names the line.
    """
    kinds = {_as_text: texts, _as_name: names, _as_number: numbers, _as_texts: lists}
    return list(_rows(path, {key: convert for convert, keys in kinds.items() for key in keys}, optional))


def _rows(
    path: Path, columns: Mapping[str, Callable[[Any], Any]], optional: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    for number, value in read_objects(path):
        missing = [key for key in columns if key not in value]
        if missing:
            raise DataError(f"{_name(path)}:{number}: got the keys {sorted(value)}, expected {missing} too")
        full = {**value, **{key: "" for key in optional if value.get(key) is None}}
        row = {}
        for key, convert in {**columns, **dict.fromkeys(optional, _as_any_text)}.items():
            try:
                row[key] = convert(full[key])
            except (TypeError, ValueError, OverflowError) as error:
                got = f"got {key} = {str(value[key])[:80]!r}"
                raise DataError(f"{_name(path)}:{number}: {got}, expected {error}") from error
        yield row


def read_texts(path: Path) -> list[str]:
    """Return the texts of a file that has one a line, or of JSON lines with ``text``; ``-`` is standard input.

    Raises:
        DataError: As :func:`stream_texts`.
    """
    return list(stream_texts(path))


def stream_texts(path: Path, *, jsonl: bool = False) -> Iterator[str]:
    """Yield what :func:`read_texts` returns, one at a time. A blank text is one too, so that rows stay in step.

    Args:
        path: The file; its name says what is in it.
        jsonl: It holds JSON lines, whatever its name is.

    Raises:
        DataError: As :func:`read_lines` and :func:`read_rows`, when the line is reached; at once if it is of a format
            that is not read.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    if jsonl or ".jsonl" in suffixes:
        return (row["text"] for row in _rows(path, {"text": _as_any_text}))
    if advice := _OTHERS.get(suffixes[-1] if suffixes else ""):
        raise DataError(
            f'{path}: got a {suffixes[-1]} file, expected a text a line, or a .jsonl file of lines {{"text": "..."}}: '
            + advice
        )
    return _plain(path)


def _plain(path: Path) -> Iterator[str]:
    for number, line in read_lines(path):
        if number == 1 and re.match(r'\{\s*"', line):
            say(
                f"{_name(path)}: looks like JSON, and is taken as it stands; --jsonl or a name in .jsonl reads its text"
            )
        yield line


def _as_any_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text")
    try:
        return value.encode().decode()
    except UnicodeEncodeError as error:
        raise ValueError("text without half of a surrogate pair") from error


def _as_text(value: Any) -> str:
    text = _as_any_text(value)
    if not text.strip():
        raise ValueError("text that is not blank")
    return text


def _as_texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise TypeError("a list of at least one text")
    return [_as_text(text) for text in value]


def _as_name(value: Any) -> str:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _as_text(value)


def _as_number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("a finite number")
    return float(value)


def _decode(line: bytes, where: str, limit: int | None) -> str:
    if line.startswith(b"\x1f\x8b") and where.endswith(":1"):  # the second byte begins no text in UTF-8
        raise DataError(f"{where}: packed by gzip; expected UTF-8 text, unpack it or give the file a name in .gz")
    if limit is not None and len(line) > limit:
        raise DataError(f"{where}: line longer than {limit} bytes; expected text of one line each, so split it")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: invalid UTF-8 at byte {error.start}; expected UTF-8 text, convert with iconv -t UTF-8"
        ) from error
    return text.removeprefix("\ufeff") if where.endswith(":1") else text
