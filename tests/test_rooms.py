"""The rooms of the package: each imports only rooms below it, and kernels import kernels."""

import ast
import itertools
import re

import pytest
from conftest import PACKAGE

import fastconv

# From the top. Rooms of one line do not import each other.
ROOMS = (
    ("__main__",),
    ("demo", "verify", "config"),
    ("interop", "inspect", "nn", "signal"),
    ("prepare",),
    ("conv", "pool", "dense", "resample", "unfold"),
    ("calls", "calls_pool"),
    ("plan",),
    ("depthwise",),
    ("bank", "pixels", "weight_grad"),
    ("blocked",),
    ("winograd_costs",),
    ("winograd",),
    ("passes",),
    ("registry",),
    ("threads", "workspace"),
    ("im2col",),
    ("problem_pool",),
    ("problem",),
    ("arrays",),
    ("engine",),
    ("reference", "testing"),
)
HEIGHT = {room: -level for level, rooms in enumerate(ROOMS) for room in rooms}
ENGINE_ONLY = ("kernels", "_engines")  # reached through fastconv.engine alone

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_engines" not in path.parts)
SOURCES = sorted((PACKAGE / "kernels").glob("*.p[yx][xd]"))
every_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
every_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)


def room_of(path):
    """The room a file belongs to: a module, or the folder in which it lies."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path):
    """Rooms of fastconv that a file imports anywhere, inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "fastconv":
                yield rest.partition(".")[0], node.lineno


@every_module
def test_every_module_has_a_room(path):
    assert room_of(path) in {*HEIGHT, "__init__"}


@every_module
def test_imports_go_down(path):
    room = room_of(path)
    for other, line in imported_rooms(path):
        assert other not in ENGINE_ONLY, f"{path.name}:{line} imports {other}"
        if room != "__init__" and other not in ("", room) and other in HEIGHT:
            assert HEIGHT[other] < HEIGHT[room], f"{path.name}:{line}: {room} imports {other}"


def test_the_public_module_imports_no_kernel_by_itself():
    assert set(fastconv.__all__) <= set(dir(fastconv))
    assert list(fastconv.__all__) == sorted(fastconv.__all__)


def test_the_map_lists_the_rooms_in_this_order():
    rows = re.findall(r"^ {4}(\S.*)$", fastconv.__doc__, re.MULTILINE)
    listed = [re.findall(r"[a-z_0-9]+(?=[/,]?(?:\s|$))", row[:33]) for row in rows]
    assert listed, "the docstring of fastconv/__init__.py holds the map"
    heights = [{HEIGHT[room] for room in rooms if room in HEIGHT} for rooms in listed]
    heights = [level for level in heights if level]
    for above, below in itertools.pairwise(heights):
        assert min(above) > max(below), f"{above} stands above {below}"
    present = {room_of(path) for path in MODULES} - {"__init__", "__main__"}
    assert present <= {room for rooms in listed for room in rooms}


# Kernels


@every_source
def test_kernels_cimport_kernels_alone(path):
    for module in re.findall(r"^\s*from\s+(\S+)\s+cimport", path.read_text(), re.MULTILINE):
        assert module.startswith(("fastconv.kernels.", "cython.", "libc.")), module
    for module in re.findall(r"^\s*cimport\s+(\S+)", path.read_text(), re.MULTILINE):
        assert module in ("numpy", "cython"), module


@every_source
def test_kernels_import_nothing(path):
    assert re.findall(r"^\s*(?:import|from\s+\S+\s+import)\s", path.read_text(), re.MULTILINE) == []


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.suffix == ".pxd"], ids=lambda path: path.name
)
def test_shared_functions_are_inline(path):
    """One that is not would be bound to a single engine, whatever the engine of the caller."""
    text = path.read_text()
    for body in re.split(r"^cdef extern .*:$", text, flags=re.MULTILINE)[:1] + [
        re.sub(r"(?m)\A(?:(?: {4,}.*)?\n)*", "", part)
        for part in re.split(r"^cdef extern .*:$", text, flags=re.MULTILINE)[1:]
    ]:
        functions = re.findall(r"^cdef\s+(?!struct|enum|extern|union)(.*)\(.*", body, re.MULTILINE)
        assert [name for name in functions if not name.startswith("inline ")] == []


@every_source
def test_kernels_share_no_definitions_by_other_means(path):
    """One source for all engines: no included files, no compile-time conditions, no fused types."""
    text = path.read_text()
    assert re.findall(r"^\s*(?:include\s+[\"']|DEF\s|IF\s|ctypedef fused)", text, re.MULTILINE) == []


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.suffix == ".pyx"], ids=lambda path: path.name
)
def test_a_kernel_module_has_no_interface_for_others(path):
    assert not path.with_suffix(".pxd").exists()


@every_source
def test_functions_of_kernels_need_no_interpreter(path):
    """cdef functions with pointers are noexcept nogil."""
    text = re.sub(r"\\\n|\n(?=\s{8,})", " ", path.read_text())
    for line in re.findall(r"^cdef (?:inline )?(?!struct|enum|extern|class)\w.*\).*:$", text, re.MULTILINE):
        if "cnp.ndarray" not in line and "*" in line:
            assert "noexcept nogil:" in line, line
