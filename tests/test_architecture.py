"""The code follows docs/architecture.md: layers, dependencies of each stage, forbidden calls."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from glm2core.cli.parameters import commented
from glm2core.params import Params

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*(ROOT / "glm2core").rglob("*.py"), *(ROOT / "stages").glob("*.py")])
STAGES = ["convert", "tokenize", "train", "evaluate"]
DVC_YAML: dict[str, Any] = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
MOST_LINES = 400

BASE = {
    "console",
    "conversation",
    "errors",
    "family",
    "files",
    "hardware",
    "journal",
    "labels",
    "params",
    "parquet",
    "process",
    "report_tables",
    "result_tables",
    "sentences",
}
# layer -> the layers it may import, besides itself
ALLOWED = {
    **dict.fromkeys(BASE, BASE),
    "tracking": BASE,
    "lines": BASE,
    "analysis": BASE,
    "data": BASE | {"lines", "analysis"},
    "text": BASE | {"data"},
    "model": BASE,
    "estimate": BASE | {"model"},
    "training": BASE | {"text", "model", "estimate"},
    "evaluation": BASE | {"lines", "text", "model"},
    "export": BASE | {"lines", "text", "model", "evaluation"},
    "serving": BASE | {"lines", "text", "model", "evaluation"},
    "cli": BASE | {"data", "text", "model", "estimate", "training", "evaluation", "export", "serving", "tracking"},
    "__main__": {"cli"},
    "stages": BASE | {"data", "text", "model", "training", "evaluation", "tracking"},
}
HEAVY = {"torch", "transformers", "peft", "accelerate", "bitsandbytes"}
MAY_IMPORT_HEAVY = (
    "glm2core/hardware.py",
    *(f"glm2core/{room}/" for room in ("model", "estimate", "training", "evaluation", "export", "serving", "cli")),
)


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def module_of(file: Path) -> str:
    return relative(file).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(file): file for file in FILES}
TREES = {module: ast.parse(file.read_text(encoding="utf-8")) for module, file in MODULES.items()}


def layer_of(module: str) -> str:
    first, _, rest = module.partition(".")
    return "stages" if first == "stages" else rest.partition(".")[0]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes except those for the type checker only; including function bodies."""
    for child in ast.iter_child_nodes(node):
        if not is_type_checking(child):
            yield child
            yield from runtime_nodes(child)


def imports_of(module: str) -> set[str]:
    """Dotted names that a module imports at run time, also in functions; ours resolved to the module with the name."""
    names: set[str] = set()
    for node in runtime_nodes(TREES[module]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import; name the module in full"
            source = str(node.module)
            inner = {f"{source}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else source for name in inner}
    return names


def import_closure(module: str) -> set[str]:
    """Our modules that a module imports, directly or not; without tracking, as a change of tags must not retrain."""
    seen: set[str] = set()
    open_ends = [module]
    while open_ends:
        current = open_ends.pop()
        if current in seen or layer_of(current) == "tracking":
            continue
        seen.add(current)
        parents = {current.rsplit(".", depth)[0] for depth in range(1, current.count("."))}
        open_ends += [name for name in imports_of(current) | parents if name in MODULES]
    return seen


def test_imports_go_one_way() -> None:
    assert imports_of("glm2core") <= {"importlib", "typing"}
    for module in set(MODULES) - {"glm2core"}:
        layer = layer_of(module)
        ours = {name for name in imports_of(module) if name.split(".")[0] in ("glm2core", "stages")}
        wrong = {name for name in ours if layer_of(name) not in ALLOWED[layer] | {layer}}
        assert wrong == set(), f"{module} imports upwards or sideways"


def test_only_tracking_imports_mlflow_and_only_stages_and_three_commands_import_tracking() -> None:
    for module in MODULES:
        roots = {name.split(".")[0] for name in imports_of(module)}
        assert "mlflow" not in roots or layer_of(module) == "tracking", module
        tracks = any(layer_of(name) == "tracking" for name in imports_of(module) if name.startswith("glm2core."))
        users = ("glm2core.cli.promote", "glm2core.cli.ui", "glm2core.cli.doctor")
        assert not tracks or layer_of(module) in ("stages", "tracking") or module in users, module


def test_only_the_layers_named_in_the_architecture_import_torch() -> None:
    for module, file in MODULES.items():
        heavy = {name.split(".")[0] for name in imports_of(module)} & HEAVY
        place = relative(file)
        assert not heavy or place.startswith(MAY_IMPORT_HEAVY) or place == "glm2core/text/hf_tokenizer.py", place


@pytest.mark.parametrize("module", ["glm2core.params", "glm2core.tracking", *[f"stages.{name}" for name in STAGES]])
def test_params_are_checked_before_torch_or_mlflow_is_imported(module: str) -> None:
    code = f"import sys, {module}; print(*({{'torch', 'transformers', 'mlflow'}} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_dependencies_are_its_import_closure(stage: str) -> None:
    # The two outermost __init__.py contain only names.
    closure = {relative(MODULES[name]) for name in import_closure(f"stages.{stage}")}
    closure -= {"glm2core/__init__.py", "stages/__init__.py"}
    listed = {dep for dep in DVC_YAML["stages"][stage]["deps"] if dep.startswith(("glm2core", "stages"))}
    covering = {file: [dep for dep in listed if file == dep or file.startswith(f"{dep}/")] for file in closure}
    assert {file for file, deps in covering.items() if len(deps) != 1} == set(), "not listed, or listed twice"
    assert listed - {dep for deps in covering.values() for dep in deps} == set(), "listed, but not imported"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_as_a_module_with_all_its_params(stage: str) -> None:
    entry = DVC_YAML["stages"][stage]
    # A script's folder would shadow the library's tokenize; and nothing from params is passed to a shell.
    assert entry["cmd"] == f"python -m stages.{stage}"
    assert stage in entry["params"]
    assert entry["desc"].endswith(".")
    assert all(metric[f"metrics/{stage}.json"] == {"cache": False} for metric in entry["metrics"])
    assert list(DVC_YAML["stages"]) == STAGES


FORBIDDEN_NAMES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def test_nothing_is_run_from_data() -> None:
    for module, tree in TREES.items():
        assert {name.split(".")[0] for name in imports_of(module)} & FORBIDDEN_NAMES == set(), module
        for node in ast.walk(tree):
            place = f"{module}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) == "False", place
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in FORBIDDEN_CALLS, place
                safe = any(key.arg == "weights_only" and ast.unparse(key.value) == "True" for key in node.keywords)
                assert called != "torch.load" or safe, place


ASKS_OTHERS = {"urllib.request", "http", "socket", "requests", "httpx", "aiohttp"}
MAY_ASK_OTHERS = {
    "glm2core.serving.remote",  # compare
    "glm2core.export.llama_cpp",  # llama.cpp in this process, on the loopback
    "glm2core.cli.serve",  # listens
}


def test_only_compare_opens_a_connection() -> None:
    for module in MODULES:
        asks = [name for name in imports_of(module) if any(f"{name}.".startswith(f"{o}.") for o in ASKS_OTHERS)]
        assert not asks or module in MAY_ASK_OTHERS or layer_of(module) == "tracking", module


MUTATORS = {"append", "extend", "insert", "add", "update", "pop", "popitem", "remove", "discard", "clear", "setdefault"}


def test_no_global_state_and_no_foreign_module_is_patched() -> None:
    for module, tree in TREES.items():
        globals_, imported = top_level_names(tree), imported_names(tree)
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            own = own_names(function)
            for node in ast.walk(function):
                place = f"{module}:{getattr(node, 'lineno', 0)}"
                assert not isinstance(node, ast.Global), place
                if isinstance(node, (ast.Subscript, ast.Attribute)) and isinstance(node.ctx, (ast.Store, ast.Del)):
                    assert root_name(node) not in (globals_ | imported) - own, f"{place}: {ast.unparse(node)} is set"
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
                    assert root_name(node.func) not in globals_ - own, f"{place}: {ast.unparse(node.func)}"


def top_level_names(tree: ast.Module) -> set[str]:
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def imported_names(tree: ast.Module) -> set[str]:
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    return {(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names}


def own_names(function: ast.FunctionDef) -> set[str]:
    """Parameters and local variables, which may be changed."""
    names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return names | {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}


def root_name(node: ast.expr) -> str | None:
    while isinstance(node, (ast.Subscript, ast.Attribute)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def test_importing_a_module_does_nothing_else() -> None:
    """Only glm2core.model may do something: it registers the Auto classes."""
    for module in set(MODULES) - {"glm2core.model"}:
        for node in TREES[module].body:
            place = f"{module}:{node.lineno}"
            assert not isinstance(node, (ast.For, ast.While, ast.With, ast.Try)), place
            assert not isinstance(node, ast.Expr) or isinstance(node.value, ast.Constant), place
            if isinstance(node, ast.If):
                assert ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"), place


def test_files_stay_short() -> None:
    lengths = {relative(file): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {file: lines for file, lines in lengths.items() if lines > MOST_LINES} == {}


def test_every_module_says_what_it_is_for() -> None:
    silent = [module for module, tree in TREES.items() if not ast.get_docstring(tree) and tree.body]
    assert silent == []


def test_tests_use_the_real_thing() -> None:
    for file in sorted((ROOT / "tests").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        for word in ("Magic" + "Mock", "mock." + "patch", "monkeypatch." + "setattr", "pytest.mark." + "xfail"):
            assert word not in text, f"{relative(file)} has {word}"


def test_no_file_names_the_machine_it_was_written_on() -> None:
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in done.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.stat().st_size < 1 << 20:
            content = path.read_bytes()
            assert not re.search(rb"(?<![\w.])/(work|home)/\w", content), name


def missing_keys(section: type[BaseModel], values: dict[str, Any], place: str = "") -> Iterator[str]:
    """Dotted keys of a section that are missing from the file's values."""
    for name, field in section.model_fields.items():
        inner = field.annotation
        if name not in values:
            yield place + name
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from missing_keys(inner, values[name], f"{place}{name}.")


def test_every_param_is_in_params_yaml_with_its_description_as_comment() -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert list(missing_keys(Params, YAML(typ="safe", pure=True).load(text))) == []
    assert text == commented(ROOT / "params.yaml"), "python -m glm2core parameters --comments prints it as it should be"


def test_every_param_describes_itself() -> None:
    def undescribed(section: type[BaseModel], place: str) -> Iterator[str]:
        for name, field in section.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from undescribed(inner, f"{place}{name}.")
            elif not field.description:
                yield place + name

    assert list(undescribed(Params, "")) == []
