"""`python -m gptjax` is the `gptjax` command."""

from gptjax.cli.main import console

console()
