"""The fault suite: the whole system as real processes, faults from a matrix, one checker over all ledgers.

docs/faults.md describes it.
"""
