"""Factorization machines: fields of features, exact sweeps by a gang, gradient descent, and their factors."""
