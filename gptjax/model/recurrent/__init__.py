"""Recurrent mixers: layers that remember a state of fixed size instead of keys and values."""
