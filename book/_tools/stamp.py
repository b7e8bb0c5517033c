"""`make stamp`: writes address and version from pyproject.toml wherever else they are shown."""

import re

import nbformat

from project import ROOT, chapters, metadata

FILES = ("_config.yml", "CITATION.cff", "normsurvey/__init__.py")
SETUP_CELL = ROOT / "book" / "_tools" / "setup_cell.py"


def setup_cell():
    """The cell that every chapter opens with, as it should read today."""
    facts = metadata()
    source = f"git+{facts['repository']}@{facts['revision']}"
    return re.sub(r"git\+https://[^\s\"]+", lambda _: source, SETUP_CELL.read_text()).strip()


def stamped(name, text):
    """The text of the file with this name, its address and version replaced by today's."""
    facts = metadata()
    lines = {
        "_config.yml": (
            ("  url", facts["repository"]),
            ("  branch", facts["revision"]),
            ("  baseurl", facts["book"]),
        ),
        "CITATION.cff": (
            ("version", facts["version"]),
            ("repository-code", f'"{facts["repository"]}"'),
            ("url", f'"{facts["book"]}"'),
        ),
        "normsurvey/__init__.py": (("__version__", f'"{facts["version"]}"'),),
    }
    for key, value in lines[name]:
        text, count = re.subn(rf"(?m)^({key}(?:: | = )).*$", lambda m, value=value: m[1] + value, text)
        if count != 1:
            raise ValueError(f"{name} has {count} lines that give {key}; keep exactly one for stamp.py to write")
    return text


def stamped_readme(text):
    """The README with every link into a repository of this name replaced by today's address."""
    facts = metadata()
    text = re.sub(r"https://[\w-]+\.github\.io/normsurvey/", lambda _: facts["book"], text)
    return re.sub(r"https://github\.com/[\w-]+/normsurvey(?=\b)", lambda _: facts["repository"], text)


def main():
    """Writes all of them and says which changed."""
    readme = ROOT / "README.md"
    texts = {SETUP_CELL: setup_cell() + "\n", readme: stamped_readme(readme.read_text())}
    for name in FILES:
        texts[ROOT / name] = stamped(name, (ROOT / name).read_text())
    for path, text in texts.items():
        if path.read_text() != text:
            path.write_text(text)
            print(f"stamped {path.relative_to(ROOT)}")
    for chapter in chapters():
        notebook = nbformat.read(ROOT / chapter, as_version=4)
        for cell in notebook.cells:
            if "setup" in cell.metadata.get("tags", []) and cell.source != setup_cell():
                cell.source = setup_cell()
                nbformat.write(notebook, ROOT / chapter)
                print(f"stamped {chapter}")


if __name__ == "__main__":
    main()
