"""Hostile input for everything that others write and tickbus reads: frames, Redis, requests, files.

One module per group of targets; `targets.py` is the registry. `make fuzz` runs them for minutes or hours,
`test_fuzz.py` for a second each. A target lets pass what the product documents, and nothing else.
"""
