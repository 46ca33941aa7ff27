"""Self-contained HTML page, without other files, network or scripts."""

import base64
import html
import struct
from collections.abc import Sequence

from reports.style import DARK, LIGHT, Picture

_STYLE = f"""
:root {{
  color-scheme: light dark;
  --surface: {LIGHT.surface}; --ink: {LIGHT.ink}; --muted: {LIGHT.muted}; --line: {LIGHT.grid};
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --surface: {DARK.surface}; --ink: {DARK.ink}; --muted: {DARK.muted}; --line: {DARK.grid};
  }}
}}
body {{
  margin: 0 auto; padding: 1.5rem; max-width: 72rem;
  background: var(--surface); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
}}
h1 {{ font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }}
h2 {{
  font-size: 1.3rem; margin: 2.2rem 0 .8rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line);
}}
h4 {{ margin: 0 0 .3rem; }}
p, figcaption {{ max-width: 46rem; }}
.lead, figcaption, .missing {{ color: var(--muted); }}
.lead {{ margin: 0; }}
figure {{ margin: 0; }}
figure.wide {{ grid-column: 1 / -1; }}
figure img {{ display: block; max-width: 100%; height: auto; }}
figcaption {{ font-size: .875rem; margin-top: .4rem; }}
.pictures {{
  display: grid; gap: 1.8rem 1.5rem; align-items: start; margin-bottom: 1.8rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
}}
.pictures.one {{ grid-template-columns: 1fr; }}
.pictures.three {{ grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }}
.config {{
  display: grid; gap: 1.2rem 2rem; align-items: start; margin-top: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr));
}}
.scroll {{ overflow-x: auto; margin-bottom: 1.2rem; }}
table {{ border-collapse: collapse; font-size: .9rem; }}
th, td {{ padding: .25rem 1.4rem .25rem 0; text-align: left; vertical-align: top; }}
th[scope=row] {{ font-weight: 400; color: var(--muted); }}
tbody tr {{ border-top: 1px solid var(--line); }}
.numbers td, .numbers thead th {{ text-align: right; font-variant-numeric: tabular-nums; }}
.numbers td:last-child, .numbers thead th:last-child {{ padding-right: .2rem; }}
.written td, .written th[scope=row] {{
  font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .8rem;
  color: var(--ink); white-space: pre-wrap; overflow-wrap: break-word; min-width: 4ch;
}}
summary {{ cursor: pointer; }}
"""


def page(title: str, lead: str, body: str) -> str:
    """Return a complete page: a title, a line below it, and a body in HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{html.escape(title)}</h1>\n<p class="lead">{html.escape(lead)}</p>\n'
        f"{body}\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Return a section, or an empty string if all its parts are empty."""
    content = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{content}\n</section>\n" if content else ""


def pictures(shown: Sequence[Picture], *, columns: int = 2) -> str:
    """Return pictures in at most 3 columns, fewer in narrow windows."""
    if not shown:
        return ""
    kind = ("pictures one", "pictures", "pictures three")[min(columns, 3) - 1]
    return f'<div class="{kind}">\n' + "\n".join(_figure(each) for each in shown) + "\n</div>"


def folded(summary: str, content: str) -> str:
    """Return content that a click expands."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>\n"


def notes(sentences: Sequence[str]) -> str:
    """Return a list of sentences, or an empty string."""
    items = "".join(f"<li>{html.escape(each)}</li>" for each in sentences)
    return f'<ul class="missing">{items}</ul>' if items else ""


def _figure(each: Picture) -> str:
    title, caption = html.escape(each.title), html.escape(each.caption)
    # The PNG's header holds width and height; each page pixel spans two of its pixels.
    width, height = (n // 2 for n in struct.unpack(">II", each.light[16:24]))
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{_data(each.dark)}">'
    kind = ' class="wide"' if width > 800 else ""
    return (
        f"<figure{kind}><picture>{dark}"
        f'<img src="{_data(each.light)}" alt="{title}" width="{width}" height="{height}"></picture>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
