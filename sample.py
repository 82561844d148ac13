"""Generates text with a trained model: `python sample.py runs/quickstart --prompt "def "`.

The same as `gptjax sample`. In Python: `gptjax.load("runs/quickstart").generate("def ")`.
"""

import sys

from gptjax.cli.main import console

if __name__ == "__main__":
    sys.argv.insert(1, "sample")
    console()
