"""Plans: what a training step or generation needs on machines that are not here, found by compiling
it for them.

Files in order: `target` (machines), `text` (HLO text → instructions), `collectives` and `hlo` (the
costs of a program), `compiled`, `plan`, `search`, `sampling`, `report`, `scaling`.
"""
