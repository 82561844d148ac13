"""`gptjax transcribe FILE|FOLDER`: speech to text."""

from __future__ import annotations

from gptjax.cli.arguments import first_path
from gptjax.core import backend, user_config
from gptjax.core.config import ConfigError


def transcribe_command(args: list[str]) -> None:
    """Writes down what is said in a sound file, or in those of a folder; exits with status 1 if a
    file of a folder can't be read."""
    backend.configure()
    from gptjax.hear.command import TranscribeOptions, run_transcribe

    usage = "gptjax transcribe FILE|FOLDER [--model MODEL] [flags]"
    path, flags = first_path(args, usage, "a sound file, or a folder of such files")
    options = user_config.cli(
        TranscribeOptions,
        flags,
        prog="gptjax transcribe FILE|FOLDER",
        description="Writes down what is said: WAV without any extra, FLAC, OGG, MP3 and others"
        " with the package soundfile; any length, in the memory of half a minute.",
    )
    if path is None:
        raise ConfigError(f"{usage}: it needs a sound file, or a folder of such files.")
    from gptjax.train.forecast import explained

    with explained():
        run_transcribe(path, options)
