"""Chat templates of further families, written anew in the ways of the published ones: `MORE`."""

from __future__ import annotations

TULU = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ '<|system|>\n' + m['content'] + '\n' }}{% elif m['role'] == 'user' %}"
    "{{ '<|user|>\n' + m['content'] + '\n' }}{% elif m['role'] == 'assistant' %}"
    "{% if not loop.last %}{{ '<|assistant|>\n' + m['content'] + eos_token + '\n' }}"
    "{% else %}{{ '<|assistant|>\n' + m['content'] + eos_token }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
"""OLMo 2 and Tülu: marks that are plain text, and an end of text after each answer."""
GRANITE = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}"
    '{%- set system_message = "You are Test. You don\'t guess." %}'
    "{%- set loop_messages = messages %}{%- endif %}"
    "{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\n' }}"
    "{%- for message in loop_messages %}"
    "{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content']"
    " + '<|end_of_text|>\n' }}"
    "{%- if loop.last and add_generation_prompt %}"
    "{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}{%- endfor %}"
)
"""Granite: a default system prompt with an apostrophe, from a variable."""
COMMAND = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% elif false == true %}{% set loop_messages = messages %}{% set system_message = 'x' %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% if system_message != false %}{{ '<|TURN|><|SYSTEM|>' + system_message + '<|END|>' }}"
    "{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% set content = message['content'] %}"
    "{% if message['role'] == 'user' %}{{ '<|TURN|><|USER|>' + content.strip() + '<|END|>' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|TURN|><|BOT|>' + content.strip() + '<|END|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|TURN|><|BOT|>' }}{% endif %}"
)
"""Command R: a role is a token of its own."""
DEEPSEEK = (
    "{% if not add_generation_prompt is defined %}"
    "{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(is_first=false, system_prompt='') %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}"
    "{{ bos_token }}{{ ns.system_prompt }}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{{ '<｜User｜>' + message['content'] }}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}"
    "{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
"""DeepSeek V3 and R1: marks beyond ASCII, thoughts taken out."""
GLM = (
    "[gMASK]<sop>{%- for m in messages %}{%- if m.role == 'user' %}<|user|>\n{{ m.content }}"
    "{%- elif m.role == 'assistant' %}<|assistant|>\n{{ m.content.strip() }}"
    "{%- elif m.role == 'system' %}<|system|>\n{{ m.content }}{%- endif %}{%- endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""GLM-4: nothing ends an answer but the next turn."""
EXAONE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '[|system|][|endofturn|]\n' }}{% endif %}"
    "{{ '[|' + message['role'] + '|]' + message['content'] }}"
    "{% if not message['role'] == 'user' %}{{ '[|endofturn|]' }}{% endif %}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n[|assistant|]' }}{% endif %}"
)
"""EXAONE: a user's turn ends with its line, and an empty system turn begins."""
INTERN = (
    "{{ bos_token }}{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""InternLM: ChatML behind a BOS."""
NEMOTRON = (
    "{{'<extra_id_0>System\n'}}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] | trim }}{% endif %}{% endfor %}"
    "{{ '\n\n' }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<extra_id_1>User\n' + message['content'].strip() + '\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<extra_id_1>Assistant\n' + message['content'].strip() + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<extra_id_1>Assistant\n' }}{% endif %}"
)
"""Nemotron: the system's header stands, whether or not it says something."""
HARMONY = (
    "{%- macro turn(who, what) -%}"
    "{{- '<|start|>' + who + '<|message|>' + what + '<|end|>' -}}{%- endmacro -%}"
    "{{- turn('system', 'Knowledge cutoff: 2024-06\nCurrent date: ' + strftime_now('%Y-%m-%d')) -}}"
    "{%- if messages[0].role in ['developer', 'system'] -%}"
    "{{- turn('developer', '# Instructions\n\n' + messages[0].content + '\n\n') -}}"
    "{%- set rest = messages[1:] -%}{%- else -%}{%- set rest = messages -%}{%- endif -%}"
    "{%- for message in rest -%}{%- if message.role == 'assistant' -%}"
    "{%- if loop.last and not add_generation_prompt -%}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|return|>' -}}"
    "{%- else -%}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' -}}"
    "{%- endif -%}{%- else -%}{{- turn(message.role, message.content) -}}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}"
)
"""gpt-oss: channels, a macro, the date, and another end for the last answer."""
FALCON = (
    "{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}"
    "{{ '<|' ~ message.role ~ '|>\n' ~ message.content | trim }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}"
)
"""Falcon 3: joined by `~`, and trimmed."""
VICUNA = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}{% else %}"
    '{{ "A chat between a curious user and a test. It\'s brief. " }}{% endif %}'
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% elif m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Vicuna: words for marks."""
MORE = {
    "tulu": (("<|bos|>", "<|endoftext|>"), TULU),
    "granite": (("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"), GRANITE),
    "command": (
        ("<BOS>", "<|END|>", "<|TURN|>", "<|SYSTEM|>", "<|USER|>", "<|BOT|>"),
        COMMAND,
    ),
    "deepseek": (
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        DEEPSEEK,
    ),
    "glm": (("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>"), GLM),
    "exaone": (
        ("[|endofturn|]", "[|system|]", "[|user|]", "[|assistant|]"),
        EXAONE,
    ),
    "intern": (("<s>", "</s>", "<|im_start|>", "<|im_end|>"), INTERN),
    "nemotron": (("</s>", "<extra_id_0>", "<extra_id_1>"), NEMOTRON),
    "harmony": (
        ("<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>"),
        HARMONY,
    ),
    "falcon": (("<|endoftext|>",), FALCON),
    "vicuna": (("</s>",), VICUNA),
}
"""Control tokens and template, as in `chat_templates.BYTES`."""
