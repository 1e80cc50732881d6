"""The skeleton, the head and the looks of every report page."""

import re
from collections.abc import Sequence
from html import escape

# Colours of plots are variables (see style.to_svg): one page serves light, dark, paper.
CSS = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --card: #f5f7f9; --ink: #1f2429; --muted: #5f6b7a; --grid: #dde2e7;
  --shade: #8a95a3; --blue: #0072b2; --orange: #d55e00; --green: #009e73;
  --purple: #b8679a; --good: #00795a; --bad: #b84500;
}
@media (prefers-color-scheme: dark) {
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
  :root { color-scheme: light; --page: #fff; --card: #f5f7f9; --ink: #1f2429;
    --muted: #5f6b7a; --grid: #dde2e7; --shade: #8a95a3; --blue: #0072b2;
    --orange: #d55e00; --green: #009e73; --purple: #b8679a; --good: #00795a;
    --bad: #b84500; }
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

SECTION = """<section id="{name}">
<h2>{title}</h2>
{body}
</section>
"""

FIGURE = """<figure role="img" aria-label="{label}">
{svg}
<figcaption>{caption}</figcaption>
</figure>
"""

TILE = """<div class="tile"><div class="name">{name}</div>
<div class="value">{value}</div><div class="remark {mood}">{remark}</div></div>
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
            TILE.format(
                name=escape(name), value=escape(value), remark=escape(remark), mood=mood
            )
            for name, value, remark, mood in tiles
        )
        parts.append(f'<div class="tiles">{shown}</div>')
    return "\n".join(parts)
