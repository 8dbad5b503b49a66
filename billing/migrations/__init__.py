"""The ledger's tables, step by step: Alembic revisions, one per format version.

A revision that was released never changes. It repeats names and types instead of importing the
schema of today, so that it does tomorrow what it did then; what it does import is frozen itself.
"""
