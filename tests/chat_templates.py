"""Chat templates in Jinja, one for each way in which published templates are written, on tiny
tokenizers: `NAMES`, `made` and `file`."""

from __future__ import annotations

import json
from functools import cache

from more_chat_templates import MORE
from published import byte_level, fallback

from gptjax.data.tokenizers import tokenizer
from gptjax.data.tokenizers.spelling import Special

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{"
    " '<|im_start|>system\\nYou are a test.<|im_end|>\\n' }}{% endif %}{{ '<|im_start|>' +"
    " m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if"
    " add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
HEADERS = (
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim +"
    " '<|eot_id|>' }}"
)
ANSWER = (
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%"
    " endif %}"
)
DATED = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] | trim %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\\n\\n' }}"
    "{{ 'Cutting Knowledge Date: December 2023\\nToday Date: 26 Jul 2024\\n\\n' + system }}"
    "{{ '<|eot_id|>' }}{% for m in turns %}" + HEADERS + "{% endfor %}" + ANSWER
)
GEMMA = (
    "{{ bos_token }}{% set system = '' %}{% set turns = messages %}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] + '\\n\\n' %}{% set turns = messages[1:] %}"
    "{% endif %}{% for m in turns %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' }}"
    "{{ (system if loop.first else '') + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
SPLIT = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% else %}{% set turns ="
    " messages %}{% endif %}"
)
LLAMA_2 = (
    SPLIT + "{% for m in turns %}{% set content = '<<SYS>>\\n' + messages[0]['content'] +"
    " '\\n<</SYS>>\\n\\n' + m['content'] | trim if loop.first and messages[0]['role'] == 'system'"
    " else m['content'] | trim %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content + '"
    " [/INST]' }}{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{%"
    " endfor %}"
)


def mistral(before: str, after: str, space: str) -> str:
    system = "messages[0]['content'] + '\\n\\n' if loop.first and messages[0]['role'] == 'system'"
    return (
        "{{ bos_token }}" + SPLIT + "{% for m in turns %}"
        f"{{% set system = {system} else '' %}}"
        f"{{% if m['role'] == 'user' %}}{{{{ '{before}' + system + m['content'] + '{after}' }}}}"
        f"{{% else %}}{{{{ '{space}' + m['content'] + eos_token }}}}{{% endif %}}{{% endfor %}}"
    )


MISTRAL_7 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' +"
    " m['content'] + '[/SYSTEM_PROMPT]' }}{% elif m['role'] == 'user' %}{{ '[INST]' + m['content']"
    " + '[/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
PHI_3 = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ '<|system|>\\n' + m['content'] +"
    " '<|end|>\\n' }}{% elif m['role'] == 'user' %}{{ '<|user|>\\n' + m['content'] + '<|end|>\\n'"
    " }}{% else %}{{ '<|assistant|>\\n' + m['content'] + '<|end|>\\n' }}{% endif %}{% endfor %}{%"
    " if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
PHI_4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] +"
    " '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>'"
    " }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>\\n' + m['content'] + eos_token"
    " + '\\n' }}{% elif m['role'] == 'system' %}{{ '<|system|>\\n' + m['content'] + eos_token +"
    " '\\n' }}{% else %}{{ '<|assistant|>\\n' + m['content'] + eos_token + '\\n' }}{% endif %}{%"
    " endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
BYTES = {
    "chatml": (("<|endoftext|>", "<|im_start|>", "<|im_end|>"), CHATML),
    "llama-3": (
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        "{{ bos_token }}{% for m in messages %}" + HEADERS + "{% endfor %}" + ANSWER,
    ),
    "llama-3.1": (
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        DATED,
    ),
    "mistral-tekken": (("<s>", "</s>", "[INST]", "[/INST]"), mistral("[INST]", "[/INST]", "")),
    "mistral-v7": (
        ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        MISTRAL_7,
    ),
    "phi-4": (("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"), PHI_4),
}
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
TURN = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
DEFAULT = (
    '{%- set ns = namespace(system="You\'re a test.") -%}'
    "{%- for m in messages if m.role == 'system' -%}{%- set ns.system = m.content -%}{%- endfor -%}"
    "{{ bos_token }}<|im_start|>system\n{{ ns.system }}<|im_end|>\n"
    "{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}" + PROMPT
)
"""ChatML with BOS, and a default system prompt with an apostrophe, from a variable."""
THINKING = (
    "{%- macro text_of(content) -%}{%- if content is string -%}{{- content -}}{%- else -%}"
    "{%- for part in content -%}{{- part.text -}}{%- endfor -%}{%- endif -%}{%- endmacro -%}"
    "{%- if tools -%}<|im_start|>system\n"
    "{%- if messages[0].role == 'system' -%}{{- messages[0].content + '\\n\\n' -}}{%- endif -%}"
    "# Tools\n{%- for tool in tools -%}{{- '\\n' -}}{{- tool | tojson -}}{%- endfor -%}<|im_end|>\n"
    "{%- elif messages[0].role == 'system' -%}"
    "{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' -}}{%- endif -%}"
    "{%- set ns = namespace(last=messages | length - 1, open=true) -%}"
    "{%- for m in messages[::-1] -%}"
    "{%- if ns.open and m.role == 'user' and not (m.content.startswith('<tool_response>') and"
    " m.content.endswith('</tool_response>')) -%}"
    "{%- set ns.open = false -%}{%- set ns.last = messages | length - loop.index -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- for m in messages -%}"
    "{%- if m.role == 'user' -%}"
    "{{- '<|im_start|>user\\n' + text_of(m.content) + '<|im_end|>\\n' -}}"
    "{%- elif m.role == 'assistant' -%}"
    "{%- set content = text_of(m.content) -%}{%- set thought = '' -%}"
    "{%- if m.reasoning_content is string -%}{%- set thought = m.reasoning_content -%}"
    "{%- elif '</think>' in content -%}"
    "{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1]"
    ".lstrip('\\n') -%}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}"
    "{%- if loop.index0 > ns.last and (loop.last or thought) -%}"
    "{{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' +"
    " content.lstrip('\\n') -}}"
    "{%- else -%}{{- '<|im_start|>assistant\\n' + content -}}{%- endif -%}"
    "{%- for call in m.tool_calls or [] -%}"
    '{{- \'\\n<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \' -}}'
    "{{- call.function.arguments | tojson -}}{{- '}\\n</tool_call>' -}}{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- elif m.role == 'tool' -%}"
    "{{- '<|im_start|>user\\n<tool_response>\\n' ~ m.content -}}"
    "{{- '\\n</tool_response><|im_end|>\\n' -}}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}"
)
"""Takes thoughts out of earlier answers, opens one in the prompt, and offers tools."""
HEADLESS = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\n<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == (1 if messages[0].role"
    " == 'system' else 0)) %}{{ raise_exception('roles must alternate: ' + m.content) }}{% endif %}"
    "{% generation %}"
    + TURN.replace("m.content", "m.content[:200].strip()")
    + "{% endgeneration %}{% endfor %}"
    + PROMPT
)
"""An empty system header; checks the order, cuts and trims contents, marks answers."""
DATED_TODAY = (
    "{{ '<|im_start|>system\\nToday is ' + strftime_now('%d %B %Y') + '.' }}"
    "{% if messages[0]['role'] == 'system' %}{{ ' ' + messages[0]['content'] | trim }}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% for m in messages %}{% if m['role'] == 'system' %}{% continue %}"
    "{% endif %}{% if not m['content'] | length %}{% continue %}{% endif %}"
    + TURN
    + "{% endfor %}"
    + PROMPT
)
"""Writes the date, and skips empty messages."""
IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BYTES |= {
    "default": (IM, DEFAULT),
    "thinking": ((*IM, "<think>", "</think>", "<tool_call>", "</tool_call>"), THINKING),
    "headless": (IM, HEADLESS),
    "dated": (IM, DATED_TODAY),
    **MORE,
}
MARKED = {
    "gemma": (("<start_of_turn>", "<end_of_turn>"), GEMMA),
    "llama-2": ((), LLAMA_2),
    "mistral-v1": ((), mistral("[INST] ", " [/INST]", " ")),
    "mistral-v3": (("[INST]", "[/INST]"), mistral("[INST] ", "[/INST]", " ")),
    "phi-3": (("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), PHI_3),
    "zephyr": ((), ZEPHYR),
}


@cache
def file(name: str) -> tuple[bytes, str | None, str, str]:
    """A tokenizer.json as models with this template have it, what begins and ends its texts, and
    the template in Jinja."""
    if name in BYTES:
        controls, jinja = BYTES[name]
        bos = controls[0] if "bos_token" in jinja else None
        return byte_level(controls), bos, controls[1] if bos else controls[0], jinja
    controls, jinja = MARKED[name]
    return (
        fallback(
            controls, prepend=name != "gemma", first=name == "mistral-v3", rstrip=name == "phi-3"
        ),
        "<s>",
        "</s>",
        jinja,
    )


@cache
def made(name: str) -> tokenizer.Tokenizer:
    content, bos, eos, jinja = file(name)
    ids = {t["content"]: t["id"] for t in json.loads(content)["added_tokens"]}
    return tokenizer.published(
        "tokenizer.json", content, Special(ids.get(bos), ids[eos], bos is not None, template=jinja)
    )


NAMES = [*BYTES, *MARKED]
