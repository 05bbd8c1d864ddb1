"""Which layers of which networks become sparse ones.

Each module imports the networks that it is about, so it is imported only when such a network comes.
"""
