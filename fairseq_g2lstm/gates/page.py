"""The report as one HTML page that needs nothing else: its style, script and numbers stand in it."""

import json
from importlib import resources
from typing import Any

_SCRIPT = ("dom.js", "charts.js", "tables.js", "sentences.js", "report.js")  # one after another


def render(report: dict[str, Any]) -> str:
    """The page of what `report.as_json` returned.

    Whatever text the report holds stays text: no `<` of it reaches the page, where `</script>` would end its data.
    """
    folder = resources.files(__package__) / "template"
    template, style, *script = (
        (folder / name).read_text(encoding="utf-8") for name in ("report.html", "report.css", *_SCRIPT)
    )
    data = json.dumps(report, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    # the data last, since they may hold a placeholder's name
    page = template.replace("{{style}}", style).replace("{{script}}", "\n".join(script))
    return page.replace("{{data}}", data)
