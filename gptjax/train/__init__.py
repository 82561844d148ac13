"""Training: an experiment, the program that it compiles to, and the loop that runs it."""
