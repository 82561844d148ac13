"""What `gptjax --help` says, an example of each subcommand, and what completes words in a shell."""

from __future__ import annotations

from gptjax.core.config import require
from gptjax.core.user_config import asks_for_help

USAGE = """usage: gptjax COMMAND ...

Train
  train CONFIG [--dir DIR] [--section.key VALUE ...]
      Train, or resume a run. CONFIG is a Python config file or a run's config.json.
  sweep CONFIG [--seeds 8] [--optim.peak 1e-3 3e-3 ...]
      Train several runs in one program: all combinations of the values, with a report.
  private CONFIG [--epsilon 8] [--delta 1e-5] [--clip 1]
      Train with differential privacy: what the weights may tell about a row is bounded.
  clean SOURCE OUT [--config FILE]
      Clean training text: quality, language, PII, duplicates, test items; with a report.

Use
  sample MODEL [--prompt TEXT] [--temperature 0.8 ...]
      Generate text; --interactive; --prompt-file FILE --out FILE.
  chat MODEL [--system TEXT] [--temperature 0.8 ...]
      Talk with a model.
  serve MODEL [--slots 8] [--port 8000] [--key-file FILE] ...
      Serve a model over HTTP, as OpenAI's clients speak it, with a page to talk to it.
  transcribe FILE|FOLDER [--model MODEL] [--timestamps] [--choices TEXT ...]
      Write down speech, with a Whisper: WAV, or with soundfile FLAC, OGG, MP3.
  convert SRC DST [--dtype bfloat16 ...]
      Write a model in another format, and prove that it is the same.

Measure
  evaluate MODEL [--data.source.path FILE]
      The held-out loss of a model, or its loss on another text.
  evaluate MODEL --tasks FILE,NAME [--limit 200] [--against OTHER]
      Its figures on tasks, with intervals and baselines, as a table, eval.json and eval.html.
  lm-eval --model_args path=MODEL --tasks NAME ...
      lm-evaluation-harness with a model of gptjax.
  probe MODEL robustness|sensitivity|bias|memorisation|contamination|refusals [flags]
      What accuracy does not say: each figure with its interval, beside that of no effect.
  look MODEL --prompt TEXT [--against TEXT] [--out page.html]
      What a model computes from a prompt: lens, attribution, patching, attention, as a page.
  score MODEL FILE
      What a reward model thinks of the answers in a file, as JSON lines.
  detect-watermark FILE --key KEYFILE --model MODEL
      Whether texts were written under a key (sample --watermark KEYFILE); --new-key makes one.
  card RUN [--evaluations FILE ...] [--out README.md]
      A model card of what the run wrote down: data, cleaning, training, figures, limits.

Plan and prove
  inspect CONFIG|RUN|PRESET
      Parameters, FLOPs and memory, without allocating anything.
  plan CONFIG|RUN|PRESET --target v5p:4x4x4 [--fast] [--search]
      What a step needs on a machine that is not here: whether it fits, how fast, what to change.
  scaling fit RUN RUN ... [--predict RUN ...]
      The law of loss against compute over small runs, and its prediction for a larger one.
  verify [CONFIG|RUN] [--only NAME ...] [--json]
      Proofs that a config computes what it says, on this machine.
  doctor
      Versions, devices and flags, and combinations known not to work.
  completion bash|zsh
      What completes commands, flags and files in a shell.

MODEL and SRC are a run directory, a Hugging Face directory or a GGUF file.
gptjax COMMAND --help lists the flags of a command and shows an example; gptjax --version.
"""

EXAMPLES = {
    "train": (
        "gptjax train configs/quickstart.py",
        "gptjax train configs/quickstart.py --optim.peak 1e-3 --steps 500 --dir runs/slower",
    ),
    "sweep": ("gptjax sweep configs/quickstart.py --seeds 3 --optim.peak 1e-3 3e-3",),
    "private": ("gptjax private configs/shakespeare_private.py --epsilon 8",),
    "clean": ("gptjax clean mytext.txt cleaned",),
    "sample": (
        'gptjax sample runs/quickstart --prompt "def " --new-tokens 100',
        "gptjax sample runs/quickstart --prompt-file prompts.txt --out answers.jsonl",
    ),
    "chat": (
        "gptjax chat smollm2",
        'gptjax chat runs/sft_smollm2 --system "Answer in one sentence."',
    ),
    "serve": (
        "gptjax serve smollm2",
        "gptjax serve runs/sft_smollm2 --slots 16 --host 0.0.0.0 --key-file keys.txt",
    ),
    "transcribe": ("gptjax transcribe talk.wav --timestamps",),
    "convert": (
        "gptjax convert runs/quickstart exported",
        "gptjax convert runs/quickstart quickstart.gguf --dtype bfloat16",
    ),
    "evaluate": (
        "gptjax evaluate runs/quickstart",
        "gptjax evaluate runs/quickstart --data.source.path othertext.txt",
        "gptjax evaluate smollm2 --tasks questions.jsonl --limit 200",
    ),
    "lm-eval": ("gptjax lm-eval --model_args path=smollm2 --tasks piqa --include_path DIR",),
    "probe": (
        "gptjax probe smollm2 robustness --tasks questions.jsonl",
        "gptjax probe runs/quickstart memorisation",
    ),
    "look": ('gptjax look runs/quickstart --prompt "def add(self" --out page.html',),
    "score": ("gptjax score runs/reward_toy data/sorted_pairs.jsonl --out scores.jsonl",),
    "detect-watermark": (
        "gptjax detect-watermark --new-key key.json",
        "gptjax detect-watermark text.txt --key key.json --model runs/quickstart",
    ),
    "card": ("gptjax card runs/quickstart --out README.md",),
    "inspect": ("gptjax inspect llama-3-8b",),
    "plan": ("gptjax plan configs/large/llama2_7b.py --target v5p:4x4x4",),
    "scaling": ("gptjax scaling fit runs/small runs/medium runs/large --flops 1e15",),
    "verify": ("gptjax verify configs/quickstart.py",),
    "doctor": ("gptjax doctor",),
    "completion": ('eval "$(gptjax completion bash)"', "gptjax completion zsh >> ~/.zshrc"),
}
"""By subcommand, what a user may type."""

SCRIPT = r"""_gptjax_flags=""
_gptjax_flags_of=""
_gptjax() {
  local word="${COMP_WORDS[COMP_CWORD]}" command="${COMP_WORDS[1]}"
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "NAMES --help --version" -- "$word"))
  elif [ "${word#-}" != "$word" ]; then
    if [ "$_gptjax_flags_of" != "$command" ]; then  # asked once for each command in turn
      _gptjax_flags="$(NO_COLOR=1 gptjax "$command" --help 2>/dev/null \
        | grep -oE -- '--[a-z0-9][a-z0-9._-]*' | sort -u | tr '\n' ' ')"
      _gptjax_flags_of="$command"
    fi
    COMPREPLY=($(compgen -W "$_gptjax_flags" -- "$word"))
  else
    COMPREPLY=($(compgen -f -- "$word"))
  fi
}
complete -o filenames -F _gptjax gptjax
"""


def completion_command(args: list[str]) -> None:
    """Prints what completes words after `gptjax`, for `eval` or a shell's start-up file.

    Raises:
      ConfigError: the shell is not one of these.
    """
    if asks_for_help(args):
        print(
            "usage: gptjax completion bash|zsh\n\n"
            "Prints what completes commands, flags and files. Flags are asked of gptjax itself,\n"
            "once for each command, which takes a second or two."
        )
        return
    require(
        args in (["bash"], ["zsh"]),
        f"completion is for {' '.join(args) or 'no shell'}; it needs bash or zsh:"
        ' eval "$(gptjax completion bash)".',
    )
    if args == ["zsh"]:
        print("autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit")
    print(SCRIPT.replace("NAMES", " ".join(EXAMPLES)), end="")


def example_of(command: str) -> str:
    """What is shown below the flags of a subcommand."""
    lines = EXAMPLES[command]
    return "\n".join([f"example{'s' if len(lines) > 1 else ''}:", *(f"  {one}" for one in lines)])
