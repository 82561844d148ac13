"""Says what a training step or a sampling job needs on machines that are not here, by compiling it
for them.

Files in order: `target` (machines), `text` (HLO text → instructions), `collectives` and `hlo` (what
a program costs), `plan`, `search`, `sampling`, `report`.
"""
