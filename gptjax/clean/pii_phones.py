"""Phone numbers, by Google's tables of the numbers of each country (the package phonenumbers).

A number with + or 00 is one if its country has such numbers. A national one has to be valid in one
of the known countries, and be written as there, or follow a word such as tel. or call.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gptjax.clean.stage import needs
from gptjax.core.config import require

_DASHES = "\u2010-\u2015"
_CANDIDATE = re.compile(
    rf"(?<![\w.,/#=&?%@$€£+\\-])(?P<number>(?:(?:\+|00) ?)?\(?\+?\d(?:[ .()/\u00a0\u202f{_DASHES}-]"
    rf"{{0,3}}\d){{5,17}})(?P<extension>[ ,;]*(?:ext|extension|x|durchwahl|app)\.?[ :]*\d{{1,5}})?"
    r"(?![\w]|[.,/:@-]\d|[@%°$€£])",
    re.IGNORECASE,
)
_SPEAKS = re.compile(
    r"(?:\b(?:tel|telephone|phone|phones|mobile|cell|cellphone|fax|call|calls|called|text|sms|"
    r"whatsapp|signal|dial|ring|contact|hotline|landline|home|work|office|reach|telefon|handy|mobil|"
    r"mobilnummer|telefonnummer|rufnummer|anrufen|ruf|portable|téléphone|tél|appelez|appeler|"
    r"móvil|movil|teléfono|telefono|llame|llamar|cellulare|chiamare|chiama|telefoon|bel|telefone|"
    r"celular|ligue|numer|komórka|zadzwoń|ring|mobiel|gsm|m|t|p)\b|[☎☏✆📞📱]|電話|携帯)"
    r"[^\n\d]{0,28}$",
    re.IGNORECASE,
)
"""Words before a number that make it one to call."""
_COUNTS = re.compile(
    r"(?:\b(?:order|orders|invoice|ticket|case|ref|reference|id|ids|sku|part|serial|s/n|tracking|"
    r"isbn|issn|ean|upc|gtin|doi|imei|vin|model|item|account|acct|no|nr|number|num|version|"
    r"bestellung|bestellnummer|rechnung|rechnungsnummer|auftrag|artikel|kundennummer|commande|"
    r"facture|pedido|factura|ordine|patent|batch|lot|code|zip|plz|page|pages|pp|pmid|arxiv|hash|"
    r"commit|timestamp|epoch|seed|port|customer|policy|claim|docket|room|row|population)\b\.?|[#№])"
    r"[\s:.#-]*$",
    re.IGNORECASE,
)
"""Words before a number that make it one to count or to look up."""
_DATE = re.compile(
    r"(?:(?:1[5-9]|20)\d\d([-./ ])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12]\d|3[01])"
    r"|(?:0?[1-9]|[12]\d|3[01])([-./ ])(?:0?[1-9]|[12]\d|3[01])\2(?:1[5-9]|20)?\d\d"
    r"|(?:1[5-9]|20)\d\d\s?[-/\u2013]\s?(?:1[5-9]|20)?\d\d)(?: \d{1,6})?"
)
AROUND = 40
"""Characters before a number that are read."""
_ISBN = re.compile(r"97[89][- ]?\d")


def phone_finder(regions: Sequence[str]) -> Callable[[str], Iterator[tuple[int, int]]]:
    """Returns a finder of phone numbers.

    Args:
      regions: countries (ISO 3166) whose national numbers are known.

    Raises:
      ConfigError: phonenumbers is not installed, or does not know a country.
    """
    try:
        import phonenumbers
    except ImportError:
        raise needs(
            "phonenumbers", "finding phone numbers", "--pii.types secret email iban card ip"
        ) from None
    unknown = sorted(set(regions) - phonenumbers.SUPPORTED_REGIONS)
    require(
        not unknown,
        f"pii.regions has {', '.join(unknown)}, which is no country of ISO 3166 with phone numbers;"
        " pass such as --pii.regions US DE.",
    )

    def find_phones(text: str) -> Iterator[tuple[int, int]]:
        for match in _CANDIDATE.finditer(text):
            number, begin = match["number"], match.start()
            if number[0] == "(" and number.count("(") > number.count(")"):
                number, begin = number[1:], begin + 1  # the bracket is that of the sentence
            before = text[max(0, begin - AROUND) : begin]
            if _is_phone(number, before, regions, phonenumbers):
                yield begin, match.end()

    return find_phones


def _is_phone(number: str, before: str, regions: Sequence[str], package: Any) -> bool:
    digits = re.sub(r"\D", "", number)
    if not 7 <= len(digits) <= 15 or number.count("(") != number.count(")"):
        return False
    if "+" in number or (number.startswith("00") and len(digits) > 9):
        spelled = "+" + (digits if "+" in number else digits[2:])
        spelled = re.sub(r"^(\+\d{2,3}?)\(0\)", r"\1", spelled)
        return _is_international(
            re.sub(r"\(0\)", "", number) if "(0)" in number else spelled, package
        )
    spoken = bool(_SPEAKS.search(before))
    if not spoken and _COUNTS.search(before):
        return False
    if _DATE.fullmatch(number) or (_ISBN.match(number) and not spoken):
        return False
    groups = tuple(re.findall(r"\d+", number))
    return any(_is_national(number, groups, spoken, region, package) for region in regions)


def _is_international(number: str, package: Any) -> bool:
    try:
        if number.startswith("00"):
            number = "+" + number[2:]
        parsed = package.parse(number, None)
    except package.NumberParseException:
        return False
    return package.is_possible_number(parsed) and (
        package.is_valid_number(parsed) or len(str(parsed.national_number)) >= 9
    )


def _is_national(
    number: str, groups: tuple[str, ...], spoken: bool, region: str, package: Any
) -> bool:
    """Whether a number is one of a country, and looks like it: as its tables write it, with the 0
    or the bracket of an area code; or after a word that says so."""
    parsed = _parsed("".join(groups), region, package)
    if parsed is None:
        return False
    if spoken:
        return True
    marked = number[0] in "(0" or region == "US"
    if len(groups) == 1 or not marked:
        return False
    written = re.findall(r"\d+", package.format_number(parsed, package.PhoneNumberFormat.NATIONAL))
    return list(groups) in (written, ["1", *written] if region == "US" else written)


@functools.lru_cache(maxsize=4096)
def _parsed(digits: str, region: str, package: Any) -> Any:
    """The number, if it is valid in the country; else `None`."""
    try:
        parsed = package.parse(digits, region)
    except package.NumberParseException:
        return None
    return parsed if package.is_valid_number(parsed) else None
