"""Labelled sentences with PII of many countries and forms, and sentences with what only looks like
it; drawn from a seed, so that no list of addresses and keys lies in the repository.

A form (how a phone number of a country is written, how an address is hidden, …) and the sentences
around it belong to one of two halves, by a hash of their name. The finders were tuned on the half
`open` alone; `held out` was measured once they were finished. Read `pii_items`.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

Draw = random.Random


class Labelled(NamedTuple):
    """A sentence, and the pieces of PII in it."""

    text: str
    spans: tuple[tuple[int, int, str], ...]
    """Begin, end and type."""
    form: str
    held_out: bool


def pii_items(seed: int = 0, each: int = 4) -> Iterator[Labelled]:
    """Yields the sentences: `each` of every form that has PII, and of every one that has none."""
    for kind, forms in FORMS.items():
        for name, make in forms.items():
            held_out = half(f"{kind} {name}")
            around = [c for c in CONTEXTS[kind] if half(c) == held_out] or CONTEXTS[kind]
            draw = random.Random(f"{seed} {kind} {name}")
            for _ in range(each):
                context = draw.choice(around)
                yield _marked(context.replace("{}", f"⟦{make(draw)}⟧"), kind, name, held_out)
    for name, make in NOTHING.items():
        draw = random.Random(f"{seed} nothing {name}")
        for _ in range(each):
            yield Labelled(make(draw), (), f"nothing: {name}", half(f"nothing {name}"))


def half(name: str) -> bool:
    """Whether a form or a sentence is held out."""
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 1


def _marked(marked: str, kind: str, form: str, held_out: bool) -> Labelled:
    text, spans = "", []
    for part in re.split(r"(⟦.*?⟧)", marked, flags=re.DOTALL):
        if part.startswith("⟦"):
            spans.append((len(text), len(text) + len(part) - 2, kind.split(" ")[0]))
        text += part.strip("⟦⟧")
    return Labelled(text, tuple(spans), f"{kind}: {form}", held_out)


# --- pieces


def digits(draw: Draw, count: int, first: str = "0123456789") -> str:
    """Random digits."""
    return draw.choice(first) + "".join(draw.choice("0123456789") for _ in range(count - 1))


def letters(draw: Draw, count: int, alphabet: str) -> str:
    """Random characters of an alphabet."""
    return "".join(draw.choice(alphabet) for _ in range(count))


LOWER = "abcdefghijklmnopqrstuvwxyz"
HEX = "0123456789abcdef"
ALNUM = LOWER + LOWER.upper() + "0123456789"
FIRST = [
    "maria",
    "jonas",
    "wei",
    "amara",
    "lucas",
    "fatima",
    "sven",
    "chloe",
    "diego",
    "hanna",
    "omar",
    "julia",
    "kenji",
    "ines",
]
LAST = [
    "schmidt",
    "garcia",
    "okafor",
    "rossi",
    "dubois",
    "novak",
    "tanaka",
    "jansen",
    "silva",
    "kowalski",
    "larsen",
    "brown",
]
HOSTS = [
    "example.com",
    "mail.example.org",
    "firma.example.de",
    "uni.example.ac.uk",
    "exemple.fr",
    "correo.es",
]


def pattern(form: str) -> Callable[[Draw], str]:
    """A number by its form: # is any digit, 2-9 in brackets is one of a range."""

    def make(draw: Draw) -> str:
        text = re.sub(r"\[(\d+)\]", lambda m: draw.choice(m[1]), form)
        return re.sub("#", lambda _: draw.choice("0123456789"), text)

    return make


def person(draw: Draw) -> tuple[str, str]:
    return draw.choice(FIRST), draw.choice(LAST)


def email(form: str) -> Callable[[Draw], str]:
    """An address by its form: F and L are names, N a number, H the host, A and Z its parts."""

    def make(draw: Draw) -> str:
        first, last = person(draw)
        host = draw.choice(HOSTS)
        parts = host.split(".")
        values = {"F": first, "L": last, "N": draw.randint(1, 99), "H": host}
        values |= {"A": parts[-2], "Z": parts[-1]}
        return re.sub(r"\{([FLNHAZ])\}", lambda m: str(values[m[1]]), form)

    return make


def upper(make: Callable[[Draw], str]) -> Callable[[Draw], str]:
    """The same in upper case."""
    return lambda draw: make(draw).upper()


EMAILS = {
    "plain": email("{F}.{L}@{H}"),
    "short": email("{F}@{H}"),
    "number": email("{L}{N}@{H}"),
    "tag": email("{F}+news@{H}"),
    "dash": email("{F}-{L}@{H}"),
    "underscore": email("{F}_{L}@{H}"),
    "upper case": upper(email("{F}.{L}@{H}")),
    "mailto": email("{F}.{L}@{H}"),
    "title case": lambda d: ".".join(map(str.title, person(d))) + "@Example.Com",
    "long top level": email("{F}@{A}.photography"),
    "national top level": email("{F}.{L}@{A}.co.jp"),
    "digits first": email("{N}{F}@{A}.{Z}"),
    "[at] and dot": email("{F}.{L} [at] {A}.{Z}"),
    "[at] [dot]": email("{F} [at] {A} [dot] {Z}"),
    "(at) (dot)": email("{F}(at){A}(dot){Z}"),
    "(AT) upper": upper(email("{F}.{L}(at){H}")),
    "{at} {dot}": email("{F} {at} {A} {dot} {Z}"),
    "<at>": email("{F}.{L}<at>{A}.{Z}"),
    "spoken": email("{F} at {A} dot {Z}"),
    "spoken, two dots": email("{F} dot {L} at {A} dot {Z}"),
    "spoken upper": upper(email("{F} at {A} dot {Z}")),
    "spaces around": email("{F}.{L} @ {A}.{Z}"),
    "[@]": email("{F}.{L}[@]{A}.{Z}"),
    "umlaut": lambda d: f"jürgen.{d.choice(LAST)}@example.de",
}

PHONES = {
    "US brackets": pattern("([23469]1[23456789]) 55[256789]-####"),
    "US dashes": pattern("212-55[256789]-####"),
    "US dots": pattern("415.55[256789].####"),
    "US +1": pattern("+1 646 55[256789] ####"),
    "US +1 dashes": pattern("+1-312-55[256789]-####"),
    "US 1-800": pattern("1-800-55[256789]-####"),
    "US extension": pattern("(617) 55[256789]-#### ext. ###"),
    "CA": pattern("(416) 55[256789]-####"),
    "GB London": pattern("020 7946 ####"),
    "GB mobile": pattern("07[79]11 ######"),
    "GB +44": pattern("+44 20 7946 ####"),
    "GB +44 (0)": pattern("+44 (0)20 7946 ####"),
    "GB 0044": pattern("0044 161 496 0###"),
    "DE Berlin": pattern("030 2###55##"),
    "DE mobile slash": pattern("0171/2######"),
    "DE +49": pattern("+49 89 3#######"),
    "DE +49 mobile": pattern("+49 151 2#######"),
    "DE +49 (0)": pattern("+49 (0)40 3######"),
    "DE one piece": pattern("01512#######"),
    "FR": pattern("06 [1234]# ## ## ##"),
    "FR Paris": pattern("01 42 ## ## ##"),
    "FR dots": pattern("06.[1234]#.##.##.##"),
    "FR +33": pattern("+33 6 [1234]# ## ## ##"),
    "ES": pattern("612 3## ###"),
    "ES +34": pattern("+34 91 4## ## ##"),
    "IT +39": pattern("+39 06 6######"),
    "IT mobile": pattern("347 1######"),
    "NL": pattern("06-1#######"),
    "NL +31": pattern("+31 20 5######"),
    "CH": pattern("044 668 18 ##"),
    "CH +41": pattern("+41 79 4## ## ##"),
    "AT +43": pattern("+43 1 5######"),
    "AU": pattern("(02) 9[2367]## ####"),
    "AU mobile": pattern("0412 ### ###"),
    "AU +61": pattern("+61 4 12## ####"),
    "IN +91": pattern("+91 98### #####"),
    "IN": pattern("098### #####"),
    "BR": pattern("(11) 9[678]###-####"),
    "BR +55": pattern("+55 21 9[678]###-####"),
    "JP": pattern("03-3###-####"),
    "JP +81": pattern("+81 90-1###-####"),
    "CN +86": pattern("+86 138 #### ####"),
    "PL +48": pattern("+48 50[123] ### ###"),
    "SE": pattern("070-[123]## ## ##"),
    "MX +52": pattern("+52 55 5### ####"),
    "ZA +27": pattern("+27 82 ### ####"),
}

SPOKEN_ONLY = {"ES", "IT mobile", "DE one piece"}
"""Without a word before them they are any number."""


def luhn_digit(number: str) -> str:
    """The check digit, computed another way than the finder does."""
    table = "0246813579"
    reverse = number[::-1]
    total = sum(int(table[int(d)]) if i % 2 == 0 else int(d) for i, d in enumerate(reverse))
    return str(-total % 10)


def card(prefix: str, length: int, groups: tuple[int, ...], sign: str) -> Callable[[Draw], str]:
    """A card number with the right check digit."""

    def make(draw: Draw) -> str:
        number = prefix + digits(draw, length - len(prefix) - 1)
        number += luhn_digit(number)
        parts, at = [], 0
        for size in groups or (length,):
            parts.append(number[at : at + size])
            at += size
        return sign.join(parts)

    return make


FOURS = (4, 4, 4, 4)
CARDS = {
    "visa": card("4", 16, (), ""),
    "visa spaces": card("4", 16, FOURS, " "),
    "visa dashes": card("4", 16, FOURS, "-"),
    "visa 13": card("4", 13, (), ""),
    "mastercard": card("53", 16, FOURS, " "),
    "mastercard 2": card("2345", 16, (), ""),
    "amex": card("37", 15, (4, 6, 5), " "),
    "amex dashes": card("34", 15, (4, 6, 5), "-"),
    "amex one piece": card("37", 15, (), ""),
    "discover": card("6011", 16, FOURS, "-"),
    "diners": card("36", 14, (4, 6, 4), " "),
    "jcb": card("3530", 16, FOURS, " "),
    "unionpay": card("62", 16, FOURS, " "),
    "maestro": card("50", 16, (), ""),
}


def iban(country: str, bank: str, length: int, form: str) -> Callable[[Draw], str]:
    """An account number with the right check digits."""

    def make(draw: Draw) -> str:
        body = bank + digits(draw, length - 4 - len(bank))
        spelled = "".join(str(int(c, 36)) for c in body + country) + "00"
        number = f"{country}{98 - int(spelled) % 97:02}{body}"
        parts = [number[i : i + 4] for i in range(0, length, 4)]
        text = {"whole": number, "groups": " ".join(parts), "dashes": "-".join(parts)}
        return text.get(form) or (number.lower() if form == "lower" else " ".join(parts).lower())

    return make


IBANS = {
    "DE": iban("DE", "", 22, "groups"),
    "DE whole": iban("DE", "", 22, "whole"),
    "DE lower": iban("DE", "", 22, "lower"),
    "GB": iban("GB", "NWBK", 22, "groups"),
    "GB whole": iban("GB", "BARC", 22, "whole"),
    "FR": iban("FR", "", 27, "groups"),
    "ES": iban("ES", "", 24, "groups"),
    "IT": iban("IT", "X", 27, "whole"),
    "NL": iban("NL", "ABNA", 18, "groups"),
    "NL lower": iban("NL", "INGB", 18, "lower groups"),
    "CH": iban("CH", "", 21, "groups"),
    "AT": iban("AT", "", 20, "dashes"),
    "BE": iban("BE", "", 16, "groups"),
    "PL": iban("PL", "", 28, "groups"),
    "SE": iban("SE", "", 24, "whole"),
    "NO": iban("NO", "", 15, "whole"),
}


def v4(draw: Draw) -> str:
    return f"{draw.choice([93, 151, 185, 203, 81, 172])}." + ".".join(
        str(draw.randint(1, 254)) for _ in range(3)
    )


def v6(draw: Draw, groups: int = 8) -> str:
    first = draw.choice(["2001", "2a02", "2606", "2a01"])
    return ":".join([first, *(f"{draw.randint(1, 65535):x}" for _ in range(groups - 1))])


IPS = {
    "v4": v4,
    "v4 private": lambda d: f"192.168.{d.randint(0, 255)}.{d.randint(1, 254)}",
    "v4 ten": lambda d: f"10.{d.randint(0, 255)}.{d.randint(0, 255)}.{d.randint(32, 254)}",
    "v4 in brackets": lambda d: v4(d).replace(".", "[.]"),
    "v4 twice": v4,
    "v6": v6,
    "v6 upper": lambda d: v6(d).upper(),
    "v6 short": lambda d: f"{v6(d, 3)}::{d.randint(1, 9999):x}",
    "v6 link": lambda d: f"fe80::{d.randint(256, 65535):x}:{d.randint(256, 65535):x}",
    "v6 padded": lambda d: "2001:0db8:0000:0000:0000:ff00:" + f"{d.randint(0, 65535):04x}:8329",
    "v6 unique": lambda d: f"fd{d.randint(16, 255):x}:{d.randint(1, 65535):x}::{d.randint(1, 99)}",
}

SECRETS = {
    "amazon": lambda d: "AK" + "IA" + letters(d, 16, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"),
    "github": lambda d: "gh" + "p_" + letters(d, 36, ALNUM),
    "github fine": lambda d: (
        "github" + "_pat_" + letters(d, 22, ALNUM) + "_" + letters(d, 59, ALNUM)
    ),
    "gitlab": lambda d: "gl" + "pat-" + letters(d, 20, ALNUM),
    "slack": lambda d: "xo" + f"xb-{digits(d, 12)}-{digits(d, 12)}-" + letters(d, 24, ALNUM),
    "google": lambda d: "AI" + "za" + letters(d, 35, ALNUM + "-_"),
    "stripe": lambda d: "sk" + "_live_" + letters(d, 24, ALNUM),
    "model": lambda d: "sk" + "-proj-" + letters(d, 48, ALNUM),
    "model 2": lambda d: "sk" + "-ant-api03-" + letters(d, 60, ALNUM + "-_") + "A",
    "hub": lambda d: "hf" + "_" + letters(d, 34, ALNUM),
    "npm": lambda d: "np" + "m_" + letters(d, 36, ALNUM),
    "mail": lambda d: "SG" + "." + letters(d, 22, ALNUM) + "." + letters(d, 43, ALNUM),
    "telegram": lambda d: digits(d, 10, "123456789") + ":AA" + letters(d, 33, ALNUM),
    "web token": lambda d: ".".join(
        ["eyJ" + letters(d, 33, ALNUM), "eyJ" + letters(d, 60, ALNUM), letters(d, 43, ALNUM)]
    ),
    "private key": lambda d: (
        "-----BEGIN "
        "RSA PRIVATE KEY-----\n"
        + "\n".join(letters(d, 64, ALNUM) for _ in range(3))
        + "\n-----END "
        "RSA PRIVATE KEY-----"
    ),
}

NAMED = {
    "api_key": lambda d: letters(d, 32, ALNUM),
    "hex token": lambda d: letters(d, 40, HEX),
    "password": lambda d: letters(d, 6, LOWER) + letters(d, 2, "ABCDEF") + digits(d, 3) + "!x#Q",
    "secret": lambda d: letters(d, 40, ALNUM + "/+"),
    "bearer": lambda d: letters(d, 44, ALNUM + "-_"),
}

CONTEXTS = {
    "email": [
        "Please write to {} before Friday.",
        "You can reach me under {}, or leave a note.",
        "{} is the address that I use for work",
        "Contact: {}",
        "Kontakt: {} (Frau Weber)",
        "Send the invoice to ({}) and a copy to the office.",
        'She answered, "my new address is {}".',
        "Questions? {}!",
        "De: {}\nObjet: rendez-vous",
        "<{}> wrote:",
    ],
    "phone": [
        "Call me at {} after six.",
        "Tel: {}",
        "Phone {}, please leave a message.",
        "Mobile: {}; I answer in the evening.",
        "My phone number is {}.",
        "Telefon: {} (Mo-Fr)",
        "Tél. {}",
        "teléfono {}",
        "fax {} or by letter",
        "WhatsApp {}",
    ],
    "phone alone": [
        "The clinic, {}, opens at nine.",
        "{} is hers.",
        "Smith & Sons | {} | Main Street",
        "Reservations {} daily",
        "Ask for Ms Weber ({}).",
        "In an emergency {} is answered day and night.",
    ],
    "card": [
        "My card {} expires in May.",
        "Charge it to {}.",
        "Card number: {}, CVC on the back",
        "pay with {} please",
        "Kreditkarte {}",
        "She read out {} over the phone.",
    ],
    "iban": [
        "Please transfer it to {} by Monday.",
        "IBAN: {}",
        "Konto {}, Verwendungszweck Miete",
        "The account is {}.",
        "iban {} bic unknown",
        "compte {} et merci",
    ],
    "ip": [
        "The request came from {} at night.",
        "Login from {} was blocked.",
        "Server {} does not answer.",
        '{} - - [10/Oct] "GET /index.html"',
        "host={}, retries=3",
        "My address on the network is {}.",
        "ping {}",
        "She connected through {}.",
    ],
    "secret": [
        "export TOKEN={}",
        "the key is {} and it still works",
        '{"key": "{}"}',
        "I pasted {} by mistake.",
        "Authorization: Bearer {}",
        "curl -H 'X-Auth: {}' https://example.com",
    ],
}
CONTEXTS["secret named"] = [
    'api_key = "{}"',
    "API_TOKEN={}",
    "password: {}",
    "client_secret: '{}'",
    "the access token is {}",
    '"secretKey": "{}",',
]

FORMS: dict[str, dict[str, Callable[[Draw], str]]] = {
    "email": EMAILS,
    "phone": PHONES,
    "phone alone": {name: make for name, make in PHONES.items() if name not in SPOKEN_ONLY},
    "card": CARDS,
    "iban": IBANS,
    "ip": IPS,
    "secret": SECRETS,
    "secret named": NAMED,
}


def isbn13(draw: Draw) -> str:
    body = f"978{digits(draw, 9)}"
    check = -sum(int(c) * (3 if i % 2 else 1) for i, c in enumerate(body)) % 10
    return f"{body[:3]}-{body[3]}-{body[4:8]}-{body[8:12]}-{check}"


def wrong_card(draw: Draw) -> str:
    right = card("4", 16, FOURS, " ")(draw)
    return right[:-1] + str((int(right[-1]) + draw.randint(1, 9)) % 10)


def wrong_iban(draw: Draw) -> str:
    right = iban("DE", "", 22, "groups")(draw)
    return right[:-1] + str((int(right[-1]) + draw.randint(1, 9)) % 10)


def shaped(form: str) -> Callable[[Draw], str]:
    """A sentence in which {3-9} is a number in a range, # a digit and ~ a hex digit."""

    def make(draw: Draw) -> str:
        text = re.sub(r"\{(\d+)-(\d+)\}", lambda m: str(draw.randint(int(m[1]), int(m[2]))), form)
        return re.sub("[#~]", lambda m: draw.choice(HEX if m[0] == "~" else HEX[:10]), text)

    return make


SHAPED = {
    "version": "Upgrade to version {1-9}.{0-30}.{0-9}.{0-9} first.",
    "v version": "It broke in v{1-9}.{0-20}.{0-9}.1",
    "browser": "Chrome/{90-140}.0.{4000-6000}.{10-200}",
    "requirement": "numpy=={1-2}.{0-30}.{0-9}.{0-3}",
    "section": "As section {1-12}.{1-9}.{1-9}.{1-9} says, the tenant pays.",
    "heading": "{1-12}.{1-9}.{1-9}.{1-9} Scope of the rules",
    "section sign": "see § {1-12}.{1-9}.{1-9}.{1-9}",
    "oid": "The identifier is 1.3.6.1.4.1.{100-9999}.{1-9}.",
    "isbn 10": "ISBN 0-###-#####-#",
    "issn": "ISSN ####-####",
    "date iso": "It was signed on {1950-2026}-{10-12}-{10-28}.",
    "date dots": "Geboren am {10-28}.{10-12}.{1950-2010} in Wien.",
    "date slashes": "Due {10-12}/{10-28}/{2000-2026}, no later.",
    "date and time": "At {1950-2026}-{10-12}-{10-28} 10:30:15 it stopped.",
    "years": "He lived there {1800-1850}-{1851-1899}, mostly alone.",
    "seasons": "in the {2010-2019}/{2020-2026} season",
    "time": "The train leaves at {10-23}:{10-59}:{10-59}.",
    "order": "Order 11#-#######-####### has been shipped.",
    "order number": "Your order no. 4######### is ready.",
    "order dashes": "Ticket #{222-599}-{222-599}-#### is closed.",
    "invoice": "Rechnung Nr. 2###-######, zahlbar sofort",
    "customer": "Kundennummer 0######### bitte angeben",
    "tracking": "Tracking: 1ZABCDEF##########",
    "part": "part number 3##-4##-#### fits",
    "sha1": "fixed in commit " + "~" * 40,
    "sha short": "Merged ~~~~~~~ and ~~~~~~~~~~~~.",
    "md5": "md5sum: " + "~" * 32 + "  disk.img",
    "uuid": "request ~~~~~~~~-~~~~-4~~~-a~~~-~~~~~~~~~~~~",
    "pi": "pi is 3.14159265358979#### and so on",
    "decimals": "The mean was {0-99}.######### ± 0.######.",
    "sum": "1#### + 2##### = 2######",
    "product": "compute 1### * 2### - 3######",
    "thousands": "It has {1-99},###,### inhabitants.",
    "thousands spaces": "soit {100-900} ### ### habitants",
    "thousands dots": "insgesamt {10-99}.###.### Euro",
    "money": "They paid ${1-9},###,###.00 in cash.",
    "coordinates": "at 52.######, 13.######",
    "long number": "id=8#################",
    "timestamp": "created_at: 17########",
    "range of pages": "pp. {1000-1400}-{1401-1999}, vol. 12",
    "table": " ".join(["{10-99}.#"] * 8),
    "sequence": "1 1 2 3 5 8 13 21 34 55 89 144",
    "zip": "#####-#### is in Ohio",
    "mac": "link ~~:~~:~~:~~:~~:~~",
    "scope": "std::vector<a::b> x; ab::cd::f({1-9});",
    "ratio": "a ratio of {1-9}:{1-9}:{1-9}",
    "loopback": "It listens on 127.0.0.1 and ::1, with mask 255.255.255.0.",
    "at": "We meet at noon; look at the map dot by dot.",
    "at home": "She stayed at home at last. Dot com companies failed.",
    "handle": "Follow @maria_novak{1-99} for more.",
    "decorator": "@pytest.mark.parametrize and @app.route",
    "file": "the icon is logo@2x.png, {16-64} pixels wide",
    "repository": "git clone git@github.com:owner/project.git",
    "package": "npm install @angular/core@{10-17}.0.#",
    "password word": "Forgot your password? Reset it here. The key is under the mat.",
    "token word": "Each token is a subword; the secret is patience, the key: practice.",
    "key name": "api_key = os.environ['API_KEY']  # the secret is read at start",
    "number plate": "plate B-AC ####",
    "verse": "John {1-21}:{1-30}-{31-60}",
    "score": "They won 6-{0-4} 3-6 7-5 and 25-{10-23}.",
    "arxiv": "arXiv:2{0-6}0{1-9}.#####",
    "doi": "doi:10.####/abcde.#######",
    "case": "Case {10-26}-##### was heard.",
    "year list": "1914 1918 1939 1945 1989",
}
NOTHING: dict[str, Callable[[Draw], str]] = {
    **{name: shaped(form) for name, form in SHAPED.items()},
    "isbn": lambda d: f"ISBN {isbn13(d)}, second edition",
    "isbn alone": lambda d: f"Published as {isbn13(d)} in Leipzig.",
    "wrong card": lambda d: f"The example number {wrong_card(d)} is refused.",
    "wrong account": lambda d: f"IBAN {wrong_iban(d)} ist ungültig",
}
"""What only looks like PII."""
