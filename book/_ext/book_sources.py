"""What the pages are computed from: the chapters as executed, the catalogue, and the claims."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

CLAIM = "application/vnd.normsurvey.claim+json"


@dataclass
class Chapter:
    """One notebook: where it is, what it is called, and what its claims measured."""

    path: str  # notebooks/1_taxonomy/why_normalize
    title: str
    minutes: str = ""
    results: list[dict] = field(default_factory=list)

    @property
    def part(self) -> str:
        return self.path.split("/")[1]


def read_chapter(root: Path, path: str) -> Chapter:
    """Read title, reading time and claim results from an executed notebook."""
    cells = json.loads((root / f"{path}.ipynb").read_text(encoding="utf-8"))["cells"]
    prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    title = re.search(r"^# (.+)$", prose, re.M)
    minutes = re.search(r"(\d+)(?:\s*(?:-|to|–)\s*(\d+))?\s+minutes", prose)
    outputs = [o for c in cells for o in c.get("outputs", ()) if CLAIM in o.get("data", {})]
    results = [o["data"][CLAIM] for o in outputs]
    results = [json.loads("".join(r)) if isinstance(r, str | list) else r for r in results]
    return Chapter(path, title.group(1).strip(), minutes.group(0) if minutes else "", results)


def chapters(root: Path) -> list[Chapter]:
    """All chapters in the order of the table of contents."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    files: list[str] = []

    def walk(node: object) -> None:
        if isinstance(node, dict):
            if str(node.get("file", "")).startswith("notebooks/"):
                files.append(node["file"].removesuffix(".ipynb"))
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(toc)
    return [read_chapter(root, f) for f in files]


def measured(chapters: list[Chapter], claims: dict) -> dict[str, tuple[Chapter, dict]]:
    """Each claim's chapter and result; a claim without one, or a result without a claim, is an error."""
    found: dict[str, tuple[Chapter, dict]] = {}
    for chapter in chapters:
        for result in chapter.results:
            if result["id"] in found:
                first = found[result["id"]][0].path
                raise ValueError(f"claim {result['id']} is checked twice: in {first} and in {chapter.path}")
            found[result["id"]] = chapter, result
    if missing := sorted(set(claims) - set(found)):
        raise ValueError(f"registered claims that no executed chapter checks: {', '.join(missing)}")
    if unknown := sorted(set(found) - set(claims)):
        raise ValueError(f"chapters check claims that are not registered: {', '.join(unknown)}")
    return found


def holds(result: dict) -> bool:
    """Whether a result's verdict is that the claim holds."""
    return result["verdict"] == "holds"


def number(x: object) -> str:
    """A measured value to three digits; powers of ten as such."""
    if isinstance(x, bool) or not isinstance(x, int | float):
        return str(x)
    if isinstance(x, int) or (float(x).is_integer() and abs(x) < 1e4):
        return f"{int(x)}"
    if x == x and 1e-3 <= abs(x) < 1e5:
        return f"{x:.3g}" if abs(x) < 1e3 else f"{x:.0f}"
    mantissa, _, exponent = f"{x:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def values(measured: object, most: int = 4) -> str:
    """Measured values in a few words: each one if there are few, else their range and number."""
    items = measured if isinstance(measured, dict) else None
    flat = list(items.values()) if items else measured if isinstance(measured, list) else [measured]
    while any(isinstance(v, list) for v in flat):
        flat = [w for v in flat for w in (v if isinstance(v, list) else [v])]
    if items and len(items) <= most and not any(isinstance(v, list) for v in items.values()):
        return ", ".join(f"{k}: {number(v)}".removeprefix(": ") for k, v in items.items())
    if len(flat) <= most:
        return ", ".join(number(v) for v in flat)
    numbers = [v for v in flat if isinstance(v, int | float)]
    span = f"{number(min(numbers))} to {number(max(numbers))}, " if numbers else ""
    return f"{span}{len(flat)} values"


def promised(lines: list[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Titles and promised methods by section of the list, from lines ``section title: id id ...``."""
    titles, sections = {}, {}
    for line in lines:
        section, words = line.split(" ", 1)
        titles[section], _, ids = words.partition(":")
        sections[section] = ids.split()
    return titles, sections


def promised_ids(root: Path) -> list[str]:
    """Every method that the book promises: the ids in the directive of the map, the one place that lists them."""
    body = re.search(r"```\{listmap\}\n(.*?)```", (root / "book/map.md").read_text(encoding="utf-8"), re.S)[1]
    return sorted({i for ids in promised(body.splitlines())[1].values() for i in ids})
