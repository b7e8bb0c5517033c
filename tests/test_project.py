"""What several files say must agree: the address, the versions, the lock, the workflows."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_tools"))
import stamp  # noqa: E402
from project import chapters, metadata  # noqa: E402

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = ("3.11", "3.12", "3.13")
IMPORTED_AS = {"scikit-learn": "sklearn", "pyyaml": "yaml", "curvlinops-for-pytorch": "curvlinops"}


def lock(python="3.12"):
    """{name: requirement} of the lock for one version of Python on Linux."""
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    environment = {"python_version": python, "platform_system": "Linux"}
    requirements = [Requirement(line) for line in lines]
    chosen = [r for r in requirements if not r.marker or Marker(str(r.marker)).evaluate(environment)]
    names = [canonicalize_name(r.name) for r in chosen]
    assert len(names) == len(set(names)), f"locked twice for Python {python}"
    return dict(zip(names, chosen, strict=True))


# One place for the address and the version.


def test_setup_cell_is_stamped():
    assert stamp.SETUP_CELL.read_text() == stamp.setup_cell() + "\n", "run `make stamp`"


@pytest.mark.parametrize("name", stamp.FILES)
def test_address_and_version_are_stamped(name):
    text = (ROOT / name).read_text()
    assert stamp.stamped(name, text) == text, "run `make stamp`"


def test_readme_shows_the_address():
    text = (ROOT / "README.md").read_text()
    assert metadata()["repository"] in text
    assert stamp.stamped_readme(text) == text, "run `make stamp`"


def test_no_other_file_has_an_address_of_its_own():
    address = re.compile(r"github\.(?:com|io)/[\w-]*/?normsurvey|[\w-]+\.github\.io/normsurvey")
    written = [*stamp.FILES, "README.md", "pyproject.toml", "book/_tools/setup_cell.py", "book/_tools/stamp.py"]
    folders = ("book", "normsurvey", "tests", ".github")
    files = [*ROOT.glob("*.*"), *(path for folder in folders for path in (ROOT / folder).rglob("*.*"))]
    texts = {path.relative_to(ROOT).as_posix(): path for path in files if path.suffix in (".py", ".md", ".yml", ".cff")}
    others = [n for n, path in texts.items() if n not in [*written, "tests/test_project.py"]]
    assert not [name for name in others if address.search(texts[name].read_text())], "take it from the configuration"


def test_installed_package_is_this_version():
    assert importlib.metadata.version("normsurvey") == PROJECT["version"]
    assert f"\n## {PROJECT['version']} " in (ROOT / "CHANGELOG.md").read_text()


# The environment.


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_pins_everything_exactly(python):
    for name, requirement in lock(python).items():
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), f"{name}: {requirement.specifier} is not exact"
    assert str(lock(python)["torch"].specifier) == "==2.13.0"


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_fulfils_pyproject(python):
    locked = lock(python)
    for line in PROJECT["dependencies"] + EXTRAS["book"] + EXTRAS["test"]:
        wanted = Requirement(line)
        version = str(locked[canonicalize_name(wanted.name)].specifier).removeprefix("==")
        assert wanted.specifier.contains(version), f"pyproject.toml wants {wanted}, requirements.lock has {version}"


def test_lock_is_complete():
    """Every requirement of a locked package is locked as well, in a version that it accepts."""
    locked = lock(f"{sys.version_info.major}.{sys.version_info.minor}")
    for name in locked.keys() - {"torch"}:  # which torch is installed decides on its CUDA packages
        for line in importlib.metadata.requires(name) or []:
            need = Requirement(line)
            if need.marker and not need.marker.evaluate({"extra": ""}):
                continue
            found = locked.get(canonicalize_name(need.name))
            assert found is not None, f"{name} needs {need}, which is not locked"
            assert need.specifier.contains(str(found.specifier).removeprefix("==")), f"{name} needs {need}: {found}"


def test_environment_yml_is_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert environment["name"] == PROJECT["name"]
    assert pip == {"pip": ["--requirement requirements.lock", "--editable ."]}
    python = next(line for line in conda if line.startswith("python=")).removeprefix("python=")
    assert python in PYTHONS
    assert {line.split("=")[0] for line in conda} == {"python", "pip"}, "the lock alone names versions"


def test_claimed_pythons_agree():
    claimed = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert tuple(claimed) == PYTHONS
    assert all(SpecifierSet(PROJECT["requires-python"]).contains(version) for version in PYTHONS)
    assert workflow("tests.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"] == list(PYTHONS)


def test_oldest_torch_is_the_one_that_is_tested_weekly_and_told():
    wanted = next(line for line in PROJECT["dependencies"] if line.startswith("torch"))
    matrix = workflow("weekly.yml")["jobs"]["torch"]["strategy"]["matrix"]["include"]
    assert wanted.replace(">=", "==") + ".*" in [entry["torch"] for entry in matrix]
    assert f"PyTorch {wanted.removeprefix('torch>=')} or newer" in (ROOT / "book" / "index.md").read_text()


def imports(path):
    """Top-level names of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize(
    ("folder", "extras"),
    [("normsurvey", ()), ("benchmarks", ("peers",)), ("book", ("book",)), ("tests", ("book", "test"))],
)
def test_imports_are_declared(folder, extras):
    lines = PROJECT["dependencies"] + [line for extra in extras for line in EXTRAS[extra]]
    names = [canonicalize_name(Requirement(line).name) for line in lines]
    declared = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}
    # What those packages are built on, and what a GPU's torch brings; each is imported on use.
    declared |= {"cycler", "PIL", "IPython", "traitlets", "docutils", "sphinx", "packaging", "triton"}
    declared |= sys.stdlib_module_names | {"normsurvey"}
    files = list((ROOT / folder).rglob("*.py"))
    own = {path.stem for path in files} | {path.stem for path in (ROOT / "book").rglob("*.py")}
    found = {(name, path.name) for path in files for name in imports(path)}
    assert not {pair for pair in found if pair[0] not in declared | own}


# Workflows: what can be said of them without running them.

WORKFLOWS = sorted(path.name for path in (ROOT / ".github" / "workflows").glob("*.yml"))


def workflow(name):
    """A workflow as data; YAML reads its key ``on`` as true."""
    data = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())
    data["on"] = data.pop(True)
    return data


def steps(name):
    """All steps of all jobs."""
    return [step for job in workflow(name)["jobs"].values() for step in job["steps"]]


def test_the_promised_workflows_are_there():
    assert WORKFLOWS == ["publish.yml", "release.yml", "tests.yml", "weekly.yml"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_has_the_shape_that_github_reads(name):
    data = workflow(name)
    assert data.keys() <= {"name", "on", "permissions", "concurrency", "env", "jobs"}
    for key, job in data["jobs"].items():
        assert job.keys() <= {
            "runs-on", "needs", "timeout-minutes", "strategy", "env", "permissions", "environment", "steps"
        }, key  # fmt: skip
        assert job["runs-on"] == "ubuntu-24.04" and job["timeout-minutes"] <= 60
        assert job.get("needs", key) in data["jobs"]
        for step in job["steps"]:
            assert step.keys() <= {"name", "id", "uses", "with", "run", "env"}
            assert ("uses" in step) != ("run" in step), step


@pytest.mark.parametrize("name", WORKFLOWS)
def test_expressions_name_what_exists(name):
    data = workflow(name)
    for job in data["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        known = {f"matrix.{key}" for entry in [matrix, *matrix.get("include", [])] for key in entry}
        known |= {"github.ref", "github.token"}
        known |= {f"steps.{step['id']}.outputs.page_url" for step in job["steps"] if "id" in step}
        assert set(re.findall(r"\$\{\{ *([\w.]+) *\}\}", str(job))) <= known
        assert not any("${{" in step.get("run", "") for step in job["steps"]), "pass values to scripts through env"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_by_commit(name):
    text = (ROOT / ".github" / "workflows" / name).read_text()
    used = re.findall(r"uses: *(.+)", text)
    assert len(used) == sum("uses" in step for step in steps(name))
    for action in used:
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


@pytest.mark.parametrize("name", WORKFLOWS)
def test_permissions_are_the_least(name):
    data = workflow(name)
    assert data["permissions"] == {"contents": "read"}
    granted = {key: job["permissions"] for key, job in data["jobs"].items() if "permissions" in job}
    assert granted == {
        "publish.yml": {"deploy": {"pages": "write", "id-token": "write"}},
        "release.yml": {"build": {"contents": "write"}},
    }.get(name, {})
    for step in steps(name):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"] == {"persist-credentials": False}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_commands_exist(name):
    targets = set(re.findall(r"(?m)^([\w./]+):", (ROOT / "Makefile").read_text())) | {".venv/.installed"}
    for step in steps(name):
        for target in re.findall(r"(?m)^\s*make (\S+)", step.get("run", "")):
            assert target in targets
        for script in re.findall(r"(?m)^\s*(\.ci/\S+)", step.get("run", "")):
            assert (ROOT / script).stat().st_mode & 0o111, f"{script} is not executable"


# The book's plan.


def test_every_chapter_is_in_the_table_of_contents():
    assert sorted(chapters()) == sorted(p.relative_to(ROOT) for p in (ROOT / "notebooks").rglob("[!.]*.ipynb"))


def test_house_keeps_its_top_level():
    for name in ("README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile"):
        assert (ROOT / name).is_file(), name
    licence = (ROOT / "LICENSE").read_text()
    assert "MIT License" in licence and "CC BY 4.0" in licence
