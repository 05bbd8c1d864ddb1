"""Thousands of edits: a list of them, one loaded model, one recording a picture; see docs/batch.md.

rows -> jobs in groups of one picture -> worker (here, or one of many by Ray) -> results
"""
