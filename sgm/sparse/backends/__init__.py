"""Backends: one file each, all with the operators of `sgm.sparse.backends.base`."""
