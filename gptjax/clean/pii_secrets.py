"""Keys and tokens: by the marks that services put on theirs, and by what stands before them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

_MARKED = re.compile(
    r"-----BEGIN (?P<kind>[A-Z ]*PRIVATE KEY(?: BLOCK)?)-----.{1,20000}?-----END (?P=kind)-----"
    r"|(?<![A-Za-z0-9_-])(?:"
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}"  # Amazon
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{40,255}"
    r"|gl(?:pat|dt|rt|ptt|cbt)-[A-Za-z0-9_-]{20,64}"  # GitLab
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,250}|xapp-\d-[A-Za-z0-9-]{20,250}"  # Slack
    r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,250}|GOCSPX-[A-Za-z0-9_-]{28}"  # Google
    r"|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,250}|whsec_[A-Za-z0-9+/=]{24,64}"  # Stripe
    r"|sk-(?:ant-|proj-|svcacct-|or-)?[A-Za-z0-9_-]{20,250}"  # of language models
    r"|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,250}"
    r"|SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}|SK[0-9a-f]{32}|AC[0-9a-f]{32}"  # mail, phone
    r"|key-[0-9a-f]{32}|dop_v1_[0-9a-f]{64}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"
    r"|\d{8,10}:AA[A-Za-z0-9_-]{32,34}"  # Telegram
    r"|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"  # JSON web token
    r")(?![A-Za-z0-9_-])",
    re.DOTALL,
)
_NAMED = re.compile(
    r"(?:api|access|secret|private|auth|client|encryption|signing|account|master|session|refresh|"
    r"bearer)?[ _-]?(?:key|token|secret|password|passwd|pwd|passphrase|credential|bearer)s?"
    r"(?:[ _-]?(?:id|key|value))?[\"']?\s{0,2}(?:=>|:=|[:=]|\bis\b)?\s{0,2}[\"'`]?"
    r"(?P<value>[A-Za-z0-9+/_.~!@#$%^&*=-]{8,200})",
    re.IGNORECASE,
)
_IN_URL = re.compile(
    r"[a-z][a-z0-9+.-]{2,12}://[^\s/:@]{1,64}:(?P<value>[^\s/:@]{3,128})@", re.IGNORECASE
)
BITS = 3.0
"""Entropy in bits per character from which a value after a name was made by a machine."""


def find_secrets(text: str) -> Iterator[tuple[int, int]]:
    """Yields keys, tokens and passwords: those with the mark of a service, values of names such as
    api_key or password, and passwords in addresses."""
    for match in _MARKED.finditer(text):
        yield match.span()
    for pattern in (_NAMED, _IN_URL):
        for match in pattern.finditer(text):
            value = match["value"].rstrip(".!")
            if pattern is _IN_URL or _is_made(value):
                yield match.start("value"), match.start("value") + len(value)


def _is_made(value: str) -> bool:
    """Whether a value is one that nobody would write in a sentence: long, of mixed kinds of
    characters, without order."""
    if len(value) < 12 or "://" in value or re.fullmatch(r"[\d.,:/-]+", value):
        return len(value) >= 8 and _mixed(value) >= 4
    if re.fullmatch(r"[A-Za-z]+(?:[._-][A-Za-z]+)*(?:\(\))?", value):  # words, as in env.API_KEY
        return False
    kinds = _mixed(value)
    return entropy(value) >= BITS and (kinds >= 3 or (kinds >= 2 and len(value) >= 20))


def _mixed(value: str) -> int:
    """Number of kinds of characters: lower and upper case, digits, signs."""
    kinds = (str.islower, str.isupper, str.isdigit, lambda c: not c.isalnum())
    return sum(any(map(kind, value)) for kind in kinds)


def entropy(value: str) -> float:
    """Returns the entropy of the characters of a value, in bits per character."""
    counts = Counter(value).values()
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts)
