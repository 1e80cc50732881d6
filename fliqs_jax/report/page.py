"""The skeleton, the head and the looks of every report page."""

import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from fliqs_jax.files import replace_text
from fliqs_jax.report import style

REPORT_NAME = "report.html"

# Colours of plots are variables (see style.to_svg): one page serves light, dark, paper.
CSS = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --card: #f5f7f9; --ink: #1f2429; --muted: #5f6b7a; --grid: #dde2e7;
  --shade: #8a95a3; --blue: #0072b2; --orange: #d55e00; --green: #009e73;
  --purple: #b8679a; --good: #00795a; --bad: #b84500;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #14181d; --card: #1c2229; --ink: #e6eaee; --muted: #9aa6b3;
    --grid: #313a44; --shade: #73808e; --blue: #52aee6; --orange: #ff8f4a;
    --green: #35c79c; --purple: #e59cc6; --good: #35c79c; --bad: #ff8f4a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans",
        sans-serif;
}
main { max-width: 1040px; margin: 0 auto; padding: 40px 28px 64px; }
.kicker { color: var(--muted); font-size: 14px; margin: 0 0 6px; }
h1 { font-size: 30px; line-height: 1.25; font-weight: 650; margin: 0 0 12px;
     letter-spacing: -0.01em; text-wrap: balance; }
h2 { font-size: 21px; margin: 52px 0 6px; font-weight: 650; }
p { max-width: 74ch; margin: 6px 0 12px; }
.lead { font-size: 17px; }
.note { color: var(--muted); font-size: 14px; }
.warning { border-left: 4px solid var(--bad); background: var(--card);
           padding: 10px 14px; border-radius: 0 6px 6px 0; }
.tiles { display: grid; gap: 12px; margin: 24px 0 8px;
         grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); }
.tile { background: var(--card); border-radius: 10px; padding: 14px 16px 12px; }
.tile .name { color: var(--muted); font-size: 13px; }
.tile .value { font-size: 23px; font-weight: 650; line-height: 1.4; white-space: nowrap;
               font-variant-numeric: tabular-nums; }
.tile .remark { color: var(--muted); font-size: 13px; line-height: 1.35;
  overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); }
figure { margin: 16px 0 4px; overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 700px; height: auto; }
figure svg text { font-family: inherit !important; }
figcaption { color: var(--muted); font-size: 14px; max-width: 86ch; margin-top: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px;
        font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--muted); font-weight: 500; white-space: nowrap;
     border-bottom: 1px solid var(--shade); padding: 6px 14px 6px 0; }
td { border-bottom: 1px solid var(--grid); padding: 5px 14px 5px 0;
     vertical-align: top; white-space: nowrap; }
th.number, td.number { text-align: right; padding-right: 26px; }
tr.own td { font-weight: 650; }
tfoot td { color: var(--muted); border-bottom: none; }
.bar { display: inline-block; width: 90px; height: 9px; border-radius: 2px;
       background: var(--grid); margin-left: 10px; overflow: hidden; }
.bar span { display: block; height: 100%; background: var(--blue); }
code, pre { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas,
            "DejaVu Sans Mono", monospace; }
td.value { white-space: normal; overflow-wrap: anywhere; }
pre { background: var(--card); border-radius: 8px; padding: 14px 16px; overflow-x: auto;
      white-space: pre-wrap; overflow-wrap: anywhere; }
@media print {
  :root { color-scheme: light; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  main { max-width: none; padding: 0; }
  body { font-size: 13px; orphans: 3; widows: 3; }
  table, td code { font-size: 10.5px; }
  th, td { padding-right: 8px; }
  th.number, td.number { padding-right: 12px; }
  .bar { width: 48px; margin-left: 6px; }
  tfoot { display: table-row-group; }  /* once, not on every sheet */
  .tiles { grid-template-columns: repeat(auto-fit, minmax(118px, 1fr)); }
  .tile { padding: 10px 10px 8px; }
  .tile .value { font-size: 19px; }
  figure svg { min-width: 0; max-height: 225mm; }
  figure, p, .tile, tr { break-inside: avoid; }
  h2, h2 + p { break-after: avoid; }
}
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

Tile = tuple[str, str, str, str]  # name, value, remark, mood: "good", "bad" or ""


def document(title: str, body: Sequence[str]) -> str:
    """Returns a whole page; the title is text, the body's parts are HTML."""
    return PAGE.format(title=escape(title), css=CSS, body="\n".join(body))


def opening(
    kicker: str, title: str, lead: str | None = None, tiles: Sequence[Tile] = ()
) -> str:
    """Returns the head of a page: what it is, its result in a sentence, key numbers.

    Args:
      kicker: the small line above, as text like all else.
      title: the result.
      lead: what it means; None is nothing.
      tiles: the key numbers.
    """
    unbroken = re.sub(r"(\d) (%|[kMG]\b)", "\\1\N{NO-BREAK SPACE}\\2", title)
    parts = [f'<p class="kicker">{escape(kicker)}</p>', f"<h1>{escape(unbroken)}</h1>"]
    if lead is not None:
        parts.append(f'<p class="lead">{escape(lead)}</p>')
    if tiles:
        shown = "".join(
            f'<div class="tile"><div class="name">{escape(name)}</div>\n'
            f'<div class="value">{escape(value)}</div>'
            f'<div class="remark {mood}">{escape(remark)}</div></div>\n'
            for name, value, remark, mood in tiles
        )
        parts.append(f'<div class="tiles">{shown}</div>')
    return "\n".join(parts)


def figure(
    plot: "matplotlib.figure.Figure", name: str, label: str, caption: str
) -> str:
    """Returns a figure of the page.

    Args:
      plot: as drawn by this package.
      name: short and unique on the page.
      label: what it shows, for those who cannot see it.
      caption: below it, HTML.
    """
    return (
        f'<figure role="img" aria-label="{escape(label)}">\n'
        f"{style.to_svg(plot, name)}\n<figcaption>{caption}</figcaption>\n</figure>\n"
    )


def section(name: str, title: str, *parts: str) -> str:
    """Returns a section of the page, its parts (HTML) one under the other."""
    body = "\n".join(parts)
    return f'<section id="{name}">\n<h2>{escape(title)}</h2>\n{body}\n</section>\n'


def table(
    columns: Mapping[str, str],
    rows: Iterable[Sequence[str]],
    *,
    foot: Sequence[str] = (),
    marked: int | None = None,
) -> str:
    """Returns a table whose cells are HTML.

    Args:
      columns: the kind of each by its heading: "number", "value" (long text), "".
      rows: of a cell a column.
      foot: the cells of a row below them.
      marked: number of the row that stands out.
    """
    kinds = [f' class="{kind}"' if kind else "" for kind in columns.values()]

    def line(tag: str, cells: Iterable[str], mark: str = "") -> str:
        pairs = zip(kinds, cells, strict=True)
        inside = "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in pairs)
        return f"<tr{mark}>{inside}</tr>"

    body = "".join(
        line("td", cells, ' class="own"' if number == marked else "")
        for number, cells in enumerate(rows)
    )
    below = f"<tfoot>{line('td', foot)}</tfoot>" if foot else ""
    return (
        f'<div class="scroll"><table><thead>{line("th", columns)}</thead>'
        f"<tbody>{body}</tbody>{below}</table></div>"
    )


def code(text: str) -> str:
    """Returns a name as the page writes it."""
    return f"<code>{escape(text)}</code>"


def bar(part: float | int, whole: float | int) -> str:
    """Returns a bar that is filled as far as the part is of the whole."""
    width = f"{100 * part / whole:.1f}%"
    return f'<span class="bar"><span style="width:{width}"></span></span>'


def write(workdir: pathlib.Path, title: str, body: Sequence[str]) -> pathlib.Path:
    """Writes a page into a run's folder and returns the file's path."""
    file = workdir / REPORT_NAME
    replace_text(file, document(title, body))
    return file
