"""Trains an experiment, or goes on where its run stopped: `python train.py configs/quickstart.py`.

The same as `gptjax train`. The story: `gptjax/cli.py` reads flags over a config file; `gptjax/train/loop.py` builds, restores,
loops, evaluates and saves; `gptjax/train/step.py` is one step; `gptjax/objectives.py` is the loss; `gptjax/model/transformer.py`
is the model.
"""

import sys

from gptjax.cli.main import console

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    console()
