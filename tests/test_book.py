"""The book's sources: citations that resolve, a guide that runs, cards and computed facts that hold their limits."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

import normsurvey as ns
from normsurvey.reference import REFERENCES
from normsurvey.registry import METHODS

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
sys.path += [str(BOOK / "_ext"), str(BOOK / "_tools")]


@pytest.fixture
def guide():
    """The namespace that the guide's code leaves; its method is taken out of the registry afterwards."""
    namespace = {"__name__": "guide"}
    blocks = re.findall(r"^```python\n(.*?)^```", (BOOK / "add_a_method.md").read_text(), re.M | re.S)
    try:
        for block in blocks:
            exec(compile(block, "add_a_method.md", "exec"), namespace)
        yield namespace
    finally:
        METHODS.pop("MeanOnlyGroupNorm", None)
        REFERENCES.pop("MeanOnlyGroupNorm", None)


def test_every_line_of_the_page_on_analysis_runs(capsys):
    namespace = {"__name__": "analyse"}
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```", (BOOK / "analyse.md").read_text(), re.M | re.S)
    tools = [block for block in blocks if "import" not in block and "class" not in block]
    assert len(tools) > 10 and all(len(block.strip().splitlines()) <= 5 for block in tools)
    for block in blocks:
        exec(compile(block, "analyse.md", "exec"), namespace)
    assert capsys.readouterr().out.splitlines()[-1] == "8"


def test_the_api_page_documents_every_analysis_tool_once():
    page = (BOOK / "api.md").read_text().partition("## Measuring")[2].partition("## Claims")[0]
    named = re.findall(r"^\.\. auto(?:class|function):: (\w+)$", page, re.M)
    assert sorted(named) == sorted(ns.analysis.__all__)


def test_the_guide_adds_a_method_that_passes_the_contract_and_gets_a_card(guide, tmp_path):
    from contract import assert_follows, build, draw

    import cards

    record = ns.catalogue["MeanOnlyGroupNorm"]
    assert ns.MeanOnlyGroupNorm is guide["MeanOnlyGroupNorm"]
    assert "MeanOnlyGroupNorm" in ns.catalogue.table().index
    for fused in (True, False):
        x, condition = draw(record.id)
        assert_follows(build(record.id, fused=fused), [x], condition, 1e-10)
    page = cards.card(record, tmp_path)
    assert r"\mu_{ng}" in page and "a divisor of C" in page and "| input shift | yes |" in page


@pytest.mark.parametrize("page", ["README.md", "book/index.md"])
def test_the_first_code_that_a_reader_sees_runs(page, capsys):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.BatchNorm2d(64))
    namespace = {"model": model}
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S):
        exec(compile(block, page, "exec"), namespace)
    assert isinstance(namespace["model"][1], ns.GroupNorm)
    assert isinstance(namespace["layer"], ns.Norm)


def test_every_method_cites_a_paper_of_the_bibliography():
    entries = re.findall(r"^@\w+\{([^,]+),", (BOOK / "references.bib").read_text(), re.M)
    assert len(entries) == len(set(entries))
    missing = {m.id: m.cite for m in ns.catalogue.values() if m.cite not in entries}
    assert not missing, f"add these to book/references.bib: {missing}"


def test_keys_of_the_bibliography_follow_the_rule():
    text = (BOOK / "references.bib").read_text()
    for entry in re.split(r"^@\w+\{", text, flags=re.M)[1:]:
        key = entry.split(",")[0]
        year = re.search(r"year\s*=\s*\{(\d{4})\}", entry).group(1)
        title = re.search(r"title\s*=\s*\{(.+?)\},?\s*(?:\n|year)", entry, re.S).group(1)
        words = [re.sub(r"[^a-z0-9]", "", word) for word in re.split(r"[\s-]", title.lower())]
        first = next(word for word in words if word not in ("a", "an", "the", "on"))
        assert re.fullmatch(rf"[a-z]+{year}{first}", key), f"{key}: author, year, first word of {title!r}"


def test_the_introductions_link_only_to_chapters_that_exist():
    for page in BOOK.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+\.(?:ipynb|md))(?:#[\w-]+)?\)", page.read_text()):
            if not target.startswith("cards/"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
            else:
                assert target[6:-3] in ns.catalogue, f"{page.name} links to the card of {target}"


def test_every_part_introduction_links_to_every_chapter_of_its_part():
    for part in ("1_taxonomy", "2_theory", "3_applications"):
        text = (BOOK / f"{part}.md").read_text()
        for chapter in (ROOT / "notebooks" / part).glob("*.ipynb"):
            assert f"notebooks/{part}/{chapter.name}" in text, f"{part}.md does not lead to {chapter.name}"


def notebook(folder, name, results):
    """A chapter with these claim results in its outputs, in a book whose contents list it."""
    from book_sources import CLAIM

    output = [{"output_type": "display_data", "metadata": {}, "data": {CLAIM: r}} for r in results]
    cells = [
        {"cell_type": "markdown", "source": "# A title\n\nTakes 5 to 8 minutes."},
        {"cell_type": "code", "source": "", "outputs": output},
    ]
    path = folder / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells}))
    (folder / "_toc.yml").write_text(f"root: book/index\nchapters: [{{file: notebooks/{name}}}]\n")


def test_chapters_are_read_with_their_results(tmp_path):
    from book_sources import chapters, measured

    result = {"id": "X1", "criterion": "< 1", "measured": {"a": 0.5}, "verdict": "holds"}
    notebook(tmp_path, "2_theory/one", [result])
    (chapter,) = chapters(tmp_path)
    assert (chapter.title, chapter.part, chapter.minutes) == ("A title", "2_theory", "5 to 8 minutes")
    assert measured([chapter], {"X1": None}) == {"X1": (chapter, result)}


@pytest.mark.parametrize("found, registered, message", [
    ([], ["X1"], "no executed chapter checks: X1"),
    (["X1"], [], "not registered: X1"),
    (["X1", "X1"], ["X1"], "checked twice"),
])  # fmt: skip
def test_a_claim_and_its_measurement_must_match_one_to_one(tmp_path, found, registered, message):
    from book_sources import chapters, measured

    notebook(tmp_path, "2_theory/one", [{"id": i, "verdict": "holds"} for i in found])
    with pytest.raises(ValueError, match=message):
        measured(chapters(tmp_path), dict.fromkeys(registered))


def test_measured_values_are_told_in_few_words():
    from book_sources import number, values

    told = {1.23456e-12: "1.2e-12", 0.0123: "0.0123", 3.0: "3", 1234.5: "1234", 2.5e6: "2.5e6", "x": "x"}
    assert {v: number(v) for v in told} == told
    assert values(0.5) == values({"": 0.5}) == "0.5"
    assert values({"BN": 1.0, "LN": 2e-16}) == "BN: 1, LN: 2.0e-16"
    assert values({str(k): k / 10 for k in range(6)}) == "0 to 0.5, 6 values"


def test_every_method_that_the_book_promises_is_in_the_catalogue():
    """The map's directive is the one list of them: 85 methods that normalize activations."""
    from book_sources import promised_ids

    promised = promised_ids(ROOT)
    assert len(promised) == 85
    assert set(promised) <= set(ns.catalogue)
    activations = {m.id for m in ns.catalogue.values() if m.kind not in ("weight", "gradient")}
    assert activations == set(promised)  # and nothing is in the catalogue that the map does not know
