"""Who may import what, and who may read and write: the borders of the library, read from the source.

Every rule is a function of a parsed module that returns what breaks it; each is also shown a planted breach.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from sparkcf.config.models import SECTIONS

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
    for path in sorted((ROOT / "sparkcf").rglob("*.py"))
}
JOBS = {path.stem: path for path in sorted((ROOT / "jobs").glob("*.py"))}
KERNELS = [name for name in LIBRARY if name.startswith("sparkcf.kernels")]
ROOMS = (
    "cli",
    "export",
    "jobs",
    "report",
    "local",
    "ranking",
    "models",
    "training",
    "data",
    "lake",
    "config",
    "kernels",
)  # arrows go down only
CONTRACT = tuple(  # all that jobs and ranking know of the models
    f"sparkcf.models.{name}" for name in ("contract", "contract_data", "registry")
)
QUICK = (
    "sparkcf.lake.query",
    "sparkcf.cli.main",
    "sparkcf.report.page",
)  # they answer on machines without Java, in a blink
HEAVY = {"pyspark", "torch", "numba", "delta"}
MATHEMATICS = {"numpy", "scipy", "pandas", "pyarrow", *HEAVY}
NETS_ON_SPARK = {
    f"sparkcf.models.nets.{name}"
    for name in ("fit", "local", "collaborative", "concepts", "disentangled", "two_sided", "side_fields")
}
NETS = [name for name in LIBRARY if name.startswith("sparkcf.models.nets.") and name not in NETS_ON_SPARK]
NETS.append("sparkcf.models.fm.net")
ON_SPARK = {f"sparkcf.training.{name}" for name in ("launch", "gang", "gang_stage", "shuffle")}
TORCH = {
    "sparkcf.models.nets.fit",
    "sparkcf.models.nets.collaborative",
    "sparkcf.models.fm.sgd",
    "sparkcf.training.gang",
}  # imported where it is needed
READERS = {"sparkcf.lake.tables", "sparkcf.data.ingest"}  # tables; raw input and listings that the configuration names
WRITERS = {"sparkcf.lake.tables"}
TABLES = tuple(
    f"sparkcf.lake.{name}" for name in ("tables", "runs", "published", "metrics", "ids", "factors", "weights")
)
JOB_LINES = 15


def imports(tree: ast.AST, deep: bool = True) -> Iterator[str]:
    """Dotted names that a module imports; not deep: only what runs when it is imported itself."""
    for node in ast.iter_child_nodes(tree):
        if not deep and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from (name for other in node.orelse for name in imports(other, deep))
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif deep or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, deep)


def room(name: str) -> str | None:
    """The room of a module of ours; None: it stands below all rooms, as `errors` does, or is the package itself."""
    found = name.split(".")[1:2]
    return found[0] if found and found[0] in ROOMS else None


def top(name: str) -> str:
    return name.split(".")[0]


def module_of(name: str, library: Mapping[str, ast.AST] = LIBRARY) -> str | None:
    """The module of ours that an imported name is or stands in; None: not ours."""
    return next((found for found in (name, name.rpartition(".")[0]) if found in library), None)


def loaded(name: str, library: dict[str, ast.AST] | None = None) -> set[str]:
    """Foreign packages in memory after importing a module of ours, through whatever else of ours it imports."""
    library = library or LIBRARY
    found: set[str] = set()
    visited: set[str] = set()
    waiting = ["sparkcf", name]  # a package is imported before its modules
    while waiting:
        module = waiting.pop()
        if module in visited:
            continue
        visited.add(module)
        for imported in imports(library[module], deep=False):
            ours = module_of(imported)
            waiting += [ours] if ours else []
            found |= set() if ours else {top(imported)}
    return found


def foreign_to_kernels(tree: ast.AST) -> list[str]:
    allowed = {"numpy", "numba", *sys.stdlib_module_names}
    return [n for n in imports(tree) if top(n) not in allowed and not n.startswith("sparkcf.kernels")]


def foreign_to_nets(tree: ast.AST) -> list[str]:
    allowed = {"numpy", "torch", *sys.stdlib_module_names}
    of_training = tuple(f"sparkcf.training.{name}." for name in ("batch", "graph", "side_features"))
    ours = ("sparkcf.models.nets.", "sparkcf.config.", *of_training)
    return [n for n in imports(tree) if top(n) not in allowed and not n.startswith(ours)]


def upward(name: str, tree: ast.AST) -> list[str]:
    """Imports of rooms that stand above the module's own; what stands below all rooms imports none of them."""
    own = ROOMS.index(found) if (found := room(name)) else len(ROOMS)
    return [n for n in imports(tree) if top(n) == "sparkcf" and (to := room(n)) and ROOMS.index(to) < own]


def inside_models(tree: ast.AST) -> list[str]:
    """What a job or ranking knows of the models beside their contract."""
    return [n for n in imports(tree) if n.startswith("sparkcf.models") and not n.startswith(CONTRACT)]


def tables_in_models(tree: ast.AST) -> list[str]:
    """What reads or writes tables. A model calls what it is handed."""
    return [n for n in imports(tree) if n.startswith(TABLES)] + reads(tree) + writes(tree)


def mathematics(tree: ast.AST) -> list[str]:
    return [n for n in imports(tree) if top(n) in MATHEMATICS]


def circle(library: dict[str, ast.AST]) -> list[str]:
    """Modules that import each other, through others too and inside functions too, and those that import them.

    A module may import itself: the function that stands in it does so in another process.
    """
    waiting = {name: {module_of(n, library) for n in imports(tree)} - {None, name} for name, tree in library.items()}
    while free := {name for name, needed in waiting.items() if not needed & waiting.keys()}:
        waiting = {name: needed for name, needed in waiting.items() if name not in free}
    return sorted(waiting)


def named_models(tree: ast.AST) -> list[str]:
    """Comparisons with a model's name, such as `config.model == "als"` or `case "als":`."""
    found = []
    for node in ast.walk(tree):
        parts: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        literals = [n.value for part in parts for n in ast.walk(part) if isinstance(n, ast.Constant)]
        if any(isinstance(value, str) and value in SECTIONS for value in literals):
            found.append(ast.unparse(node))
    return found


def content(tree: ast.Module) -> list[str]:
    """The statements of a package's `__init__` beyond a docstring."""
    return [ast.unparse(node) for node in tree.body[ast.get_docstring(tree) is not None :]]


def unsafe(tree: ast.AST) -> list[str]:
    """Whatever could run code that lies in a file."""
    found = [n for n in imports(tree) if top(n) in {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in {"eval", "exec", "compile", "__import__", "torch.load", "os.system", "os.popen"}:
            found.append(called)
        if called.startswith("yaml.") and "load" in called and "safe_load" not in called.replace("unsafe", ""):
            found.append(called)
        if called in {"np.load", "numpy.load"} and keywords.get("allow_pickle") != "False":
            found.append(called)
        if called.endswith("read_pickle") or "shell" in keywords:
            found.append(called)
    return found


def uses(tree: ast.AST, attributes: set[str]) -> list[str]:
    """Spark's readers and writers: `spark.read`, `frame.write` are not called, a file's `read()`, `write()` are."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in attributes and id(n) not in called)
    return [ast.unparse(node) for node in found]


def reads(tree: ast.AST) -> list[str]:
    return uses(tree, {"read", "readStream"}) + [n for n in imports(tree) if n.startswith("delta.tables")]


def writes(tree: ast.AST) -> list[str]:
    methods = {"saveAsTable", "insertInto", "writeTo", "saveAsTextFile"}
    called = [n.func.attr for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    return uses(tree, {"write", "writeStream"}) + [name for name in called if name in methods]


def spark(tree: ast.AST) -> list[str]:
    """PySpark and what stands for it."""
    return [n for n in imports(tree) if top(n) in {"pyspark", "delta"} or n.startswith("sparkcf.spark.")]


def torch(tree: ast.AST) -> list[str]:
    return [name for name in imports(tree) if top(name) in {"torch", "torchvision"}]


def logic_of_a_job(tree: ast.Module) -> list[str]:
    """Statements of a job file beyond its docstring, its imports and the call of `main`."""
    found = [name for name in imports(tree) if top(name) != "sparkcf"]
    for number, node in enumerate(tree.body):
        is_docstring = number == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_guard = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        if is_guard:
            single = len(node.body) == 1 and isinstance(node.body[0], ast.Expr) and not node.orelse
            found += [] if single and isinstance(node.body[0].value, ast.Call) else [ast.unparse(node)]
        elif not is_docstring and not isinstance(node, ast.ImportFrom):
            found.append(ast.unparse(node))
    return found


def test_the_library_and_the_jobs_are_found() -> None:
    assert len(LIBRARY) > 60 and len(KERNELS) > 5 and len(JOBS) > 5 and len(NETS) > 4
    named = {*CONTRACT, *QUICK, *NETS, *ON_SPARK, *TORCH, *READERS, *WRITERS, *TABLES}
    assert {"sparkcf", "sparkcf.models.als.fit", "sparkcf.kernels.als", *named} <= LIBRARY.keys()
    assert {room(name) for name in LIBRARY} == {*ROOMS, None}
    below = {name for name in LIBRARY if room(name) is None}
    assert below == {
        "sparkcf",
        "sparkcf.activity",
        "sparkcf.errors",
        "sparkcf.progress",
        "sparkcf.redact",
        "sparkcf.runtime",
        "sparkcf.version",
        "sparkcf.spark",
    }


@pytest.mark.parametrize("name", LIBRARY)
def test_imports_go_down_from_room_to_room(name: str) -> None:
    if name != "sparkcf":  # the package's own names are imported when somebody asks for them
        assert upward(name, LIBRARY[name]) == []


def test_no_modules_import_each_other() -> None:
    assert circle({name: tree for name, tree in LIBRARY.items() if name != "sparkcf"}) == []


@pytest.mark.parametrize("name", [name for name in LIBRARY if room(name) in ("jobs", "ranking")])
def test_jobs_and_ranking_know_models_by_their_contract(name: str) -> None:
    assert inside_models(LIBRARY[name]) == []


@pytest.mark.parametrize("name", [name for name in LIBRARY if room(name) == "models"])
def test_models_neither_read_nor_write_tables(name: str) -> None:
    assert tables_in_models(LIBRARY[name]) == []


@pytest.mark.parametrize("name", [name for name in LIBRARY if room(name) != "models" or name in CONTRACT])
def test_nobody_but_a_model_asks_for_its_name(name: str) -> None:
    assert named_models(LIBRARY[name]) == []


@pytest.mark.parametrize("name", [name for name in LIBRARY if room(name) == "config"])
def test_the_configuration_needs_no_mathematics(name: str) -> None:
    assert mathematics(LIBRARY[name]) == []
    assert loaded(name) & MATHEMATICS == set()


@pytest.mark.parametrize("path", sorted(ROOT.glob("sparkcf/*/**/__init__.py")), ids=lambda path: path.parent.name)
def test_packages_are_empty(path: Path) -> None:
    assert content(ast.parse(path.read_text())) == []


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_know_arrays_only(name: str) -> None:
    assert foreign_to_kernels(LIBRARY[name]) == []


@pytest.mark.parametrize("name", QUICK)
def test_queries_start_without_spark_torch_or_numba(name: str) -> None:
    assert loaded(name) & HEAVY == set()
    assert [n for n in imports(LIBRARY[name]) if top(n) in HEAVY] == []


@pytest.mark.parametrize("name", [name for name in LIBRARY if room(name) == "local"])
def test_models_on_frames_need_no_spark(name: str) -> None:
    assert loaded(name) & {"pyspark", "delta"} == set() and spark(LIBRARY[name]) == []


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_imports_no_job_and_no_test(name: str) -> None:
    assert [n for n in imports(LIBRARY[name]) if top(n) in {"jobs", "tests", "conftest"}] == []


@pytest.mark.parametrize("name", NETS)
def test_nets_know_tensors_only(name: str) -> None:
    assert foreign_to_nets(LIBRARY[name]) == []
    assert loaded(name) & {"pyspark", "delta", "petastorm"} == set()


@pytest.mark.parametrize("name", [name for name in LIBRARY if room(name) == "training" and name not in ON_SPARK])
def test_the_training_of_one_process_knows_no_spark(name: str) -> None:
    assert spark(LIBRARY[name]) == []


@pytest.mark.parametrize("name", LIBRARY)
def test_nothing_runs_code_that_lies_in_a_file(name: str) -> None:
    assert unsafe(LIBRARY[name]) == []


@pytest.mark.parametrize("name", LIBRARY)
def test_only_the_lake_reads_and_writes_tables(name: str) -> None:
    if name not in READERS:
        assert reads(LIBRARY[name]) == []
    if name not in WRITERS:
        assert writes(LIBRARY[name]) == []


@pytest.mark.parametrize("name", LIBRARY)
def test_torch_stays_with_nets_and_training_and_is_imported_elsewhere_when_it_is_needed(name: str) -> None:
    if name in NETS or (room(name) == "training" and name not in TORCH):
        return
    assert name in TORCH or torch(LIBRARY[name]) == []
    assert [n for n in imports(LIBRARY[name], deep=False) if top(n) == "torch"] == []


def test_a_training_is_a_barrier_stage_in_two_places_only() -> None:
    """One driver of gangs and one of nets: what a barrier stage needs is written once for each."""
    found = {
        path.name
        for path in (ROOT / "sparkcf").rglob("*.py")
        if re.search(r"barrier=True|\.barrier\(\)", path.read_text())
    }
    assert found == {"gang_stage.py", "launch.py", "shared_gradients.py"}  # the last: torch's own barrier of a step


def test_every_exception_is_still_needed() -> None:
    assert all(torch(LIBRARY[name]) for name in TORCH)
    assert all(reads(LIBRARY[name]) for name in READERS)
    assert all(writes(LIBRARY[name]) for name in WRITERS)
    assert all(spark(LIBRARY[name]) for name in ON_SPARK)


@pytest.mark.parametrize("name", JOBS)
def test_a_job_calls_one_function_and_holds_no_logic(name: str) -> None:
    source = JOBS[name].read_text()
    assert logic_of_a_job(ast.parse(source)) == []
    assert len(source.splitlines()) <= JOB_LINES
    assert f"spark-submit jobs/{name}.py" in source  # its docstring is its manual


BREACHES: list[tuple[Callable[..., list[str]], str]] = [
    (foreign_to_kernels, "from pyspark.sql import DataFrame"),
    (foreign_to_kernels, "def f():\n    import torch"),
    (foreign_to_kernels, "from sparkcf.config.root import Config"),
    (foreign_to_nets, "from pyspark.sql import DataFrame"),
    (foreign_to_nets, "from sparkcf.training.feed import Feed"),
    (partial(upward, "sparkcf.kernels.als"), "from sparkcf.config.factorization import ALSConfig"),
    (partial(upward, "sparkcf.training.loop"), "def f():\n    from sparkcf.models.nets.multvae import MultVAE"),
    (partial(upward, "sparkcf.models.popularity"), "from sparkcf.jobs.base import base_run"),
    (partial(upward, "sparkcf.models.popularity"), "from sparkcf.ranking import topk"),
    (partial(upward, "sparkcf.jobs.clean"), "import sparkcf.cli.doctor"),
    (partial(upward, "sparkcf.errors"), "from sparkcf.config.root import Config"),
    (inside_models, "from sparkcf.models.als.fit import ALS"),
    (inside_models, "def f():\n    import sparkcf.models.popularity"),
    (inside_models, "from sparkcf.models import popularity"),
    (tables_in_models, "from sparkcf.lake.tables import LakeTables"),
    (tables_in_models, "from sparkcf.lake import factors"),
    (tables_in_models, "def f(spark):\n    return spark.read.parquet('x')"),
    (tables_in_models, "factors.write.parquet('x')"),
    (named_models, "x = 1 if config.model == 'als' else 2"),
    (named_models, "while 'fm' != model.name:\n    pass"),
    (named_models, "if name in ('popularity', 'other'):\n    pass"),
    (named_models, "match config.model:\n    case 'multvae':\n        pass"),
    (mathematics, "import numpy as np"),
    (mathematics, "def f():\n    from pyspark.sql import types"),
    (content, "'''Doc.'''\nfrom sparkcf.kernels.als import solve"),
    (content, "x = 1"),
    (unsafe, "import pickle"),
    (unsafe, "def f():\n    from cloudpickle import loads"),
    (unsafe, "x = eval('1')"),
    (unsafe, "yaml.load(text)"),
    (unsafe, "yaml.unsafe_load(text)"),
    (unsafe, "yaml.full_load_all(text)"),
    (unsafe, "os.system(text)"),
    (unsafe, "torch.load(path)"),
    (unsafe, "np.load(path)"),
    (unsafe, "np.load(path, allow_pickle=True)"),
    (unsafe, "subprocess.run(text, shell=True)"),
    (reads, "def f(spark):\n    return spark.read.parquet('x')"),
    (reads, "reader = self.spark.read"),
    (reads, "from delta.tables import DeltaTable"),
    (writes, "rows.select('a').write.format('delta').save('x')"),
    (writes, "rows.writeTo('t').append()"),
    (writes, "rows.writeStream.start()"),
    (spark, "from sparkcf.spark import DataFrame"),
    (torch, "def f():\n    import torch.distributed as dist"),
    (logic_of_a_job, "'''Doc.'''\nimport os"),
    (logic_of_a_job, "from sparkcf.jobs.frame import main\ndef f():\n    pass"),
    (logic_of_a_job, "from pyspark.sql import SparkSession"),
    (logic_of_a_job, "if __name__ == '__main__':\n    x = 1\n    main(x)"),
    (logic_of_a_job, "main('x')"),
]
HARMLESS: list[tuple[Callable[..., list[str]], str]] = [
    (foreign_to_kernels, "import math\nimport numpy as np\nfrom sparkcf.kernels.jit import kernel"),
    (foreign_to_nets, "import torch\nfrom sparkcf.training.batch import Rows"),
    (partial(upward, "sparkcf.models.als.fit"), "from sparkcf.training.gang import Gang\nimport sparkcf.errors"),
    (partial(upward, "sparkcf.cli.main"), "from sparkcf.cli.doctor import diagnose\nimport sparkcf.jobs.clean"),
    (inside_models, "from sparkcf.models.registry import model_of\nfrom sparkcf.models import contract"),
    (tables_in_models, "from sparkcf.lake.arrays import Arrays\nrows = data.packing.read(snapshot)"),
    (named_models, "name = model_of(config).name\nmine = system == 'model'\nx = {'als': 1}"),
    (mathematics, "import math\nfrom pydantic import Field"),
    (content, "'''Doc.'''"),
    (content, ""),
    (unsafe, "np.load(path, allow_pickle=False)\nyaml.safe_load(text)"),
    (reads, "tables.read('users')\nopen('x').read()"),
    (writes, "sys.stdout.write('x')"),
    (logic_of_a_job, "'''Doc.'''\nfrom sparkcf.jobs.frame import main\nif __name__ == '__main__':\n    main('x', f)"),
]


@pytest.mark.parametrize(("rule", "source"), BREACHES)
def test_each_rule_sees_a_planted_breach(rule: Callable[..., list[str]], source: str) -> None:
    assert rule(ast.parse(source)) != []


@pytest.mark.parametrize(("rule", "source"), HARMLESS)
def test_no_rule_sees_a_breach_where_there_is_none(rule: Callable[..., list[str]], source: str) -> None:
    assert rule(ast.parse(source)) == []


def test_what_is_loaded_is_followed_through_our_own_modules() -> None:
    library = LIBRARY | {
        "sparkcf.lake.query": ast.parse("import sparkcf.models.als.fit"),
        "sparkcf.models.als.fit": ast.parse("import pyspark"),
    }
    assert "pyspark" in loaded("sparkcf.lake.query", library)
    lazy = LIBRARY | {"sparkcf.lake.query": ast.parse("def f():\n    import pyspark")}
    assert "pyspark" not in loaded("sparkcf.lake.query", lazy)


def test_a_circle_is_seen_through_other_modules_and_inside_functions() -> None:
    library = {
        "a": ast.parse("import b\nimport d"),
        "b": ast.parse("from c import f"),
        "c": ast.parse("def f():\n    import a"),
        "d": ast.parse("def f():\n    import d"),
        "e": ast.parse("import a"),
    }
    assert circle(library) == ["a", "b", "c", "e"]
    assert circle(library | {"c": ast.parse("")}) == []
