"""Trains an experiment, or resumes its run: `python train.py configs/quickstart.py`.

The same as `gptjax train`. To follow it down: `gptjax/cli/train.py` reads flags over a config file;
`gptjax/train/loop.py` builds, restores, steps, evaluates and saves; `gptjax/train/step.py` is one
step; `gptjax/losses/` holds the losses; `gptjax/model/transformer.py` is the model.
"""

import sys

from gptjax.cli.main import console

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    console()
