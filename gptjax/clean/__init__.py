"""Cleans training text: normal form, language, quality, test items, PII, duplicates, sampling.

Read `stages.py` for the order, `run.py` for how it is done, `gptjax/data/cleaning.py` for the
settings.
"""

from gptjax.clean.run import clean_source
from gptjax.clean.work import Job
from gptjax.data.cleaning import Cleaning

__all__ = ["Cleaning", "Job", "clean_source"]
