"""Functions of arrays, numpy and numba only: no Spark, no torch, no input or output."""
