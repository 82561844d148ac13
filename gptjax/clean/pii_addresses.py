"""Addresses of machines: IPv4 and IPv6, told from version numbers, sections and times."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_V4 = re.compile(
    rf"(?<![\w.])(?<!\d[,:/])(?P<ip>{_OCTET}(?:(?:\.|\[\.\]|\(\.\)|\[dot\]){_OCTET}){{3}})"
    r"(?P<port>:\d{1,5}(?!\d)|/\d{1,2}(?!\d))?(?![\w]|\.\w|-\w)",
    re.IGNORECASE,
)
_V6 = re.compile(
    r"(?<![\w:.])(?P<ip>[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:(?<=:)"
    rf"{_OCTET}(?:\.{_OCTET}){{3}})?)(?![\w:]|\.\d)"
)
_NUMBERED = re.compile(
    r"(?:\b(?:versions?|ver|v|release|build|rev|revision|firmware|sections?|sect?|chapters?|ch|"
    r"paragraphs?|para|articles?|art|clauses?|rules?|figures?|fig|tables?|tab|appendix|annex|item|"
    r"items|step|steps|part|parts|note|see|cf|upgrade|upgraded|update|updated|patch|driver|kernel|"
    r"abschnitt|kapitel|ziffer|absatz|nr|no|section|sección|capítulo|chapitre|article|requires?|"
    r"oid|theorem|lemma|exercise|problem|equation|eq|asset|sdk|api|package|library|app|software|"
    r"python|java|node|chrome|firefox|safari|windows|android|ios|linux|macos|opera|edge|chromium)"
    r"|§+|¶)[\s.:=/-]*(?:(?:to|from|number|no|is|and|or|>=|<=|==|~=|\^|~|>|<)[\s.:]*)*$"
    r"|(?:==|>=|<=|~=|\^|[A-Za-z]/|-|@)$",
    re.IGNORECASE,
)
"""What stands before numbers that only look like an address."""
_MACHINE = re.compile(
    r"\b(?:ip|ips|ipv4|ipv6|address|addresses|host|server|servers|dns|ping|gateway|subnet|router|"
    r"port|proxy|login|logged|client|connect|connected|connection|firewall|network|remote|peer|"
    r"traffic|ssh|vpn|nat|lan|node|nameserver|adresse|dirección|servidor|serveur|listen|bind|from|"
    r"request|requests|attack|blocked|banned)\b",
    re.IGNORECASE,
)
SMALL = 31
"""Four numbers up to this may count sections or versions, unless the text speaks of machines."""
AROUND = 48
"""Characters before and after an address that are read as what the text speaks of."""
NOBODY = ("0.0.0.0/8", "127.0.0.0/8", "255.0.0.0/8", "::/128", "::1/128")
"""Networks of no machine in particular: unspecified, loopback, masks and broadcast."""
_NOBODY = [ipaddress.ip_network(net) for net in NOBODY]


def find_ips(text: str) -> Iterator[tuple[int, int]]:
    """Yields addresses of version 4 and 6, without ports; loopback, masks and the unspecified
    address name nobody and stay."""
    for match in _V4.finditer(text):
        begin, end = match.span("ip")
        address = re.sub(r"[^\d.]", "", re.sub(r"(?i)\[dot\]", ".", match["ip"]))
        if _is_machine(address, text, begin, end, bool(match["port"])):
            yield begin, end
    if text.count(":") > 1:
        for match in _V6.finditer(text):
            if _is_v6(match["ip"]):
                yield match.span("ip")


def _is_machine(address: str, text: str, begin: int, end: int, port: bool) -> bool:
    """Whether four numbers are an address rather than a version or a section."""
    if _names_nobody(address):
        return False
    before = text[max(0, begin - AROUND) : begin]
    if _NUMBERED.search(before):
        return False
    if port or "[" in text[begin:end] or "(" in text[begin:end]:
        return True
    if max(map(int, address.split("."))) > SMALL:
        return True
    line = before.rsplit("\n", 1)[-1]
    heads_line = not line.strip() and re.match(r"\s+[A-Z]", text[end : end + 4])
    around = f"{before} {text[end : end + AROUND]}"
    return not heads_line and bool(_MACHINE.search(around))


def _is_v6(candidate: str) -> bool:
    """Whether groups of hex digits are an address rather than a time or a scope of C++."""
    try:
        address = ipaddress.IPv6Address(candidate)
    except ValueError:
        return False
    first = candidate.split(":")[0].lower()
    routed = len(first) == 4 and (first[0] in "23" or first[:2] in ("fc", "fd", "fe", "ff"))
    mapped = address.ipv4_mapped is not None or candidate.lower().startswith("64:ff9b::")
    return (routed or mapped) and not _names_nobody(candidate)


def _names_nobody(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return any(parsed in net for net in _NOBODY if net.version == parsed.version)
