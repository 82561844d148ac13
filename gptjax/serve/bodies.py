"""What the bodies of requests may say: one dataclass for each object, which `fields` reads.

Names and defaults are OpenAI's; further settings have the names of vLLM and llama.cpp, and ours
where they differ. The limits here are the server's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from gptjax.serve.fields import limits
from gptjax.serve.templates import PromptReference

Id = Annotated[int, limits(minimum=0, maximum=2**31 - 1)]
Ids = Annotated[tuple[Id, ...], limits(maxItems=1 << 20)]
Prompts = (
    str
    | Annotated[tuple[str, ...], limits(minItems=1, maxItems=256)]
    | Annotated[tuple[Id, ...], limits(minItems=1, maxItems=1 << 20)]
    | Annotated[tuple[Ids, ...], limits(minItems=1, maxItems=256)]
)
Source = Annotated[str, limits(minLength=1, maxLength=1 << 16)]
"""Of a regular expression or a grammar."""
Choices = Annotated[
    tuple[Annotated[str, limits(maxLength=4096)], ...], limits(minItems=1, maxItems=1024)
]
Stop = Annotated[str, limits(minLength=1, maxLength=1024)]
Share = Annotated[float, limits(minimum=0, maximum=1)]
Penalty = Annotated[float, limits(minimum=-2, maximum=2)]
Amount = Annotated[float, limits(minimum=0, maximum=1e6)]
Count = Annotated[int, limits(minimum=0, maximum=2**31 - 1)]
Name = Annotated[str, limits(pattern="^[a-zA-Z0-9_-]{1,64}$")]


# --- messages and tools -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ImageUrl:
    """A picture, whose address holds the picture itself."""

    url: str
    """`data:image/png;base64,…`"""

    IGNORED: ClassVar = ("detail",)


@dataclass(frozen=True, kw_only=True)
class ContentPart:
    """A part of a message."""

    type: Literal["text", "input_text", "output_text", "refusal", "image_url"]
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | None = None

    IGNORED: ClassVar = ("annotations", "cache_control", "logprobs")


@dataclass(frozen=True, kw_only=True)
class CalledFunction:
    """What an earlier answer called."""

    name: Name
    arguments: str | dict = ""
    """JSON, or its text."""


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call in an earlier answer."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction

    IGNORED: ClassVar = ("index",)


@dataclass(frozen=True, kw_only=True)
class ChatMessage:
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[tuple[ContentPart, ...], limits(maxItems=256)] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: Annotated[tuple[ToolCall, ...], limits(maxItems=128)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    ALIASES: ClassVar = {"reasoning": "reasoning_content"}
    IGNORED: ClassVar = ("annotations",)
    REFUSED: ClassVar = {
        "audio": "this model reads text alone; omit it.",
        "function_call": "it is an older form; use tool_calls.",
    }


Messages = Annotated[tuple[ChatMessage, ...], limits(minItems=1, maxItems=2048)]


@dataclass(frozen=True, kw_only=True)
class ToolFunction:
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: dict | None = None
    """A JSON schema of an object."""
    strict: bool | None = None
    """Arguments are always valid here."""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool that the model may use."""

    type: Literal["function"]
    function: ToolFunction


Tools = Annotated[tuple[Tool, ...], limits(maxItems=128)]


@dataclass(frozen=True, kw_only=True)
class FunctionName:
    """A function by its name."""

    name: Name


@dataclass(frozen=True, kw_only=True)
class AllowedTool:
    """A tool by its name."""

    type: Literal["function"] = "function"
    function: FunctionName


@dataclass(frozen=True, kw_only=True)
class AllowedTools:
    """Some of the tools."""

    mode: Literal["auto", "required"]
    tools: Annotated[tuple[AllowedTool, ...], limits(minItems=1, maxItems=128)]


@dataclass(frozen=True, kw_only=True)
class ToolChoice:
    """Which tool has to be called, or which may be."""

    type: Literal["function", "allowed_tools"]
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


# --- forms of answers ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """What a stream has besides its pieces."""

    include_usage: bool = False

    IGNORED: ClassVar = ("include_obfuscation", "continuous_usage_stats")


@dataclass(frozen=True, kw_only=True)
class SchemaFormat:
    """A JSON schema with its name."""

    schema: dict
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    """Answers are always valid here."""


@dataclass(frozen=True, kw_only=True)
class ResponseFormat:
    """The form of the whole answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None
    schema: dict | None = None
    """As llama.cpp has it, beside either type."""


@dataclass(frozen=True, kw_only=True)
class StructuredOutputs:
    """The form of the whole answer, as vLLM says it."""

    json: dict | Source | None = None
    regex: Source | None = None
    grammar: Source | None = None
    choice: Choices | None = None
    json_object: bool = False


# --- whole bodies -------------------------------------------------------------------------------

_ALONE = "rows that are written together can't have it; omit it, or use the library."


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What chats and completions share."""

    model: Annotated[str, limits(maxLength=256)] | None = None
    max_tokens: Count | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, limits(minimum=0, maximum=100)] = 1.0
    top_p: Share = 1.0
    n: Annotated[int, limits(minimum=1, maximum=64)] = 1
    seed: Annotated[int, limits(minimum=-(2**63), maximum=2**64 - 1)] | None = None
    stop: Stop | Annotated[tuple[Stop, ...], limits(maxItems=16)] = ()
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: Annotated[dict, limits(maxProperties=1024)] | None = None
    response_format: ResponseFormat | None = None

    # beyond OpenAI
    top_k: Annotated[int, limits(minimum=-1, maximum=2**31 - 1)] = 0
    min_p: Share = 0.0
    typical_p: Annotated[float, limits(exclusiveMinimum=0, maximum=1)] = 1.0
    top_n_sigma: Annotated[float, limits(minimum=-1, maximum=1e6)] = 0.0
    xtc_probability: Share = 0.0
    xtc_threshold: Share = 0.1
    repetition_penalty: Annotated[float, limits(exclusiveMinimum=0, maximum=1e6)] = 1.0
    penalty_window: Count = 0
    no_repeat_ngram: Count = 0
    dry_multiplier: Amount = 0.0
    dry_base: Annotated[float, limits(minimum=1, maximum=1e6)] = 1.75
    dry_allowed_length: Annotated[int, limits(minimum=1, maximum=2**31 - 1)] = 2
    dry_breakers: Annotated[tuple[Stop, ...], limits(maxItems=16)] = ("\n", ":", '"', "*")
    min_tokens: Count = 0
    ignore_eos: bool = False
    stop_token_ids: Annotated[tuple[Id, ...], limits(maxItems=16)] = ()
    allowed_token_ids: Annotated[tuple[Id, ...], limits(maxItems=1 << 20)] = ()
    json_schema: dict | Source | None = None
    regex: Source | None = None
    grammar: Source | None = None
    choices: Choices | None = None
    structured_outputs: StructuredOutputs | None = None
    prompt_logprobs: Annotated[int, limits(minimum=0, maximum=20)] | None = None
    return_token_ids: bool = False
    cache_salt: Annotated[str, limits(maxLength=256)] | None = None
    """Requests with different ones share no prefixes."""
    max_seconds: Annotated[float, limits(exclusiveMinimum=0, maximum=1e6)] | None = None
    """After which the answer ends, waiting included; its `stop_reason` is then `time`."""

    ALIASES: ClassVar[Mapping[str, str]] = {
        "n_predict": "max_tokens",
        "typical": "typical_p",
        "repeat_penalty": "repetition_penalty",
        "repeat_last_n": "penalty_window",
        "no_repeat_ngram_size": "no_repeat_ngram",
        "dry_sequence_breakers": "dry_breakers",
        "guided_json": "json_schema",
        "guided_regex": "regex",
        "guided_grammar": "grammar",
        "guided_choice": "choices",
    }
    IGNORED: ClassVar[tuple[str, ...]] = (
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "prediction", "reasoning_effort", "verbosity"),
    )
    REFUSED: ClassVar[Mapping[str, str]] = {
        "use_beam_search": _ALONE,
        "beams": _ALONE,
        "num_beams": _ALONE,
        "guidance": _ALONE,
        "contrastive_alpha": _ALONE,
    }


_TEXT_ALONE = "this model writes text alone; omit it."


@dataclass(frozen=True, kw_only=True)
class ChatBody(Sampled):
    """The body of /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, limits(minimum=0, maximum=20)] | None = None
    tools: Tools = ()
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool = True
    modalities: tuple[Literal["text"], ...] = ("text",)

    REFUSED: ClassVar[Mapping[str, str]] = {
        **Sampled.REFUSED,
        "audio": _TEXT_ALONE,
        "web_search_options": "this server reaches no other; omit it.",
        "functions": "it is an older form; use tools.",
        "function_call": "it is an older form; use tool_choice.",
        "chat_template": "the server chooses the template; omit it.",
        "echo": "a chat does not repeat its prompt; use /v1/completions.",
    }


@dataclass(frozen=True, kw_only=True)
class CompletionBody(Sampled):
    """The body of /v1/completions."""

    prompt: Prompts | PromptReference
    logprobs: Annotated[int, limits(minimum=0, maximum=5)] | None = None
    echo: bool = False
    best_of: Annotated[int, limits(minimum=1, maximum=64)] | None = None
    """Answers to draw, of which the `n` with the highest mean log-probability are returned."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        **Sampled.REFUSED,
        "suffix": "this model writes on and does not fill in; omit it.",
    }


@dataclass(frozen=True, kw_only=True)
class EmbeddingBody:
    """The body of /v1/embeddings."""

    input: Prompts
    model: Annotated[str, limits(maxLength=256)] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, limits(minimum=1, maximum=2**31 - 1)] | None = None

    IGNORED: ClassVar = ("user",)


@dataclass(frozen=True, kw_only=True)
class TokenizeBody:
    """The body of /tokenize: a text, or a conversation."""

    prompt: str | None = None
    messages: Messages | None = None
    model: Annotated[str, limits(maxLength=256)] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False
    add_generation_prompt: bool = True
    tools: Tools = ()

    ALIASES: ClassVar = {"content": "prompt", "add_special": "add_special_tokens"}


@dataclass(frozen=True, kw_only=True)
class DetokenizeBody:
    """The body of /detokenize."""

    tokens: Ids
    model: Annotated[str, limits(maxLength=256)] | None = None
