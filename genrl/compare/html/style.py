"""How the page of a comparison looks: colours for light, dark and print, and its style sheet."""

from __future__ import annotations

from collections.abc import Mapping

from genrl.compare.curves import COLOURS

LIGHT = {
    "paper": "#ffffff",
    "panel": "#f5f7f9",
    "ink": "#1a1f26",
    "muted": "#56606c",
    "rule": "#d7dde3",
    "accent": "#0b5c94",
    "grey": "#6b7580",
    "up": "#0072b2",
    "down": "#d55e00",
    **{f"colour{number}": colour for number, colour in enumerate(COLOURS)},
    "colour7": "#8a8000",  # yellow cannot be seen on white
}
DARK = {
    **LIGHT,
    "paper": "#13171c",
    "panel": "#1b2027",
    "ink": "#e7ebf0",
    "muted": "#a3adb8",
    "rule": "#323a43",
    "accent": "#7cc0f0",
    "grey": "#98a2ad",
    "up": "#3fa3e0",
    "down": "#f08a3c",
    "colour0": "#2f95d6",  # as far from black as the others
    "colour6": "#f2f4f6",  # black
    "colour7": COLOURS[7],
}


def sheet() -> str:
    """The style sheet. Print is always light."""
    coloured = "".join(f".colour{number}{{--mark:var(--colour{number})}}" for number in range(len(COLOURS)))
    return (
        f":root{{color-scheme:light;{_variables(LIGHT)}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{color-scheme:dark;{_variables(DARK)}}}}}"
        f"{coloured}.grey{{--mark:var(--grey)}}{RULES}"
    )


def _variables(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Liberation Sans",sans-serif}
header,main,footer{max-width:74rem;margin:0 auto;padding:0 clamp(1rem,4vw,2.5rem)}
header{padding-top:clamp(1.5rem,5vw,3rem)}
h1{font-size:clamp(1.7rem,5vw,2.4rem);line-height:1.15;letter-spacing:-.02em;margin:.2rem 0 .6rem;
 overflow-wrap:anywhere}
h2{font-size:1.35rem;line-height:1.25;letter-spacing:-.01em;margin:0 0 .8rem}
h3{font-size:1rem;margin:1.6rem 0 .5rem}
p,ul,dl{margin:.5rem 0 .9rem}
p,li{max-width:46rem}
a{color:var(--accent)}
a:focus-visible,summary:focus-visible,.scroll:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
small,.note,figcaption{font-size:.85rem;line-height:1.45;color:var(--muted)}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;font-size:.84em}
pre{background:var(--panel);border:1px solid var(--rule);border-radius:.5rem;padding:.8rem 1rem;margin:.5rem 0 1rem;
 white-space:pre-wrap;overflow-wrap:anywhere}
.command{display:block;font-size:1em;padding-left:1.5em;text-indent:-1.5em;margin:.15rem 0}
section{margin-top:2.6rem;padding-top:1.6rem;border-top:1px solid var(--rule);scroll-margin-top:1rem}
.above{color:var(--muted);font-size:.85rem;font-weight:600;letter-spacing:.08em;text-transform:uppercase;margin:0}
.state{display:inline-block;font-size:.85rem;border:1px solid var(--rule);border-radius:.4rem;padding:.15rem .6rem;
 margin:0}
.state.partial{border:2px solid var(--down);font-weight:600}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.9rem 1.6rem;margin:1.4rem 0}
.facts div{border-left:3px solid var(--rule);padding-left:.8rem}
.facts dt{font-size:.8rem;color:var(--muted)}
.facts dd{margin:0;font-weight:600;overflow-wrap:anywhere}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;list-style:none;padding:0;margin:0;font-size:.9rem}
nav a{text-decoration:none;display:inline-block;padding:.2rem 0}
nav a:hover{text-decoration:underline}
.lead{font-size:1.2rem;line-height:1.4;font-weight:600;max-width:50rem;margin-bottom:1.1rem}
.subtitle{font-size:1.05rem;color:var(--muted);margin:.2rem 0 1rem}
.beside{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,27rem);gap:1rem 3rem;align-items:start}
.verdict h3{margin:.2rem 0 .3rem;font-size:.95rem}
.verdict ul,.remarks{padding-left:1.3rem;margin:.2rem 0 .9rem}
.verdict li,.remarks li{margin:.2rem 0}
.sign{font-weight:700;font-style:normal;white-space:nowrap}
.higher{color:var(--up)}.lower{color:var(--down)}.unclear{color:var(--muted)}
.care{background:var(--panel);border-left:4px solid var(--down);border-radius:.3rem;padding:.8rem 1rem;
 margin:1.2rem 0}
.care h3{margin:0 0 .3rem}.care ul,.care details{margin:.2rem 0;font-size:.88rem}.care ul{padding-left:1.2rem}
 .care li{max-width:none}
.scroll{overflow-x:auto;margin:.6rem 0 .8rem;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;width:100%;font-size:.86rem;font-variant-numeric:tabular-nums lining-nums}
caption{position:sticky;left:0;max-width:calc(100vw - 2.5rem);
 text-align:left;font-weight:600;padding:.2rem 0 .5rem;font-size:1rem}
th,td{padding:.42rem .5rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--rule);white-space:nowrap}
thead th{font-size:.82rem;color:var(--muted);font-weight:600;vertical-align:bottom;
 border-bottom:2px solid var(--rule)}
th:first-child,td:first-child{text-align:left}
tbody th{font-weight:600}
th[scope=row]{position:sticky;left:0;background:var(--paper);z-index:1}
th[scope=rowgroup]{font-size:.8rem;color:var(--muted);font-weight:600;padding-top:.9rem;
 border-bottom-color:transparent}
td small{display:block;white-space:nowrap;font-size:.93em}
td strong{font-weight:800}
.reference th[scope=row],.reference td{color:var(--muted)}
.reference td strong{color:var(--ink)}
details{margin:.6rem 0}
summary{cursor:pointer;font-weight:600;padding:.35rem 0}
figure{margin:1rem 0}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,19.5rem),1fr));gap:1.4rem 1.8rem;
 margin:.8rem 0}
.panels.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,25rem),1fr))}
.panel{margin:0;min-width:0;max-width:30rem}
.panel figcaption{color:var(--ink);font-weight:600;font-size:.92rem;margin-bottom:.2rem}
.legend{display:flex;flex-wrap:wrap;gap:.25rem 1.3rem;list-style:none;padding:0;margin:.4rem 0;font-size:.9rem}
.legend li{display:flex;align-items:center;gap:.45rem;overflow-wrap:anywhere}
.swatch{flex:none;vertical-align:-.1em;margin-right:.45em;overflow:visible}
.legend .swatch{margin:0}
.figure{display:block;width:100%;height:auto;overflow:visible}
.figure text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Liberation Sans",sans-serif;
 fill:var(--ink);font-variant-numeric:tabular-nums}
.figure .tick,.figure .axis{fill:var(--muted);font-size:11.5px}
.grid{stroke:var(--rule)}
.zero{stroke:var(--ink);stroke-width:1.4}
.line{fill:none;stroke:var(--mark);stroke-width:2;stroke-linejoin:round}
.band{fill:var(--mark);opacity:.14}
.mark{fill:var(--mark);stroke:var(--paper);stroke-width:1}
.hollow{fill:var(--paper);stroke:var(--mark);stroke-width:1.8}
.leader{stroke:var(--muted);stroke-width:.8}
.bar{display:inline-block;vertical-align:middle;margin-left:.6rem}
.bar rect{fill:var(--grey);opacity:.55}
.example{border:1px solid var(--rule);border-radius:.5rem;padding:.8rem 1rem .2rem;margin:.8rem 0}
.example p{margin:.1rem 0;max-width:none}
.example td,.example tbody th{vertical-align:middle}
.example b{color:var(--muted);font-size:.8rem;font-weight:600;margin-right:.4rem}
.arrow{color:var(--muted);padding:0 .3rem}
.item{white-space:normal;min-width:10rem;font-weight:600}
.code{display:inline-block;min-width:2.2em;text-align:center;border:1px solid var(--rule);border-radius:.3rem;
 padding:0 .35em;background:var(--paper);color:var(--muted)}
.code.hit{color:var(--ink);border:2px solid var(--colour2);font-weight:700}
.code.hit::after{content:"✓";color:var(--colour2);margin-left:.25em}
td.push{text-align:center;--strength:0;print-color-adjust:exact;-webkit-print-color-adjust:exact}
td.push small{color:var(--ink)}
td.push.more{background:color-mix(in srgb,var(--up) calc(var(--strength)*45%),transparent)}
td.push.less{background:color-mix(in srgb,var(--down) calc(var(--strength)*45%),transparent)}
.origin{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1.2rem}
.origin dt{color:var(--muted)}.origin dd{margin:0;overflow-wrap:anywhere}
footer{margin-top:3rem;padding-bottom:3rem;color:var(--muted);font-size:.85rem}
@media (max-width:56rem){
 .beside{grid-template-columns:minmax(0,1fr)}
}
@media (max-width:40rem){
 body{font-size:15px}
 th,td{padding:.38rem .5rem}
 th[scope=row]{min-width:7.8rem;max-width:9.5rem;white-space:normal}
 .origin{grid-template-columns:1fr}
 .origin dd{margin-bottom:.4rem}
}
@media print{
 @page{margin:14mm}
 body{font-size:10pt}
 header,main,footer{max-width:none;padding:0}
 nav{display:none}
 section{margin-top:1.2rem;padding-top:.8rem}
 h2,h3,caption,figcaption,.legend,summary{break-after:avoid}
 .panel,.panels.wide,.example,.scroll,tr,pre,li{break-inside:avoid}
 thead{display:table-header-group}
 table{font-size:7.6pt}
 thead th,th[scope=rowgroup]{font-size:.95em}
 th,td{padding:.25rem .35rem}
 th[scope=row]{position:static}
 .scroll{overflow:visible}
 .item{min-width:0}
 .panels{grid-template-columns:repeat(3,1fr);gap:.8rem}
 .panels.wide{grid-template-columns:repeat(2,1fr)}
 .beside{grid-template-columns:minmax(0,1fr) 16rem;gap:1.5rem}
 details::details-content{content-visibility:visible;height:auto}
 a{color:inherit;text-decoration:none}
}
"""
