"""Laws of regular expressions and grammars as languages: Python's `re` accepts the same texts."""

from __future__ import annotations

import itertools
import re
import time

import numpy as np
import pytest
from walks import speller, walk

from gptjax.core.config import ConfigError
from gptjax.generate.constraints import compiled
from gptjax.generate.constraints.automaton import compile_language, intersect, subtract
from gptjax.generate.constraints.languages import LAST_CODE_POINT, chars
from gptjax.generate.constraints.patterns import regex
from gptjax.generate.constraints.syntaxes import byte_automaton

PATTERNS = [
    r"a",
    r"abc",
    r"a|b|",
    r"a*b+c?",
    r"(ab)*c",
    r"[a-c]{2,3}",
    r"[^a]",
    r".",
    r"\d+\.\d{2}",
    r"a{2}",
    r"a{0}b",
    r"a{2,}",
    r"(a|b)*abb",
    r"\w\W\s\S\D",
    r"[\d_-]+",
    r"\[\]\\",
    r"[\]]",
    r"é|😀+",
    r"[à-ü]",
    r"[a-😀]",
    r"\x41\u00e9\t",
    r"^ab$",
    r"(?:a|bc)+?",
    r"a.c",
    r"(?i)abb",
    r"(?i)[^A]",
    r"a(?i:b)c",
    r"(?P<one>a)(?P<two>b|c)*",
    r"\ba\b|b\B.",
    r".*\bab\b.*",
    r"a\b.b",
    r"[\s\S]",
    r"[\D]",
    r"[^\W\d]",
    r"a$|b",
    r"(a$|b)c?",
    r"(^a|b)+",
    r"^$|a",
    r"C:\\$",
    r"\Aab\Z",
    r"(?s).",
    r"(?s:.)b|.",
    r"(?#comment)a",
    r"(?=.*b)[abc]{3}",
    r"(?=.*a)(?!.*b).*c",
    r"(?!ab)a.*",
    r"[]a]+",
    r"[a-]+",
    r"a{,2}",
    r"(a{1,2}){1,2}",
    r"(a?){3}b",
]
PROBES = [
    "",
    *map("".join, itertools.product("ab", repeat=2)),
    *map("".join, itertools.product("abc", repeat=3)),
    *("abb", "ababc", "bb", "aabb", "12.34", "1.2", "a-_ 0", "_-1", "[]\\", "]", "C:\\"),
    *("é", "😀", "😀😀", "ü", "ſ", "Aé\t", "a\nc", "\n", "A!\t!x", "a", "b", "c", "aaaa", "bcbca"),
    *("\x00", "\U0010ffff", "ABB", "aBb", "A", "aBc", "a b", "b ab c", "ab c", "a\n", "-a", "7"),
]


@pytest.mark.parametrize("pattern", ["", *PATTERNS])
def test_a_regex_accepts_what_python_s_accepts(pattern):
    automaton = compile_language(regex(pattern))
    theirs = re.compile(pattern, re.ASCII)
    for probe in PROBES:
        assert automaton.accepts(probe.encode()) == bool(theirs.fullmatch(probe)), probe


@pytest.mark.parametrize(
    "pattern", ["b", "^b", "b$", "^b$", "b$|^c", r"\bb\b", "", "(?i)B{2}", "^(?=.*c)a"]
)
def test_a_regex_of_a_schema_is_searched_for(pattern):
    automaton = compile_language(regex(pattern, anywhere=True))
    for probe in (probe for probe in PROBES if not probe.endswith("\n") and probe.isascii()):
        assert automaton.accepts(probe.encode()) == bool(re.search(pattern, probe)), probe


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        (r"\p{L}+", "aéЖ中", "1 _😀"),
        (r"\P{L}", "1_😀", "aé"),
        (r"[^\p{Lu}\d]", "aé ", "AÉ1"),
        (r"\p{Uppercase_Letter}|\pN", "É1٣", "é"),
        ("(?i)straße|é", "éÉ", "e"),
        (r"[\u{1F600}-\u{1F64F}]", "😀", "a"),
    ],
)
def test_unicode_properties_and_cases(pattern, inside, outside):
    automaton = compile_language(regex(pattern))
    assert all(automaton.accepts(one.encode()) for one in inside)
    assert not any(automaton.accepts(one.encode()) for one in outside)


@pytest.mark.parametrize(
    "pattern", [r"\D", r"\S\W", r"[^\d\s]", r".*\b\w+\b.*", r"\d\s\w", r"é\B.|a\Bb"]
)
def test_answers_match_whether_or_not_classes_reach_beyond_ascii(pattern):
    draw, tokenizer = np.random.default_rng(0), speller("bytes")
    automaton = compiled("regex", pattern, tokenizer)
    for _ in range(100):
        answer = walk(automaton, tokenizer, automaton.least + 20, draw).decode()
        assert re.fullmatch(pattern, answer, re.DOTALL), answer
        assert re.fullmatch(pattern, answer, re.DOTALL | re.ASCII), answer


def test_any_range_of_characters_is_its_utf8():
    draw = np.random.default_rng(0)
    borders = (0, 0x7F, 0x80, 0x7FF, 0x800, 0xFFFF, 0x10000, LAST_CODE_POINT)
    for _ in range(60):
        low, high = sorted(draw.integers(0, LAST_CODE_POINT + 1, 2).tolist())
        automaton = compile_language(chars([(low, high)]))
        points = draw.integers(0, LAST_CODE_POINT + 1, 20).tolist()
        for point in {low, high, low - 1, high + 1, *borders, *points}:
            if 0 <= point <= LAST_CODE_POINT and not 0xD800 <= point <= 0xDFFF:
                inside = low <= point <= high
                assert automaton.accepts(chr(point).encode()) == inside, (low, high, point)
        assert not automaton.accepts(b"\xff") and not automaton.accepts(b"\xed\xa0\x80")


def test_an_automaton_is_the_smallest():
    patterns = ("a|b|c", "(a|b)*abb", "a{5}", "abc|xbc|ybc", "(aa)*|(aaaa)*", "a{1,9}")
    sizes = [len(compile_language(regex(pattern)).table) for pattern in patterns]
    assert sizes == [2, 4, 6, 4, 2, 10]


def test_intersection_and_difference_are_those_of_sets():
    words = ["".join(word) for size in range(5) for word in itertools.product("ab", repeat=size)]
    pairs = [("(ab?)*", ".*b"), ("a*", "(aa)*"), ("[ab]*", "a[ab]{2}"), ("a", "b")]
    for left, right in pairs:
        one, two = (
            {word for word in words if re.fullmatch(pattern, word)} for pattern in (left, right)
        )
        for combine, expected in ((intersect, one & two), (subtract, one - two)):
            language = combine(regex(left), regex(right))
            if expected:
                automaton = compile_language(language)
                assert {word for word in words if automaton.accepts(word.encode())} == expected


@pytest.mark.parametrize(
    "pattern", [".{0,400}", "(a{1,100}){1,100}", r"(\w+ ){0,500}", r"\p{L}{0,20}"]
)
def test_long_repetitions_compile_in_seconds(pattern):
    start = time.process_time()
    compiled("regex", pattern, speller("BPE"))
    assert time.process_time() - start < 15


REFUSED = {
    "a(?=b)": "looks ahead after its beginning; look-ahead is supported at the beginning only",
    "a(?<=b)": "looks behind, which a finite automaton cannot do",
    r"(a)\1": "refers back to a group",
    r"(?P<x>a)(?P=x)": "refers back to a group",
    "(?>a|ab)c": "has an atomic group",
    "a++": "has a possessive repetition",
    "(?m)^a": "has the unsupported flag 'm' (multi-line anchors)",
    r"\p{Greek}": r"has \p{Greek}; only general categories such as L, Lu or Nd are supported",
    r"\Q": r"has the escape \Q, which is not supported",
    "(a": "has a '(' without ')'",
    "a)": "has a ')' without '('",
    "[a": "ends too early",
    "a{3,2}": "repeats {3,2}, which is backwards or above 10000",
    "*a": "has '*' with nothing to repeat before it",
    "{2}a": "has '{' with nothing to repeat before it",
    "a{1,2}{2}": "repeats a repetition; put it in a group",
    "(a{1000}){1000}": "repeats too much",
    "(a{180}b){180}": "needs more than 20000 states",
    "(a{1,100}b?){1,100}": "takes too long to compile",
    "[^\\x00-\\U0010ffff]": "matches no text at all",
    "a^b": "matches no text at all",
    "(" * 3000 + "a" + ")" * 3000: "nested too deep",
}


@pytest.mark.parametrize("pattern", [*REFUSED], ids=lambda pattern: pattern[:20])
def test_a_regex_that_cannot_be_followed_is_refused_by_name(pattern):
    start = time.process_time()
    with pytest.raises(ConfigError, match=re.escape(REFUSED[pattern])):
        byte_automaton("regex", pattern)
    assert time.process_time() - start < 5


WRONG_GRAMMARS = {
    'a ::= "b"': "no rule 'root'",
    "root ::= other": "no rule 'other', which 'root' needs",
    'root ::= "a" root': "matches no text at all",
    "hello": "grammar has 'hello'",
    'root ::= "a': "ends too early",
    "root ::= %": "has '%' where a text, a class or a rule is expected",
}


@pytest.mark.parametrize("rules", WRONG_GRAMMARS)
def test_a_grammar_that_is_wrong_is_refused_by_name(rules):
    with pytest.raises(ConfigError, match=re.escape(WRONG_GRAMMARS[rules])):
        byte_automaton("grammar", rules)
