"""The published forms of conversations, for models without a template of their own: `FORMS`, each
a small template in Jinja and the control tokens without which it cannot be used.

Sources: OpenAI's ChatML; Meta's pages on prompt formats of Llama 2, 3 and 3.1; Google's on Gemma;
mistral-common; Microsoft's model cards of Phi-3 and Phi-4; Hugging Face's of Zephyr. Differences:
Llama 3.1's date is the one that its template has where none is given; Mistral 1 and 3 and Gemma
have no system prompt of their own, it stands before the first message, as in their later templates;
Llama 2's first message is trimmed by itself, not together with the system prompt.
"""

from __future__ import annotations

_SPLIT = (
    "{% if messages and messages[0].role == 'system' %}"
    "{% set system = messages[0].content %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = none %}{% set turns = messages %}{% endif %}"
)
"""The system prompt, or none, apart from the other messages."""
_FIRST = "{% if loop.first and system is not none %}"


def _alike(header: str, end: str, content: str = "{{ m.content }}", begin: str = "") -> str:
    """A template whose messages of all roles are alike: `header` with ROLE, the content, `end`."""
    message = header.replace("ROLE", "{{ m.role }}") + content + end
    prompt = header.replace("ROLE", "assistant")
    return (
        f"{begin}{{% for m in messages %}}{message}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{prompt}{{% endif %}}"
    )


def _in_turns(user: str, assistant: str, first: str, begin: str = "{{ bos_token }}") -> str:
    """A template in which the system prompt stands inside the user's first message, as `first`."""
    return (
        f"{_SPLIT}{begin}{{% for m in turns %}}{{% if m.role == 'assistant' %}}{assistant}"
        f"{{% else %}}{user.replace('FIRST', _FIRST + first + '{% endif %}')}{{% endif %}}"
        "{% endfor %}"
    )


_HEADERS = "<|start_header_id|>ROLE<|end_header_id|>\n\n"
_HEADER_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_LLAMA_3 = _alike(_HEADERS, "<|eot_id|>", "{{ m.content | trim }}", "{{ bos_token }}")
_DATED = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
_LLAMA_3_1 = (
    _SPLIT
    + "{{ bos_token }}"
    + _HEADERS.replace("ROLE", "system")
    + _DATED
    + "{{ (system or '') | trim }}<|eot_id|>"
    + _LLAMA_3.removeprefix("{{ bos_token }}").replace("in messages", "in turns")
)
_GEMMA = (
    _in_turns(
        "<start_of_turn>user\nFIRST{{ m.content | trim }}<end_of_turn>\n",
        "<start_of_turn>model\n{{ m.content | trim }}<end_of_turn>\n",
        "{{ system }}\n\n",
    )
    + "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_LLAMA_2 = _in_turns(
    "{{ bos_token }}[INST] FIRST{{ m.content | trim }} [/INST]",
    " {{ m.content | trim }} {{ eos_token }}",
    "<<SYS>>\n{{ system }}\n<</SYS>>\n\n",
    begin="",
)
_SYSTEM = "{{ system }}\n\n"
_ANSWER = " {{ m.content }}{{ eos_token }}"
_MISTRAL_1 = _in_turns("[INST] FIRST{{ m.content }} [/INST]", _ANSWER, _SYSTEM)
_MISTRAL_3 = _in_turns("[INST] FIRST{{ m.content }}[/INST]", _ANSWER, _SYSTEM)
_TEKKEN = _in_turns("[INST]FIRST{{ m.content }}[/INST]", "{{ m.content }}{{ eos_token }}", _SYSTEM)
_MISTRAL_7 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}"
    "{{ eos_token }}{% elif m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]"
    "{% else %}[INST]{{ m.content }}[/INST]{% endif %}{% endfor %}"
)
_PLAIN = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n\n"
    "{% else %}{{ m.role | capitalize }}: {{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

FORMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "chatml": (
        _alike("<|im_start|>ROLE\n", "<|im_end|>\n"),
        ("<|im_start|>", "<|im_end|>"),
    ),
    "llama-2": (_LLAMA_2, ()),
    "llama-3": (_LLAMA_3, _HEADER_TOKENS),
    "llama-3.1": (_LLAMA_3_1, _HEADER_TOKENS),
    "gemma": (_GEMMA, ("<start_of_turn>", "<end_of_turn>")),
    "mistral-v1": (_MISTRAL_1, ()),
    "mistral-v3": (_MISTRAL_3, ("[INST]", "[/INST]")),
    "mistral-tekken": (_TEKKEN, ("[INST]", "[/INST]")),
    "mistral-v7": (
        _MISTRAL_7,
        ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    ),
    "phi-3": (
        _alike("<|ROLE|>\n", "<|end|>\n"),
        ("<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "phi-4": (
        _alike("<|im_start|>ROLE<|im_sep|>", "<|im_end|>"),
        ("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    ),
    "zephyr": (_alike("<|ROLE|>\n", "{{ eos_token }}\n"), ()),
    "plain": (_PLAIN, ()),
}
"""Name → (template, control tokens that it needs)."""
