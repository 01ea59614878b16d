"""The version of the package, in a module that imports nothing: runs and files note it."""

__version__ = "0.1.0"
