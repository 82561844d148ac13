"""Card and account numbers: digits whose checksum, length and beginning are right."""

from __future__ import annotations

import re
from collections.abc import Iterator

_CARD = re.compile(r"(?<![\w.,/-])\d(?:[ \u00a0-]?\d){11,18}(?![\w/-]|[.,]\d)")
_GROUPS = (
    *((4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (4, 4, 4, 4, 1), (4, 4, 5)),
    *((6, 13), (4, 4, 4, 1)),
)
"""How the digits of a card are grouped, where they are."""

_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ \u00a0-]?[A-Za-z0-9]){11,34}")
IBAN_LENGTHS = dict(
    re.findall(
        r"([A-Z]{2})(\d\d)",
        "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28EE20EG29"
        "ES24FI18FK18FO18FR27GB22GE22GI23GL18GR27GT28HN28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20"
        "LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22MK19MN20MR27MT31MU30NI28NL18NO15OM23PK24PL28PS29"
        "PT25QA29RO24RS22RU33SA24SC31SD18SE24SI19SK24SM27SO23ST25SV28TL23TN24TR26UA29VA22VG24XK20"
        "YE30",
    )
)
"""Country → characters of its account numbers (ISO 13616 registry)."""


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    doubled = [int(d) * (2 if i % 2 else 1) for i, d in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def is_issued(digits: str) -> bool:
    """Whether card numbers of this length begin so: Visa, Mastercard, American Express, Discover,
    Diners Club, JCB, UnionPay and Maestro."""
    length, two, four = len(digits), int(digits[:2]), int(digits[:4])
    if digits[0] == "4":
        return length in (13, 16, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720:
        return length == 16
    if two in (34, 37):
        return length == 15
    if two in (36, 38, 39) or 3000 <= four <= 3059:
        return length == 14
    if 3528 <= four <= 3589:
        return length in (16, 19)
    if four == 6011 or two in (62, 64, 65):
        return length in (16, 19)
    return two in (50, 56, 57, 58, 63, 67) and length in (16, 18, 19)


def find_cards(text: str) -> Iterator[tuple[int, int]]:
    """Yields card numbers: in one piece or in the groups of a card, with the check digit of Luhn
    and the beginning of an issuer."""
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        groups = tuple(map(len, re.split(r"\D", match[0])))
        whole = len(groups) == 1 or groups in _GROUPS
        if whole and len(set(digits)) > 1 and is_issued(digits) and luhn(digits):
            yield match.span()


def mod97(iban: str) -> bool:
    """Whether the two check digits of an account number are right (ISO 7064, MOD 97-10)."""
    turned = (iban[4:] + iban[:4]).upper()
    return int("".join(str(int(letter, 36)) for letter in turned)) % 97 == 1


def find_ibans(text: str) -> Iterator[tuple[int, int]]:
    """Yields international account numbers, in any case, with or without groups."""
    at = 0
    while match := _IBAN.search(text, at):
        begin, at = match.start(), match.start() + 1
        wanted = int(IBAN_LENGTHS.get(match[0][:2].upper(), 0))
        places = [i for i, letter in enumerate(match[0]) if letter.isalnum()]
        if not wanted or len(places) < wanted:
            continue
        end = begin + places[wanted - 1] + 1
        number = re.sub(r"[^A-Za-z0-9]", "", text[begin:end])
        if mod97(number) and not text[end : end + 1].isalnum():
            yield begin, end
            at = end
