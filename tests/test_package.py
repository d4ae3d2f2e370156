"""What others install: the sdist, the wheel, their metadata and the locks."""

import contextlib
import re
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINK = r"!?\[[^]]*\]\(([^)#]+)[^)]*\)"


# -- the sdist and the wheel -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A directory with an sdist and the wheel."""
    build = pytest.importorskip("hatchling.build")
    pytest.importorskip("hatch_fancy_pypi_readme")
    out = tmp_path_factory.mktemp("dist")
    with contextlib.chdir(ROOT):
        build.build_sdist(str(out))
        build.build_wheel(str(out))
    return out


@pytest.fixture
def wheel(built):
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        yield file


def test_the_sdist_holds_what_readme_names_and_all_sources(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    named = set(re.findall(r"`([\w/.-]+\.(?:py|cff|lock))`|-r (\S+\.lock)", README))
    needed = {name for pair in named for name in pair if name}
    needed |= {target for target in re.findall(LINK, README) if "://" not in target}
    assert {"requirements.lock", "docs/images/overview.png"} <= needed
    for pattern in ("minidiff/**/*", "tests/*.py", "tutorials/*.py", "docs/*.*", "docs/howto/*.md"):
        files = (path for path in ROOT.glob(pattern) if path.is_file())
        needed |= {path.relative_to(ROOT).as_posix() for path in files}
    assert {n for n in needed - names if "__pycache__" not in n} == set()
    generated = {"__pycache__", "_build", "node_modules", ".venv", "runs"}
    assert [name for name in names if generated & set(name.split("/"))] == []


def test_the_wheel_holds_the_package_its_types_and_its_licence(wheel):
    names = set(wheel.namelist())
    package = {name for name in names if name.startswith("minidiff/")}
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "minidiff").rglob("*.*")}
    assert package == {name for name in sources if "__pycache__" not in name}
    assert "minidiff/py.typed" in package
    (licence,) = (name for name in names - package if name.endswith("licenses/LICENSE"))
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert all(".dist-info/" in name for name in names - package)


def test_an_index_page_has_no_links_that_lead_nowhere(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    page = message_from_string(wheel.read(name).decode()).get_payload()
    assert page.startswith("# minidiff\n")
    assert {target for target in re.findall(LINK, page) if "https://" not in target} == set()
    assert "https://arxiv.org/abs/2012.03653" in re.findall(LINK, page)
    assert all(block in page for block in re.findall(r"```.*?```", README, re.DOTALL))
    assert "see\nthe method." in page  # the words of a link stay
    assert "MNIST: error, savings" not in page  # a picture is left out with its description


# -- the locks -------------------------------------------------------------------------------------


def pins(lock):
    """Return the packages of a lock: by name and version, the requirement and its hashes."""
    text = (ROOT / lock).read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line.split("--hash=") for line in text.splitlines() if not line.startswith("#")]
    return {line: tuple(hashes) for line, *hashes in lines}


def required(extra):
    """Return the requirements of the package with an extra, and those of the extras it names."""
    found = [*map(Requirement, PROJECT["dependencies"])]
    for need in map(Requirement, PROJECT["optional-dependencies"][extra]):
        found.append(need)
        for other in need.extras:
            found += required(other)
    return [need for need in found if need.name != "minidiff"]


@pytest.mark.parametrize(
    ("lock", "extra"), [("requirements.lock", "train"), ("tests/requirements.lock", "dev")]
)
def test_a_lock_pins_what_is_required_and_names_hashes_but_no_host(lock, extra):
    locked = pins(lock)
    for hashes in locked.values():
        assert hashes
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64} *", one) for one in hashes)
    versions = {}
    for pin in map(Requirement, locked):
        (version,) = pin.specifier
        assert version.operator == "=="
        versions.setdefault(pin.name, []).append(version.version)
    for need in required(extra):
        assert need.name in versions
        assert all(version in need.specifier for version in versions[need.name]), need
    assert "//" not in (ROOT / lock).read_text(encoding="utf-8")


def test_both_locks_agree():
    assert pins("requirements.lock").items() <= pins("tests/requirements.lock").items()
