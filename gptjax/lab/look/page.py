"""What `gptjax look` found, as one HTML page without a script, the network or a font.

Read `Look`, then `look_page` and its sections in the order of the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gptjax.lab.look.pictures import (
    LOOK_STYLE,
    TONES,
    attention_map,
    heat_map,
    shaded_tokens,
    token_html,
    visible_token,
)
from gptjax.observe.charts import escaped
from gptjax.observe.html_page import html_page

WORTH = 0.2
"""Score from which a head is called one of its kind."""


@dataclass(frozen=True)
class Look:
    """What was found in a model about one prompt; arrays are numpy's."""

    model: str
    tokens: Sequence[str]
    """The prompt, token by token [T]."""
    answer: str
    foil: str
    """The token that the answer is compared with."""
    at: int
    """The position at which the model answers."""
    chances: tuple[float, float]
    """Probabilities of answer and foil."""
    lens: Sequence[Sequence[Sequence[tuple[str, float]]]]
    """[levels T top] likeliest tokens with their probabilities."""
    answer_chances: np.ndarray
    """[levels] probability of the answer where it is given."""
    attributions: Mapping[str, np.ndarray]
    """Method → [T], in logits of answer − foil."""
    completeness: tuple[float, float]
    """Of integrated gradients: the sum's error, and the difference that it should sum to."""
    direct: tuple[np.ndarray, np.ndarray] | None
    """[L N] and [L] logits that heads and MLPs wrote; `None` where the stream is no sum."""
    patterns: np.ndarray
    """[L N T S]."""
    layers: Sequence[int]
    """Numbers of the layers that attend."""
    kinds: Mapping[str, np.ndarray]
    """Kind of head → [L N] scores on repeated random tokens."""
    rollout: np.ndarray | None = None
    """[T S], of encoders."""
    against: Sequence[str] = ()
    """The other prompt."""
    patched: tuple[np.ndarray, np.ndarray] | None = None
    """[L T] and [L N]: shares of the answer that patches bring back."""
    differences: tuple[float, float] = (0.0, 0.0)
    """logit(answer) − logit(foil) of the prompt and of the other one."""


def look_page(look: Look) -> str:
    """Returns the page."""
    sections = [
        ("What each layer would answer", _lens(look)),
        ("Which tokens it comes from", _attributions(look)),
        ("What wrote it", _direct(look)),
        ("What brings it back", _patched(look)),
        ("How tokens reach each other", _rollout(look)),
        ("What heads look at", _heads(look)),
    ]
    body = "".join(
        f"<section><h2>{title}</h2>{inner}</section>" for title, inner in sections if inner
    )
    footer = "Written by gptjax. What each picture is: docs/look.md."
    return html_page(look.model, "look", _lead(look), body, footer, LOOK_STYLE)


def _lead(look: Look) -> str:
    """The prompt and its answer as plain text."""
    chance, other = look.chances
    return (
        f"“{''.join(look.tokens)}” → {visible_token(look.answer)} with probability {chance:.3f};"
        f" {visible_token(look.foil)} {other:.3f}."
    )


def _soft(text: str) -> str:
    return f'<p class="soft">{text}</p>'


# --- lens


def _lens(look: Look) -> str:
    """A row for each level, the last on top; each cell is the likeliest token there."""
    rows = []
    for level in reversed(range(len(look.lens))):
        name = "output" if level == len(look.lens) - 1 else f"before layer {level}"
        cells = "".join(_cell(options) for options in look.lens[level])
        chance = float(look.answer_chances[level])
        rows.append(f'<tr><th scope="row">{name}</th><th scope="row">{chance:.3f}</th>{cells}</tr>')
    last = "".join(f"<th>{token_html(token)}</th>" for token in look.tokens)
    head = f"likeliest next token; second column: probability of {token_html(look.answer)}"
    return (
        _soft(f"Logit lens: {head}; the darker, the surer. Tooltips have the first few.")
        + f'<div class="scroll"><table class="lens"><tbody>{"".join(rows)}</tbody><tfoot><tr>'
        f"<th></th><th></th>{last}</tr></tfoot></table></div>"
    )


def _cell(options: Sequence[tuple[str, float]]) -> str:
    token, chance = options[0]
    said = ", ".join(f"{name!r} {p:.3f}" for name, p in options)
    return f'<td class="a{round(chance * TONES)}" title="{escaped(said)}">{token_html(token)}</td>'


# --- tokens


def _attributions(look: Look) -> str:
    error, whole = look.completeness
    answer, foil = token_html(look.answer), token_html(look.foil)
    parts = [
        _soft(
            f"Share of each token in logit({answer}) − logit({foil}), against a mean embedding:"
            " blue for the answer, orange for the other."
        )
    ]
    for name, values in look.attributions.items():
        note = ""
        if name == "integrated gradients":
            note = f": sum off by {error:+.4f} of {whole:+.4f} (completeness)"
        parts.append(f"<h3>{escaped(name)}{note}</h3>{shaded_tokens(look.tokens, values)}")
    return "".join(parts)


def _direct(look: Look) -> str:
    if look.direct is None:
        return ""
    heads, mlps = look.direct
    table = np.concatenate([heads, np.full((len(heads), 1), np.nan), mlps[:, None]], axis=1)
    columns = [f"head {n}" for n in range(heads.shape[1])] + ["", "MLP"]
    rows = [f"layer {number}" for number in range(len(heads))]
    picture = heat_map(table, rows, columns, title="Direct logit attribution", unit="logits")
    return (
        _soft(
            "Logits of the answer over the other that each head and each MLP wrote into the stream"
            " itself, with the last norm as it is here."
        )
        + f'<div class="scroll">{picture}</div>'
    )


def _patched(look: Look) -> str:
    if look.patched is None:
        return ""
    by_position, by_head = look.patched
    first, second = look.differences
    rows = [f"layer {number}" for number in range(len(by_position))]
    places = [
        visible_token(a) if a == b else f"{visible_token(b)}←{visible_token(a)}"
        for a, b in _pairs(look)
    ]
    stream = heat_map(by_position, rows, places, title="Patching the stream", largest=1.0)
    heads = [f"head {n}" for n in range(by_head.shape[1])]
    numbers = [f"layer {number}" for number in look.layers]
    by_head_svg = heat_map(by_head, numbers, heads, title="Patching heads", largest=1.0)
    return (
        _soft(
            f"The other prompt, “{escaped(''.join(look.against))}”, with one activation of this"
            f" one put in: 1 brings all of the answer back. Logit difference here {first:+.2f},"
            f" there {second:+.2f}."
        )
        + f'<h3>The stream where a layer begins, by position</h3><div class="scroll">{stream}</div>'
        f'<h3>What a head gives, at all positions</h3><div class="scroll">{by_head_svg}</div>'
    )


def _pairs(look: Look) -> list[tuple[str, str]]:
    return list(zip(look.against, look.tokens, strict=True))


def _rollout(look: Look) -> str:
    if look.rollout is None:
        return ""
    return _soft(
        "Attention rollout at the answer: attention of all layers multiplied, half of each layer"
        " being the stream (heads averaged)."
    ) + shaded_tokens(look.tokens, look.rollout[look.at])


# --- heads


def _heads(look: Look) -> str:
    kinds = "".join(
        f'<tr><th scope="row">{escaped(kind)}</th><td>{_best(look, scores)}</td></tr>'
        for kind, scores in look.kinds.items()
    )
    table = f'<table class="kinds"><tbody>{kinds}</tbody></table>' if kinds else ""
    said = "Scores on random tokens that are repeated: the attention given to the token before, to"
    said += " equal tokens, and to what followed them. " if kinds else ""
    layers = "".join(_layer(look, index) for index in range(len(look.layers)))
    return (_soft(said) + table if kinds else "") + layers


def _best(look: Look, scores: np.ndarray, count: int = 5) -> str:
    order = np.argsort(-scores, axis=None)[:count]
    places = [np.unravel_index(one, scores.shape) for one in order]
    return ", ".join(
        f"{look.layers[layer]}.{head} {scores[layer, head]:.2f}" for layer, head in places
    )


def _layer(look: Look, index: int) -> str:
    """One layer's maps, folded; the first is open."""
    figures = []
    for head, pattern in enumerate(look.patterns[index]):
        told = [
            f"{k} {s[index, head]:.2f}" for k, s in look.kinds.items() if s[index, head] > WORTH
        ]
        name = f"head {look.layers[index]}.{head}"
        picture = attention_map(pattern, title=f"{name}: attention, queries downwards")
        named = ", ".join([name, *told])
        figures.append(f"<figure>{picture}<figcaption>{escaped(named)}</figcaption></figure>")
    opened = " open" if index == 0 else ""
    return (
        f"<details{opened}><summary>layer {look.layers[index]}</summary>"
        f'<div class="maps">{"".join(figures)}</div></details>'
    )
