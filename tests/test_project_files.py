"""The project's own files agree: what is checked before a commit and by the hosted workflow is what the README says."""

import re

from tests.conftest import PROJECT
from utils.running.cli import VERSION

README = (PROJECT / "README.md").read_text(encoding="utf-8")
WORKFLOW = (PROJECT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
LINTERS = {"flake8", "flake8-docstrings", "pep8-naming"}


def pins(text: str) -> dict[str, str]:
    """Return the version of each ``name==version`` in a text."""
    return dict(re.findall(r"([A-Za-z][\w.-]*)==([\w.]+)", text))


def test_hooks_have_the_versions_of_the_development_requirements():
    hooks = pins((PROJECT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    required = pins((PROJECT / "requirements-dev.txt").read_text(encoding="utf-8"))
    assert set(hooks) == LINTERS
    assert hooks == {name: required[name] for name in LINTERS}
    assert LINTERS == {name for name in required if name.startswith(("flake8", "pep8"))}


def test_workflow_has_the_oldest_and_the_newest_python_of_the_readme():
    oldest, newest = re.search(r"Python (3\.\d+) to (3\.\d+)", README).groups()
    assert f'python: ["{oldest}", "{newest}"]' in WORKFLOW


def test_workflow_runs_the_commands_of_the_readme_on_every_system():
    commands = re.findall(r"^ +- run: (.*)$", WORKFLOW, flags=re.MULTILINE)
    assert commands == ["make test", "make demo"]
    assert all(f"`{command}`" in README for command in commands)
    assert "os: [ubuntu-latest, macos-latest, windows-latest]" in WORKFLOW


def test_workflow_pins_actions_by_commit():
    used = re.findall(r"uses: (\S+)", WORKFLOW)
    assert used and all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action) for action in used)


def test_changelog_tells_of_this_version():
    changelog = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{VERSION}]" in changelog


def test_prediction_alone_needs_the_versions_that_the_project_needs():
    few, all_of_it = (pins((PROJECT / name).read_text(encoding="utf-8"))
                      for name in ("requirements-predict.txt", "requirements.txt"))
    assert few.items() < all_of_it.items()


def test_the_container_holds_what_prediction_needs():
    dockerfile = (PROJECT / "Dockerfile").read_text(encoding="utf-8")
    assert {"requirements-predict.txt", "models/*.py", "utils", "scripts"} == {
        source for source in re.findall(r"^COPY (\S+) ", dockerfile, flags=re.MULTILINE)}
    assert "USER nightscan" in dockerfile  # not root
