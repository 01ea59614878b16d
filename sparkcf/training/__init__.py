"""Training of nets by gradient, in one process or in many: torch and petastorm. Only `launch` knows Spark."""
