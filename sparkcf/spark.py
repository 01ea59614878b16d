"""PySpark's names, imported at their first use: a model is opened, and fitted on arrays, without PySpark."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark import StorageLevel
    from pyspark.sql import Column, DataFrame, SparkSession, Window
    from pyspark.sql import functions as F
else:

    class _Later:
        """An object of PySpark; the first access to an attribute imports it."""

        def __init__(self, module: str, name: str = "") -> None:
            self._module, self._name = module, name

        def __getattr__(self, attribute: str) -> Any:
            if attribute.startswith("_"):
                raise AttributeError(attribute)
            module = import_module(self._module)
            return getattr(getattr(module, self._name) if self._name else module, attribute)

    F = _Later("pyspark.sql.functions")
    StorageLevel = _Later("pyspark", "StorageLevel")
    Column, DataFrame, SparkSession, Window = (
        _Later("pyspark.sql", name) for name in ("Column", "DataFrame", "SparkSession", "Window")
    )

__all__ = ["Column", "DataFrame", "F", "SparkSession", "StorageLevel", "Window"]
