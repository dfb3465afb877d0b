"""Lower floors know nothing of higher ones, as `chinchilla_jax/README.md` draws them; no modules need each other."""

import ast
import graphlib
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "chinchilla_jax"
# From the ground up. What stands on one floor does not import its neighbours.
FLOORS = (
    ("base",),
    ("model.rope_scaling",),
    ("model.parts", "method", "config_study", "config_data"),
    ("config",),
    ("ledger", "config_flag"),
    ("presets",),
    ("kernels",),
    ("model", "data"),
    ("parallel",),
    ("training", "scaling"),
    ("interop", "methods", "study"),
    ("generation",),
    ("evaluation",),
    ("preflight", "tools"),
    ("launch",),
    ("cli",),
    ("__main__",),
)
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def _modules():
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


def _imports():
    """The modules of the package that each module imports when it is itself imported."""
    names = dict(_modules())
    for name, path in names.items():
        imported = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("chinchilla_jax."):
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                imported |= {module if module in names else node.module for module in inner}
        yield name, imported - {name}


def _room(module):
    parts = module.split(".")[1:] or ["__init__"]
    inner = ".".join(parts[:2])
    return inner if inner in HEIGHT else parts[0]


def test_a_floor_imports_itself_and_lower_ones():
    upward = {
        (name, module)
        for name, imported in _imports()
        for module in imported
        if _room(name) != _room(module) and HEIGHT[_room(name)] <= HEIGHT[_room(module)]
    }
    assert not upward


def test_no_modules_need_each_other():
    order = graphlib.TopologicalSorter(dict(_imports()))
    assert len(list(order.static_order())) > 150  # raises a CycleError, which names the circle


def test_nothing_that_trains_imports_the_measuring_tools():
    users = {_room(name) for name, imported in _imports() if "tools" in map(_room, imported)}
    assert users == {"tools"}
