"""gptjax: the GPT stack in JAX and Flax. `gptjax.load(path)` opens a trained model; `gptjax --help` says the rest."""

__version__ = "0.1.0"
