"""What is built and shipped: portable flags, declared dependencies, no generated code."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib

import pytest
from conftest import CHECKOUT, PACKAGE, run_python

import fastconv

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())


def test_versions_agree():
    assert fastconv.__version__ == PROJECT["project"]["version"]


def test_installed_version_agrees():
    try:
        installed = importlib.metadata.version("fastconv")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("used from a checkout, not installed")
    assert installed == fastconv.__version__


def test_the_users_cpu_may_differ_from_the_builders():
    text = (CHECKOUT / "setup.py").read_text()
    for flag in ("-march=", "-mtune=native", "-ffast-math", "-Ofast"):
        assert flag not in text


def test_numpy_is_all_it_needs():
    assert [re.match(r"\w+", name).group() for name in PROJECT["project"]["dependencies"]] == ["numpy"]
    code = (
        "import sys, fastconv\n"
        "import numpy as np\n"
        "fastconv.conv2d(np.ones((1, 3, 9, 9)), np.ones((4, 3, 3, 3)))\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(roots & {'scipy', 'Cython', 'torch', 'matplotlib', 'setuptools', 'sklearn'}))"
    )
    assert run_python(code).stdout.strip() == "[]"


def test_sources_and_types_are_shipped():
    assert (PACKAGE / "py.typed").is_file()
    assert {path.suffix for path in (PACKAGE / "kernels").iterdir()} >= {".pyx", ".pxd", ".h"}


def test_no_generated_code_in_the_repository():
    if not (CHECKOUT / ".git").exists():
        pytest.skip("not a clone")
    done = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    tracked = done.stdout.splitlines()
    assert "setup.py" in tracked
    assert [name for name in tracked if name.endswith((".c", ".so", ".o", ".pyd"))] == []
    assert [name for name in tracked if name.startswith(("build/", "fastconv/_engines/"))] == []


def test_simd_h_is_the_only_c():
    assert [path.name for path in PACKAGE.rglob("*.[ch]") if "build" not in path.parts] == ["simd.h"]


def test_import_is_quick_and_silent():
    done = run_python("import fastconv")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_python_versions():
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert sys.version_info >= tuple(map(int, oldest.split(".")))
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
