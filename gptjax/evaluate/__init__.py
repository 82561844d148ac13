"""Evaluation: records of a task become requests, a model's responses become figures with
intervals.

Read in this order: `requests` and `figure`, on which all stands; `records`, `prompt_form` and
`tasks`, from a file to requests; `respond`, which alone runs a model; `counting` and `measures`,
from responses to figures, with `figures/`; `report`, `identity` and `compare`; `command`, the whole
way. Beside it: `page` (eval.html), `prompt_search`, `watched` (tasks of a training run), `harness`
(lm-evaluation-harness) and `probes/`.
"""
