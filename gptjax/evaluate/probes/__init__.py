"""Probes: what accuracy on a test set does not say of a model.

Each probe is pure functions, records → requests and responses → findings, over the three requests
of `evaluate.requests`. Begin with `finding`; then one file a probe:

    robustness (perturbations)      answers under misspelling, case, spacing, contractions, filler
    sensitivity                     answers under other orders of choices and other prompt forms
    paired_sentences, ambiguous,    preferences between groups
    pronouns, representation
    continuation, canaries,         what the model has memorised of its training text
    membership
    contamination                   test items that stand in the training text
    refusals                        prompts that the model declines to answer
"""
