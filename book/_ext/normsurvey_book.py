"""Sphinx extension of the book: pages and counts computed from the package and the executed chapters.

Directives ``catalogue``, ``scorecard``, ``listmap``, ``chapters``, ``course``, ``curvature_costs``, ``gpurun``,
``clone``, ``install``; role ``count``.
"""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.nodes import make_refnode

import book_sources as sources  # isort: skip

# Names of other libraries in signatures and docstrings: shown, not linked.
FOREIGN = r"(torch|nn|np|numpy|pandas|pd|matplotlib|scipy|collections|pathlib|inspect|typing)\..*"
UNDOCUMENTED = r"Tensor|Any|KINDS|INVARIANCES"


@cache
def survey():
    """The package, imported once."""
    import normsurvey

    return normsurvey


class Computed(SphinxDirective):
    """A directive that writes Markdown from computed facts and has it parsed in place."""

    has_content = False

    @property
    def root(self) -> Path:
        return Path(self.env.srcdir)

    @property
    def repository(self) -> str:
        return self.config.html_theme_options["repository_url"].rstrip("/")

    @property
    def branch(self) -> str:
        return self.config.html_theme_options.get("repository_branch") or "main"

    def link(self, text: str, docname: str, suffix: str) -> str:
        here = Path(self.env.docname).parent
        return f"[{text}]({os.path.relpath(docname, here)}{suffix})"

    def page(self, chapter: sources.Chapter, text: str | None = None) -> str:
        return self.link(text or chapter.title, chapter.path, ".ipynb")

    def card(self, method_id: str) -> str:
        return self.link(method_id, f"book/cards/{method_id}", ".md")

    def parse(self, lines: list[str], *classes: str) -> list[nodes.Node]:
        """Parse Markdown into a container with the given classes; the page is read anew in every build."""
        self.env.note_reread()
        box = nodes.container(classes=list(classes))
        self.state.nested_parse(StringList(lines, self.env.docname), self.content_offset, box)
        return [box]

    def table(self, head: list[str], rows: list[list[str]], *classes: str) -> list[nodes.Node]:
        """A table that scrolls inside its box, so that a narrow page does not."""
        line = "| {} |".format
        lines = [line(" | ".join(head)), line(" | ".join("---" for _ in head))]
        lines += [line(" | ".join(c.replace("|", "\\|").replace("\n", " ") for c in row)) for row in rows]
        return self.parse(lines, "scroll-box", *classes)


def code(text: str) -> str:
    return f"`{text}`" if text and text != "none" else "–"


class Catalogue(Computed):
    """Every registered method with its parts, as a table that can be filtered."""

    def run(self) -> list[nodes.Node]:
        rows = []
        for m in sorted(survey().catalogue.values(), key=lambda m: (section_key(m.list_section), m.year, m.id)):
            parts = [pattern(m.area), *map(brief, (m.operation, m.statistics, m.recovery))]
            name = f"{self.card(m.id)} [{m.title} · {m.kind}]{{.small}}"
            rows.append([name, *map(code, parts), str(m.year), f"{{cite:t}}`{m.cite}`"])
        head = ["method", "$\\Pi$", "$\\Phi$", "statistics", "$\\Psi$", "year", "paper"]
        return self.table(head, rows, "filterable", "catalogue")


def section_key(section: str) -> list[int]:
    """Sort key of a section number such as ``1.2.3``."""
    return [int(n) for n in re.findall(r"\d+", section)]


def pattern(area: str) -> str:
    """The sentence of an area without its wrapping: ``n (g c) ... -> n g, g=2``."""
    found = re.fullmatch(r"Area\('([^']*)'(.*)\)", area)
    return found.group(1) + found.group(2) if found else area


def brief(part: str) -> str:
    """A part without its options, but with the word that selects its kind: ``Whiten('zca')``."""
    return re.sub(r"^(\w+)\((?:('\w+')[^()]*)?.*\)$", lambda m: m[1] + (f"({m[2]})" if m[2] else ""), part)


class Scorecard(Computed):
    """All claims of one part: statement, source, criterion, measured, verdict, chapter."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        claims = survey().claims
        found = sources.measured(sources.chapters(self.root), claims)
        rows = []
        for name, (chapter, result) in found.items():
            if chapter.part != self.arguments[0]:
                continue
            claim = claims[name]
            verdict = f"[{result['verdict']}]{{.{'holds' if sources.holds(result) else 'fails'}}}"
            said = f"[{name}]{{.claim-id}} {claim.statement} [{claim.source}]{{.small}}"
            measure = f"{sources.values(result['measured'])} [{claim.measures}]{{.small}}"
            criterion = re.sub(r"([<>=]+) ", "\\1\N{NO-BREAK SPACE}", result["criterion"])
            rows.append([said, f"`{criterion}`", measure, f"{verdict} {self.page(chapter)}"])
        head = ["claim and source", "criterion", "measured", "verdict"]
        return self.table(head, rows, "filterable", "scorecard")


class GpuRun(Computed):
    """What a stored run of chapters on a GPU met, met otherwise and missed; takes the name of the file in results/."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        stored = json.loads((self.root / "results" / self.arguments[0]).read_text())
        pages, rows = {c.path: c for c in sources.chapters(self.root)}, []
        for run in stored["runs"]:
            otherwise, missed = (self.told(run[kind], run["scale"]) for kind in ("otherwise", "missed"))
            missed += run["errors"] + ([] if run["finished"] else ["stopped before its end"])
            found = ("<br>".join(lines) or "–" for lines in (otherwise, missed))
            rows.append([self.page(pages[f"notebooks/{run['chapter']}"]), run["scale"], str(run["held"]), *found])
        where = "{what}: {device}, torch {torch}, {date}.".format(**stored)
        head = ["chapter", "scale", "met", "other outcome at this scale", "missed"]
        return [*self.table(head, rows), *self.parse([where], "small")]

    def told(self, found: dict[str, dict], scale: str) -> list[str]:
        claims = survey().claims
        return [
            f"[{name}]{{.claim-id}} `{claims[name].criterion(scale)}`: {sources.values(values)}"
            for name, values in found.items()
        ]


class ListMap(Computed):
    """Section of the public list, chapters that treat it, methods of the package.

    Each line of the body is a section, its title and, after a colon, the methods that the book promises for it.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        chapters = sources.chapters(self.root)
        text = {c.path: (self.root / f"{c.path}.ipynb").read_text(encoding="utf-8") for c in chapters}
        titles, sections = sources.promised(list(self.content))
        known = survey().catalogue
        if missing := sorted({i for ids in sections.values() for i in ids} - set(known)):
            raise self.error(f"promised in the body of the directive, and not in the catalogue: {missing}")
        for m in known.values():
            if not any(m.id in ids for ids in sections.values()):
                sections.setdefault(m.list_section, []).append(m.id)
        if untitled := sorted(set(sections) - set(titles)):
            raise self.error(f"title these sections of the list in the body of the directive: {untitled}")
        rows = []
        for section in sorted(sections, key=section_key):
            ids = sections[section]
            used = [c for c in chapters if any(re.search(rf"\b{i}\b", text[c.path]) for i in ids)]
            name = f"{section} [{titles[section]}]{{.small}}"
            rows.append([name, "; ".join(map(self.page, used)) or "–", ", ".join(map(self.card, ids))])
        head = ["section of the list", "chapters that use its methods", "methods"]
        return self.table(head, rows, "listmap")


class Costs(Computed):
    """Time and memory of every layer as the benchmark stored them, beside public implementations; takes the table.

    Option ``device``: which of the stored results is shown, "cpu" by default; public ones exist for that alone.
    """

    required_arguments = 1
    option_spec = {"device": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        device = self.options.get("device", "cpu")
        ours, peers = (self.stored(f"{n}_{device}.json") for n in ("layers", "peers"))
        known, rows = survey().catalogue, []
        for row in sorted(ours[self.arguments[0]], key=lambda row: row["both"]):
            name = row["name"]
            peer = peers and peers[self.arguments[0]].get(name)
            words = ", ".join(f"{k}={v}" for k, v in row["options"].items())
            cell = (self.card(name) if name in known else f"`{name}`") + (f" [{words}]{{.small}}" if words else "")
            other = [f"{peer['both']:.2f}", f"{peer['saved']:.2f}", peer["implementation"]] if peer else ["", "", ""]
            cells = [cell, f"{row['forward']:.2f}", f"{row['both']:.2f}", f"{row['saved']:.2f}"]
            rows.append(cells + other if peers else cells)
        head = ["layer", "forward", "forward + backward", "saved"]
        head += ["public: f + b", "saved", "public implementation"] if peers else []
        run = "{device}, torch {torch}, {date}".format
        shape = tuple(ours["shapes"][self.arguments[0]])
        theirs = f"; public implementations: {run(**peers)}" if peers else ""
        where = f"Ours: {run(**ours)}{theirs}. One thread, float32, shape {shape}."
        return [*self.table(head, rows, "filterable", "costs"), *self.parse([where], "small")]

    def stored(self, name: str) -> dict | None:
        path = self.root / "results" / name
        return json.loads(path.read_text()) if path.exists() else None


class CurvatureCosts(Computed):
    """Time of top eigenvalues and spectral density as the benchmark stored it, here and in other libraries."""

    def run(self) -> list[nodes.Node]:
        stored = json.loads((self.root / "results" / "curvature_cpu.json").read_text())
        rows = []
        for name, net in stored["networks"].items():
            for library, found in sorted(net["candidates"].items(), key=lambda item: item[1]["seconds"]):
                distance = f"{found['w1_over_range']:.1e}" if "w1_over_range" in found else "–"
                numbers = [f"{found['seconds']:.2f}", f"{found['ratio']:.2f}", f"{found['error']:.1e}", distance]
                rows.append([f"{name.upper()}, {net['parameters']} parameters", library, *numbers])
        head = ["network", "library", "seconds", "ratio", "worst of top ten", "W₁ / range"]
        versions = ", ".join(f"{name} {version}" for name, version in stored["versions"].items())
        where = f"One thread of a {stored['device'].upper()}, {stored['dtype']}, {versions}, {stored['date']}."
        return [*self.table(head, rows), *self.parse([where], "small")]


class Chapters(Computed):
    """The chapters, or those of a part, with what each measures; or their links to Colab."""

    option_spec = {"part": directives.unchanged, "colab": directives.flag}

    def run(self) -> list[nodes.Node]:
        lines = []
        for c in sources.chapters(self.root):
            if self.options.get("part", c.part) != c.part:
                continue
            if "colab" in self.options:
                base = self.repository.replace("https://github.com", "https://colab.research.google.com/github")
                lines.append(f"- [{c.title}]({base}/blob/{self.branch}/{c.path}.ipynb)")
                continue
            good = sum(map(sources.holds, c.results))
            verdicts = (good, "✓"), (len(c.results) - good, "✗")
            facts = [c.minutes, *(f"{n} {mark}" for n, mark in verdicts if n)]
            lines.append(f"- {self.page(c)} [{' · '.join(filter(None, facts))}]{{.small}}")
        return self.parse(lines, "chapter-list")


class Course(Computed):
    """A path through chapters, with its reading time; each line of the body is a chapter and what to do there."""

    has_content = True
    MINUTES = range(75, 106)

    def run(self) -> list[nodes.Node]:
        known = {c.path.removeprefix("notebooks/"): c for c in sources.chapters(self.root)}
        lines, total = [], 0
        for entry in self.content:
            name, _, words = entry.partition(": ")
            if name not in known:
                raise self.error(f"{name} is no chapter: choose one of {', '.join(known)}")
            minutes, _, words = words.partition(" ")
            total += int(minutes)
            lines.append(f"1. {self.page(known[name])} [{minutes} minutes]{{.small}}<br>{words}")
        if total not in self.MINUTES:
            raise self.error(f"the path takes {total} minutes: 90 are announced")
        return self.parse([*lines, "", f"[{total} minutes in all]{{.small}}"], "course")


class Clone(Computed):
    """Shell commands that start from a clone of the repository; its address is the configured one."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        lines = ["```bash", f"git clone {self.repository}", f"cd {self.repository.rsplit('/', 1)[-1]}"]
        return self.parse([*lines, *self.content, "```"])


class Install(Computed):
    """The command that installs the package from the configured address."""

    def run(self) -> list[nodes.Node]:
        command = f'pip install "normsurvey @ git+{self.repository}@{self.branch}"'
        return self.parse(["```bash", command, "```"])


class Count(SphinxRole):
    """A number counted at build time: ``methods``, ``chapters``, ``claims``, ``holds``, ``fails``."""

    def run(self) -> tuple[list[nodes.Node], list]:
        self.env.note_reread()
        chapters = sources.chapters(Path(self.env.srcdir))
        results = [r for c in chapters for r in c.results]
        good = sum(map(sources.holds, results))
        bad = len(results) - good
        facts = {
            "methods": len(survey().catalogue), "chapters": len(chapters), "claims": len(results),
            "holds": good, "fails": bad, "fails-verb": "does" if bad == 1 else "do",
        }  # fmt: skip
        fact = facts[self.text]
        return [nodes.inline(str(fact), str(fact), classes=["count"] if isinstance(fact, int) else [])], []


def offer_vectors(app: Sphinx, doctree: nodes.document) -> None:
    """Below each figure of a chapter, a link to the same figure as SVG."""
    docname = app.env.docname
    if not docname.startswith("notebooks/"):
        return
    pictures = [n for n in doctree.findall(nodes.container) if n.get("mime_type") == "image/png"]
    for number, picture in enumerate(pictures, start=1):
        target = f"/{docname}.figures/{number}.svg"
        if not (Path(app.srcdir) / target[1:]).exists():
            continue
        link = addnodes.download_reference("", "", reftarget=target, refdoc=docname, refdomain="", reftype="")
        link += nodes.literal("", "SVG", classes=["xref", "download"])
        bundle = picture.parent
        bundle.parent.insert(bundle.parent.index(bundle) + 1, nodes.paragraph("", "", link, classes=["vector"]))


def trim_card(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep the class docstring's later sections only on a card, whose page shows the earlier ones itself."""
    if what == "class" and app.env.docname.startswith("book/cards/"):
        later = re.compile(r"(Raises|Shape|Examples?|Attributes|Source):|>>>")
        lines[:] = lines[next((k for k, line in enumerate(lines) if later.match(line)), len(lines)) :]


def resolve_short(app: Sphinx, env, node: nodes.Element, content: nodes.Element) -> nodes.Element | None:
    """Let docstrings write our names as the code does: ``Area.mean`` finds ``normsurvey.Area.mean``."""
    if node.get("refdomain") != "py":
        return None
    domain, target = env.get_domain("py"), node["reftarget"].removeprefix("normsurvey.")
    page = node["refdoc"]
    card = page.rpartition("/")[2] if page.startswith("book/cards/") else "Norm"
    parts = (card, f"procedures.{card}", "Norm", "weights", "gradients", "procedures", "claims", "analysis")
    for home in ("normsurvey", *(f"normsurvey.{part}" for part in parts)):
        if found := domain.objects.get(f"{home}.{target}"):
            return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, content, target)
    return None


def add_static(app: Sphinx, config) -> None:
    """Make the book's own style and script part of every page, and let foreign names pass unlinked."""
    if "book/_static" not in config.html_static_path:
        config.html_static_path.append("book/_static")
    config.nitpick_ignore_regex = [*config.nitpick_ignore_regex, (r"py:.*", f"{FOREIGN}|{UNDOCUMENTED}")]
    # A claim's machine-readable output stands beside the Markdown that the page shows.
    config.suppress_warnings = [*config.suppress_warnings, "mystnb.unknown_mime_type"]
    config.html_logo = config.html_favicon = "book/_static/logo.svg"
    config.html_theme_options.setdefault("logo", {})["text"] = "normsurvey"
    config.autodoc_typehints = "none"
    config.autodoc_member_order = "bysource"
    config.napoleon_use_ivar = True


def setup(app: Sphinx) -> dict:
    """Register everything with Sphinx."""
    for name, directive in {
        "catalogue": Catalogue, "scorecard": Scorecard, "listmap": ListMap, "costs": Costs,
        "chapters": Chapters, "clone": Clone, "course": Course,
        "curvature_costs": CurvatureCosts, "gpurun": GpuRun, "install": Install,
    }.items():  # fmt: skip
        app.add_directive(name, directive)
    app.add_role("count", Count())
    app.connect("config-inited", add_static, priority=400)
    app.connect("missing-reference", resolve_short)
    app.connect("doctree-read", offer_vectors, priority=400)  # before Sphinx collects what can be downloaded
    app.connect("autodoc-process-docstring", trim_card, priority=400)
    app.add_css_file("normsurvey.css")
    app.add_js_file("filter.js", loading_method="defer")
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
