"""Names of the v4 API: buckets, balls and the keys of chunks. Pure.

Owns what a name may look like on its way: the *stripped* form that the public client makes of most
names (`sanitize_str`), the keys of chunks (`<ball>_<index>`), and names as parts of a path.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from mictlanfs.errors import Kind, MictlanError

# The reference, section 9.1.
_DROPPED = re.compile(r"[^A-Za-z0-9_-]")
_RUN = re.compile(r"[_-]{2,}")
_STRIPPED = re.compile(r"[A-Za-z0-9]+(?:[_-][A-Za-z0-9]+)*")


def sanitize_str(text: str) -> str:
    """The stripped form of a name: letters, digits, and single `-` and `_` between them.

    Everything else is dropped, and a run of `-` and `_` becomes one `-`. What then does not begin
    and end with a letter or digit is empty: `a.b` gives `ab`, `a__b` gives `a-b`, `_a` and `a_`
    give the empty string. Different names may give the same.
    """
    kept = _RUN.sub("-", _DROPPED.sub("", text))
    kept = kept.removeprefix("-").removesuffix("-")
    return kept if _STRIPPED.fullmatch(kept) else ""


def stripped_name(text: str, what: str) -> str:
    """`sanitize_str` of a name that must have one; `what` says whose it is in the error.

    Raises:
        MictlanError: INVALID when nothing is left of it.
    """
    stripped = sanitize_str(exact_name(text, what))
    if not stripped:
        detail = (
            f"{text!r} cannot be a {what}: without all characters but letters, digits, '-' and '_' "
            "it must begin and end with a letter or digit"
        )
        raise MictlanError(Kind.INVALID, detail=detail)
    return stripped


def exact_name(text: str, what: str) -> str:
    """A name as it is; `what` says whose it is in the error.

    Raises:
        MictlanError: INVALID when it is empty or cannot be sent.
    """
    if not text or not is_unicode(text):
        raise MictlanError(Kind.INVALID, detail=f"{text!r} cannot be a {what}")
    return text


def is_unicode(text: str) -> bool:
    """Whether `text` can be sent: names of local files may hold bytes that are none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def chunk_key(ball_id: str, index: int) -> str:
    """The key of chunk number `index`, from 0, of a ball."""
    return f"{ball_id}_{index}"


def combined_key(bucket_id: str, key: str) -> str:
    """Bucket and key in one text, as caches and answers have it."""
    return f"{bucket_id}@{key}"


def path_of(*parts: str) -> str:
    """A path of `parts`, each one percent-encoded: a `/` in a name does not end it."""
    return "".join("/" + quote(part, safe="") for part in parts)
