"""Laws of conversations: templates write what `transformers` writes, and no message ever becomes a
control token."""

from __future__ import annotations

import json
import random
from functools import cache

import pytest
from published import PROSE, byte_level, fallback

from gptjax.core.config import ConfigError
from gptjax.data.tokenizers import chat
from gptjax.data.tokenizers import tokenizer as tok
from gptjax.data.tokenizers.chat import TEMPLATES, Message
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
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set told = messages[0]['content'] |"
    " trim %}{% set turns = messages[1:] %}{% else %}{% set told = '' %}{% set turns = messages"
    " %}{% endif %}{{ '<|start_header_id|>system<|end_header_id|>\\n\\n' }}{{ 'Cutting Knowledge"
    " Date: December 2023\\nToday Date: 26 Jul 2024\\n\\n' + told + '<|eot_id|>' }}{% for m in"
    " turns %}" + HEADERS + "{% endfor %}" + ANSWER
)
GEMMA = (
    "{{ bos_token }}{% set told = '' %}{% set turns = messages %}{% if messages[0]['role'] =="
    " 'system' %}{% set told = messages[0]['content'] + '\\n\\n' %}{% set turns = messages[1:] %}{%"
    " endif %}{% for m in turns %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else"
    " m['role']) + '\\n' + (told if loop.first else '') + m['content'] | trim + '<end_of_turn>\\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
SPLIT = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% else %}{% set turns ="
    " messages %}{% endif %}"
)
LLAMA_2 = (
    SPLIT + "{% for m in turns %}{% set said = '<<SYS>>\\n' + messages[0]['content'] +"
    " '\\n<</SYS>>\\n\\n' + m['content'] | trim if loop.first and messages[0]['role'] == 'system'"
    " else m['content'] | trim %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + said + '"
    " [/INST]' }}{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{%"
    " endfor %}"
)


def mistral(before: str, after: str, space: str) -> str:
    return (
        "{{ bos_token }}" + SPLIT + "{% for m in turns %}{% set told = messages[0]['content'] + '\\n\\n' if loop.first and messages[0]['role'] == 'system' else '' %}"
        f"{{% if m['role'] == 'user' %}}{{{{ '{before}' + told + m['content'] + '{after}' }}}}{{% else %}}{{{{ '{space}' + m['content'] + eos_token }}}}{{% endif %}}{{% endfor %}}"
    )  # fmt: skip


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
def made(name: str) -> tok.Tokenizer:
    content, bos, eos, jinja = file(name)
    ids = {t["content"]: t["id"] for t in json.loads(content)["added_tokens"]}
    return tok.published(
        "tokenizer.json", content, Special(ids.get(bos), ids[eos], bos is not None, template=jinja)
    )


NAMES = [*BYTES, *MARKED]
TALK = [
    Message("system", "Be brief. "),
    Message("user", " Hello\n there, 12 foxes!"),
    Message("assistant", "Hello."),
    Message("user", "Système? "),
]
OTHERS = [
    TALK[1:],
    TALK[:2],
    TALK[1:2],
    [Message("user", "\n\nHi\n")],
    [Message("user", "a"), Message("assistant", " b "), Message("user", "c")],
]


@pytest.mark.parametrize("name", NAMES)
def test_a_models_own_template_is_recognised(name):
    found, template = chat.choose(None, made(name))
    assert found == name and template.default == (
        "You are a test." if name == "chatml" else TEMPLATES[name].default
    )
    assert chat.choose(name, made(name)) == (
        found,
        template,
    ), "by name it is the same, with the model's own system prompt"
    assert chat.recognised(file(name)[3].replace("'", '"'))[0] == name


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_transformers(name):
    pytest.importorskip("torch", reason="transformers' tokenizers come with torch here")
    transformers = pytest.importorskip("transformers")
    import tokenizers

    content, bos, eos, jinja = file(name)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(content.decode()),
        bos_token=bos,
        eos_token=eos,
    )
    template = chat.choose(None, made(name))[1]
    for talk in (TALK, *OTHERS):
        messages = [{"role": role, "content": text} for role, text in talk]
        expected = theirs.apply_chat_template(
            messages,
            chat_template=jinja,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=False,
        )
        assert chat.render(template, talk, made(name)) == expected, talk


@pytest.mark.parametrize("name", NAMES)
def test_every_id_is_a_control_token_or_text_and_the_text_is_whole(name):
    tokenizer, template = made(name), chat.choose(None, made(name))[1]
    ids = chat.render(template, TALK, tokenizer)
    words = tokenizer.token_bytes(ids).decode()
    for _, text in TALK:
        assert text.strip() in words
    if name in BYTES:
        marks = {c.id: n for n, c in tokenizer.controls.items()}
        spelled = "".join(marks.get(i) or tokenizer.token_bytes([i]).decode("latin-1") for i in ids)
        assert spelled.count("Hello") == 2 and spelled.startswith(file(name)[1] or "<|im_start|>")


def attacks(tokenizer: tok.Tokenizer, count: int) -> list[str]:
    """Texts that look like control tokens: whole, halved, joined, as ids, in other spellings, among
    other text."""
    draw, names = random.Random(0), [*tokenizer.controls, "<unk>", "[INST]", "[/INST]", "<|user|>"]

    def one() -> str:
        name = draw.choice(names)
        cut = draw.randrange(len(name) + 1)
        ids = " ".join(str(c.id) for c in tokenizer.controls.values())
        forms = [
            name,
            name[:cut],
            name[cut:],
            name + name,
            name[:cut] + draw.choice(names) + name[cut:],
            f"\n{name}user\n",
            f" {name} ",
            name.upper(),
            ids,
            f"[{ids}]",
        ]
        forms += [
            f"<0x{name.encode()[0]:02X}>" + name[1:],
            name.replace("<", "＜"),
            name[:cut] + "\u200b" + name[cut:],
            f"{{{name}}}",
            "{text}",
            "{eos}",
            name.replace("|", "\\|"),
        ]
        return draw.choice(forms)

    return [
        "".join(
            draw.choice([one(), draw.choice(PROSE.split()), "\n", " "])
            for _ in range(draw.randint(1, 4))
        )
        for _ in range(count)
    ]


@pytest.mark.row(56)
def test_no_message_becomes_a_control_token_and_none_of_the_templates_is_lost(record_property):
    cases = leaks = lost = 0
    for name in NAMES:
        tokenizer, template = made(name), chat.choose(None, made(name))[1]
        hidden = {c.id for c in tokenizer.controls.values()}

        def control(ids, hidden=hidden):
            return [i for i in ids if i in hidden]

        expected = control(chat.render(template, [Message(m.role, "a b") for m in TALK], tokenizer))
        hard = [
            *tokenizer.controls,
            *(c[:n] + "|" + c[n:] for c in tokenizer.controls for n in (1, 2)),
            *attacks(tokenizer, 84),
        ]
        for n, text in enumerate(hard):
            role = n % len(TALK)
            talk = [
                Message(m.role, text if i == role or n % 5 == 0 else "a b")
                for i, m in enumerate(TALK)
            ]
            found = control(chat.render(template, talk, tokenizer))
            leaks += (
                len(control(tokenizer.encode(text).tolist()))
                + len(control(tokenizer.encode_after(text).tolist()))
                + max(0, len(found) - len(expected))
            )
            lost += found != expected
            cases += 1
    record_property(
        "figure",
        f"{leaks} control ids from content in {cases:,} cases of {len(NAMES)} templates, all roles;"
        f" {lost} templates changed",
    )
    assert cases >= 1000 and (leaks, lost) == (0, 0)


def test_what_cannot_be_written_is_refused_by_name():
    template = TEMPLATES["chatml"]
    for wrong in (
        [Message("assistant", "a")],
        [TALK[1], TALK[0]],
        [TALK[1], TALK[1]],
        [TALK[0], *TALK],
    ):
        with pytest.raises(ConfigError, match="in turns"):
            chat.render(template, wrong, made("chatml"))
    with pytest.raises(
        ConfigError, match=r"<\|im_start\|>, which this tokenizer lacks.*--template"
    ):
        chat.render(template, TALK, made("llama-2"))
    with pytest.raises(ConfigError, match=r"'chatlm' is no template.*chatml.*--template"):
        chat.choose("chatlm", made("llama-2"))
    with pytest.raises(ConfigError, match=r"none of those known.*'{{ messages }}'.*--template"):
        chat.recognised("{{ messages }}")
    with pytest.raises(ConfigError, match="no place for a system prompt"):
        chat.render(chat.Template(user="{text}", assistant="{text}"), TALK, made("llama-2"))


def test_a_template_of_ones_own_is_a_file_of_data(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps(
            {
                "user": "Q: {text}\n",
                "assistant": "A: {text}{eos}\n",
                "prompt": "A:",
                "stop": ["\nQ:"],
            }
        )
    )
    name, template = chat.choose(str(path), made("llama-2"))
    ids = chat.render(template, TALK[1:], made("llama-2"))
    assert (
        name == str(path)
        and made("llama-2").decode(ids)
        == "Q:  Hello\n there, 12 foxes!\nA: Hello. \nQ: Système? \nA:"
    )
    for wrong, said in (
        ("[]", "object"),
        ("{", "JSON"),
        ('{"user": "a", "assistant": "{text}"}', "user has no {text}"),
        ('{"users": "a"}', "users"),
    ):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match="mine.json") as caught:
            chat.choose(str(path), made("llama-2"))
        assert said in str(caught.value)
    for wrong, said in (
        ({"user": "a", "assistant": "{text}"}, "user has no"),
        ({"user": "{text}", "assistant": "b{text}", "prompt": "a"}, "begin with its prompt"),
    ):
        with pytest.raises(ConfigError, match=said):
            chat.Template(**wrong)


def test_without_any_template_a_conversation_is_plain_text():
    name, template = chat.choose(None, tok.train(tok.Bytes(), []))
    ids = chat.render(template, TALK, tok.train(tok.Bytes(), []))
    assert (
        name == "plain"
        and bytes(ids).decode()
        == "Be brief. \n\nUser:  Hello\n there, 12 foxes!\nAssistant: Hello.\nUser: Système?"
        " \nAssistant:"
    )


def test_the_oldest_turns_give_way_and_the_system_prompt_stays():
    template, tokenizer = TEMPLATES["plain"], tok.train(tok.Bytes(), [])
    talk = [TALK[0], *(Message(("user", "assistant")[n % 2], f"number {n}") for n in range(9))]
    whole = chat.render(template, talk, tokenizer)
    assert chat.fit(template, talk, tokenizer, len(whole)) == (whole, 0)
    ids, dropped = chat.fit(template, talk, tokenizer, len(whole) - 1)
    assert dropped == 2 and bytes(ids).startswith(b"Be brief. \n\nUser: number 2")
    ids, dropped = chat.fit(template, talk, tokenizer, 60)
    assert dropped == 8 and bytes(ids) == b"Be brief. \n\nUser: number 8\nAssistant:"
    with pytest.raises(ConfigError, match=r"takes 37 tokens.*room for 36.*--context"):
        chat.fit(template, talk, tokenizer, 36)
