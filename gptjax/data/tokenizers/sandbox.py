"""Runs a model's own chat template, a program in Jinja, such that every character of its output is
known to be the template's or a message's.

Read `Conversation` first. Before a template runs, every character of every message is replaced by a
stand-in that neither the template nor the tokenizer uses, one to one and different for each
message. Stand-ins keep their places when a template slices, strips or joins strings, so its output
says of each character where it came from, whatever the template did and whatever the messages say.
`Traced` is the string type that still compares like the text it stands for.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, SupportsIndex

from gptjax.core.config import ConfigError, require

RANGES = ((0x40000, 0xE0000), (0xF0000, 0xFFFFE), (0x100000, 0x10FFFE))
"""Code points of stand-ins: Unicode leaves them unassigned or to private use."""
CHOOSE = "choose another with --template, for example --template chatml"


class Conversation:
    """Messages whose characters are replaced by stand-ins, and the template that writes them."""

    def __init__(
        self,
        source: str,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        reserved: str = "",
    ) -> None:
        """Hides everything in `messages` but their roles, and everything in `variables["tools"]`.

        Args:
          source: the template, in Jinja.
          messages: what the template sees as `messages`.
          variables: further names that the template may use.
          reserved: characters that are never stand-ins, besides those of `source`.
        """
        self.stand_ins = StandIns(source + reserved)
        self._source = source
        self._now = dt.datetime.now()
        self._messages = [dict(message) for message in messages]
        self._variables = dict(variables)
        hide = self.stand_ins.hide
        self._hidden = [
            {key: value if key == "role" else hide(value, n) for key, value in message.items()}
            for n, message in enumerate(self._messages)
        ]
        self._hidden_tools = hide(self._variables.get("tools"), len(self._messages))

    def text(self, count: int, reply: bool) -> str:
        """Renders the first `count` messages, every character of a message a stand-in.

        Args:
          reply: end with what asks the model for an answer.

        Raises:
          ConfigError: the template refuses the messages, or fails.
        """
        variables = self._variables | {"tools": self._hidden_tools}
        return self._run(self._hidden[:count], variables, reply)

    def require_exact(self, text: str, reply: bool) -> None:
        """Checks that `text`, of all messages, is what the template writes when it sees them as
        they are.

        Raises:
          ConfigError: the template changes messages in a way that cannot be followed.
        """
        plain = self._run(self._messages, self._variables, reply)
        require(
            self.stand_ins.shown(text) == plain,
            "the chat template changes what messages say in a way that cannot be followed, so"
            f" they cannot be kept apart from its control tokens; {CHOOSE}.",
        )

    def _run(self, messages: list[dict[str, Any]], variables: dict[str, Any], reply: bool) -> str:
        import jinja2

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        try:
            text = _compiled(self._source).render(
                messages=messages,
                add_generation_prompt=reply,
                raise_exception=refuse,
                strftime_now=self._now.strftime,
                **variables,
            )
            return str.__getitem__(text, slice(None))  # not `Traced`
        except ConfigError:
            raise
        except Exception as error:  # a template is a program: it may fail in any way
            reason = " ".join(self.stand_ins.shown(str(error)).split()) or type(error).__name__
            raise ConfigError(
                f"the chat template cannot write this conversation: {reason.rstrip('.')};"
                f" change the messages, or {CHOOSE}."
            ) from None


class StandIns:
    """An alphabet that grows as it is needed: a stand-in for each character of each message."""

    def __init__(self, reserved: str) -> None:
        taken = set(reserved)
        codes = itertools.chain.from_iterable(itertools.starmap(range, RANGES))
        self._free = (chr(code) for code in codes if chr(code) not in taken)
        self._letters: dict[tuple[int, str], str] = {}
        self._characters: dict[int, str] = {}
        self._origins: dict[str, int] = {}

    def hide(self, value: Any, origin: int) -> Any:
        """Replaces every character of every string in a value of JSON's kind.

        Args:
          origin: number of the message that the value belongs to.
        """
        if isinstance(value, str):
            return Traced("".join(self._letter(c, origin) for c in value), self)
        if isinstance(value, Mapping):
            return {self.hide(k, origin): self.hide(v, origin) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(v, origin) for v in value]
        return value

    def shown(self, text: str) -> str:
        """Replaces every stand-in by the character that it stands for."""
        return str.translate(text, self._characters)

    def origin(self, character: str) -> int | None:
        """Returns the number of the message that a character of a rendered text comes from; `None`
        means the template."""
        return self._origins.get(character)

    def _letter(self, character: str, origin: int) -> str:
        key = (origin, character)
        if key not in self._letters:
            free = next(self._free, None)
            require(
                free is not None,
                f"the conversation has over {len(self._letters):,} different characters, counted"
                " in each message; shorten it.",
            )
            self._letters[key] = free
            self._characters[ord(free)] = character
            self._origins[free] = origin
        return self._letters[key]


def _asks(method: str) -> Callable[..., Any]:
    """A method of `Traced` that answers for the text it stands for."""

    def ask(self: Traced, *args: Any) -> Any:
        return getattr(self._shown(), method)(*map(shown, args))

    return ask


class Traced(str):
    """A string with stand-ins that compares, searches and splits like the text that it stands for.

    Whatever is cut out of it or joined to it keeps its stand-ins. Methods that are not overridden
    work on the stand-ins themselves: their result may differ from that on the text, which
    `Conversation.require_exact` finds, but never has a message's character as it is.
    """

    __slots__ = ("_stand_ins",)
    _stand_ins: StandIns

    def __new__(cls, text: str, stand_ins: StandIns) -> Traced:
        made = super().__new__(cls, text)
        made._stand_ins = stand_ins
        return made

    def _shown(self) -> str:
        return self._stand_ins.shown(self)

    def _saying(self, text: str) -> Traced:
        """Returns `text` as text of the message that this string begins with."""
        return self._stand_ins.hide(text, self._stand_ins.origin(str.__getitem__(self, 0)) or 0)

    def _cut(self, start: int, end: int) -> Traced:
        return Traced(str.__getitem__(self, slice(start, end)), self._stand_ins)

    def _tiles(self, pieces: Iterable[str], gap: int) -> list[Traced]:
        """Cuts itself as its text was cut into `pieces`, `gap` characters apart."""
        cuts, at = [], 0
        for piece in pieces:
            cuts.append(self._cut(at, at + len(piece)))
            at += len(piece) + gap
        return cuts

    def __str__(self) -> str:
        return self

    def __hash__(self) -> int:
        return hash(self._shown())

    def __getitem__(self, key: SupportsIndex | slice) -> Traced:
        return Traced(str.__getitem__(self, key), self._stand_ins)

    def __iter__(self) -> Iterator[str]:
        return (self._cut(n, n + 1) for n in range(len(self)))

    def __add__(self, other: str) -> Traced:
        return Traced(str.__add__(self, other), self._stand_ins)

    def __radd__(self, other: str) -> Traced:
        return Traced(str.__add__(other, self), self._stand_ins)

    __eq__, __ne__, __contains__ = _asks("__eq__"), _asks("__ne__"), _asks("__contains__")
    startswith, endswith, isspace = _asks("startswith"), _asks("endswith"), _asks("isspace")
    find, rfind, index, count = _asks("find"), _asks("rfind"), _asks("index"), _asks("count")

    def strip(self, chars: str | None = None) -> Traced:
        return self.rstrip(chars).lstrip(chars)

    def lstrip(self, chars: str | None = None) -> Traced:
        return self._cut(len(self) - len(self._shown().lstrip(shown(chars))), len(self))

    def rstrip(self, chars: str | None = None) -> Traced:
        return self._cut(0, len(self._shown().rstrip(shown(chars))))

    def removeprefix(self, prefix: str) -> Traced:
        return self._cut(len(prefix) if self.startswith(prefix) else 0, len(self))

    def removesuffix(self, suffix: str) -> Traced:
        return self._cut(0, len(self) - len(suffix) if self.endswith(suffix) else len(self))

    def split(self, sep: str | None = None, maxsplit: int = -1) -> list[Traced]:
        if sep is None:
            require(maxsplit < 0, "split() at white space has no limit here")
            return [self._cut(*match.span()) for match in re.finditer(r"\S+", self._shown())]
        return self._tiles(self._shown().split(shown(sep), maxsplit), len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: int = -1) -> list[Traced]:
        if sep is None:
            return self.split(None, maxsplit)
        return self._tiles(self._shown().rsplit(shown(sep), maxsplit), len(sep))

    def splitlines(self, keepends: bool = False) -> list[Traced]:
        lines = self._tiles(self._shown().splitlines(True), 0)
        bare = self._shown().splitlines(keepends)
        return [line[: len(text)] for line, text in zip(lines, bare, strict=True)]

    def partition(self, sep: str) -> tuple[Traced, Traced, Traced]:
        before, separator, _ = self._shown().partition(shown(sep))
        at, end = len(before), len(before) + len(separator)
        return self._cut(0, at), self._cut(at, end), self._cut(end, len(self))

    def rpartition(self, sep: str) -> tuple[Traced, Traced, Traced]:
        before, separator, _ = self._shown().rpartition(shown(sep))
        at, end = len(before), len(before) + len(separator)
        return self._cut(0, at), self._cut(at, end), self._cut(end, len(self))

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> Traced:
        require(len(old) > 0, "replace() needs something to replace")
        return Traced(new, self._stand_ins).join(self.split(old, int(count)))

    def join(self, parts: Iterable[str]) -> Traced:
        return Traced(str.join(self, parts), self._stand_ins)


def shown(value: Any) -> Any:
    """Returns the value with every `Traced` string in it replaced by the text it stands for."""
    if isinstance(value, Traced):
        return value._shown()
    if isinstance(value, Mapping):
        return {shown(k): shown(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(shown(v) for v in value)
    return value


def joined(pieces: Iterable[str]) -> str:
    """Joins what a template writes; the result is `Traced` if any piece is, as a macro's result
    may be taken apart later."""
    pieces = list(pieces)
    text, traced = "".join(pieces), next((p for p in pieces if isinstance(p, Traced)), None)
    return text if traced is None else Traced(text, traced._stand_ins)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson` as `transformers` has it, which escapes nothing for HTML; JSON that holds
    anything of a message counts as the message's."""
    text = json.dumps(
        shown(value),
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    traced = next(_traced(value), None)
    return text if traced is None else traced._saying(text)


def _traced(value: Any) -> Iterator[Traced]:
    """Yields the strings in a value that are `Traced` and not empty."""
    if isinstance(value, Traced) and value:
        yield value
    elif isinstance(value, Mapping):
        yield from _traced([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _traced(item)


@lru_cache(maxsize=32)
def _compiled(source: str) -> Any:
    """The template in a sandbox: no attribute that begins with an underscore, no import, no file,
    nothing that changes a list or a dict."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks answers for `transformers`: its body, unchanged."""

        tags: ClassVar[set[str]] = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.concat = joined
    environment.filters["tojson"] = to_json
    try:
        return environment.from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"the chat template is not valid Jinja ({reason}); {CHOOSE}.") from None
