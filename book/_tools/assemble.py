"""Puts the book together under _build/source: prose, executed chapters, generated pages."""

import shutil

import nbformat
import yaml

from execute import figures, up_to_date
from project import ROOT, SOURCE, chapters

CATALOGUE = "book/catalogue"


def assemble():
    """Writes a fresh source tree that Jupyter Book renders without executing anything."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(ROOT / "book", SOURCE / "book", ignore=shutil.ignore_patterns("_tools", "__pycache__"))
    shutil.copytree(ROOT / "results", SOURCE / "results")
    shutil.copy(ROOT / "_config.yml", SOURCE)
    for chapter in chapters():
        (SOURCE / chapter).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(up_to_date(chapter), SOURCE / chapter)
        if figures(chapter).exists():
            shutil.copytree(figures(chapter), (SOURCE / chapter).with_suffix(".figures"))
    from cards import write_cards  # imports the package, which a failed chapter may have broken

    write_toc(write_cards(SOURCE))


def write_toc(cards):
    """_toc.yml with the method cards below the catalogue; cards are document names relative to the book."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    pages = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    catalogue = next(page for page in pages if page["file"] == CATALOGUE)
    catalogue["sections"] = [{"file": card} for card in cards]
    (SOURCE / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False, allow_unicode=True))
