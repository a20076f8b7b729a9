"""The page's style sheet: light and dark after the reader's system, from a phone to a wide screen."""

from __future__ import annotations

from weft.evaluation.report.drawing import DARK, LIGHT


def style_sheet() -> str:
    """The whole CSS: colours by role, classes for drawings, the page."""
    light = ";".join(f"--{role}:{code}" for role, code in LIGHT.items())
    dark = ";".join(f"--{role}:{code}" for role, code in DARK.items())
    paints = "".join(f".f-{role}{{fill:var(--{role})}}.s-{role}{{stroke:var(--{role})}}" for role in LIGHT)
    return (
        f":root{{color-scheme:light dark;{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{paints}"
        f".f-none{{fill:none}}{_PAGE}"
    )


_PAGE = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
 font:16px/1.55 Inter,"Segoe UI",Roboto,"Helvetica Neue",Helvetica,Arial,sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1128px;margin:0 auto;padding:0 24px 72px}
svg{display:block;width:100%;height:auto;font-family:inherit}
svg text{font-variant-numeric:tabular-nums}
.pixels{image-rendering:pixelated}
a{color:var(--blue)}
h1,h2{font-family:"Iowan Old Style","Palatino Linotype",Palatino,Charter,"Source Serif 4",Georgia,"Liberation Serif",serif;
 font-weight:600;letter-spacing:-.012em;text-wrap:balance;margin:0}
h1{font-size:clamp(1.85rem,4.4vw,3rem);line-height:1.13}
h2{font-size:clamp(1.4rem,2.6vw,1.8rem);line-height:1.2}
h3{font-size:1rem;margin:0 0 2px}
p{margin:0}
header{padding:40px 0 0}
.mast{display:flex;align-items:center;gap:12px;color:var(--muted);font-size:.875rem;margin-bottom:36px}
.mast svg{width:30px;height:30px;flex:none}
.mast b{color:var(--ink);font-size:1rem;letter-spacing:.01em}
.mast span:last-child{margin-left:auto}
.lead{display:grid;grid-template-columns:minmax(0,1.08fr) minmax(0,1fr);gap:28px 64px;align-items:start}
.lead p{margin-top:20px;color:var(--muted);max-width:34em}
.lead p strong{color:var(--ink);font-weight:600}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(148px,1fr));gap:0 28px;margin:44px 0 0;
 border-top:2px solid var(--ink)}
.facts div{padding:12px 0 14px;border-bottom:1px solid var(--line)}
.facts dt{color:var(--muted);font-size:.78rem}
.facts dd{margin:0;font-size:1.02rem;font-weight:600;overflow-wrap:anywhere}
.facts .long{grid-column:span 2}
section{margin-top:76px}
section>p{color:var(--muted);max-width:46em;margin-top:10px}
section>p strong,.note strong{color:var(--ink);font-weight:600}
.panel{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:26px 26px 22px;margin-top:24px}
.phone{display:none}
.grid{display:grid;gap:24px;margin-top:24px}
.curves{grid-template-columns:repeat(auto-fit,minmax(300px,1fr))}
.curves.even{grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr))}
.curves .panel{margin:0;padding:18px 18px 12px;display:flex;flex-direction:column}
.curves h3{margin-bottom:10px;line-height:1.35}
.curves h3 small{display:block;color:var(--muted);font-weight:400;font-size:.8rem}
.curves svg{margin-top:auto}
.cards{grid-template-columns:repeat(auto-fill,minmax(218px,1fr));gap:20px}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;overflow:hidden;margin:0;
 display:flex;flex-direction:column}
.card .shot{border-bottom:1px solid var(--line)}
.card.wrong{border-color:var(--orange);box-shadow:inset 0 -4px 0 var(--orange)}
.card figcaption{padding:12px 14px 14px;display:flex;flex-direction:column;gap:8px;flex:1;min-width:0}
.card .ask{font-weight:600;line-height:1.35}
.card dl{display:grid;grid-template-columns:auto minmax(0,1fr);gap:2px 12px;margin:0;font-size:.9rem}
.card dt{color:var(--muted)}
.card dd{margin:0;overflow-wrap:anywhere}
.mark{display:flex;justify-content:space-between;gap:8px;font-size:.8rem;margin-top:auto;color:var(--muted)}
.mark b{padding:1px 9px;border-radius:99px;white-space:nowrap;align-self:center}
.mark.right b{background:var(--greenwash);color:var(--green)}
.mark.wrong b{background:var(--orangewash);color:var(--orange)}
.key{display:flex;flex-wrap:wrap;gap:6px 22px;font-size:.85rem;color:var(--muted);margin-top:14px}
.key i{display:inline-block;width:22px;height:13px;border:2.5px solid;vertical-align:-2px;margin-right:8px;border-radius:1px}
.gazes{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:34px 40px}
.gaze{grid-column:span 2;min-width:0}
.gaze.short{grid-column:span 1}
.gaze .ask{line-height:1.4;margin-bottom:12px}
.gaze .ask span{color:var(--muted)}
.words{display:grid;grid-template-columns:repeat(auto-fill,136px);gap:16px}
.words figure{margin:0}
.words figcaption{display:flex;justify-content:space-between;gap:6px;align-items:baseline;margin-top:5px;
 font-size:.78rem;color:var(--muted)}
.words figcaption b{font-size:1rem;color:var(--ink);white-space:pre;overflow:hidden;text-overflow:ellipsis}
.words svg{border-radius:6px}
section>.proof{margin-top:20px;padding:14px 18px;border-radius:8px;background:var(--greenwash);color:var(--ink);
 font-size:.92rem;max-width:none}
details{margin-top:18px}
summary{cursor:pointer;color:var(--blue);font-weight:600;font-size:.95rem}
.scroll{overflow-x:auto;margin-top:12px}
table{border-collapse:collapse;width:100%;font-size:.88rem;white-space:nowrap}
th,td{padding:7px 12px;text-align:right;border-bottom:1px solid var(--line)}
th{color:var(--muted);font-weight:500;border-bottom:2px solid var(--ink)}
th:first-child,td:first-child{text-align:left;padding-left:0}
td small{color:var(--muted)}
tr.total td{font-weight:600;border-top:2px solid var(--ink)}
.method{columns:2;column-gap:56px;margin-top:22px}
.repeat{margin-top:26px}
.method b{color:var(--ink);font-weight:600}
.method div{break-inside:avoid;margin-bottom:20px}
.method p{color:var(--muted);font-size:.95rem}
code{font:.88em/1.5 ui-monospace,"SF Mono",Menlo,Consolas,"Liberation Mono",monospace;overflow-wrap:anywhere}
pre{background:var(--wash);padding:14px 16px;border-radius:8px;overflow-x:auto;margin:10px 0 0}
.empty{margin-top:24px;padding:20px;border:1px dashed var(--line);border-radius:10px;color:var(--muted)}
footer{margin-top:72px;padding-top:18px;border-top:1px solid var(--line);color:var(--muted);font-size:.85rem}
@media(max-width:820px){
 main{padding:0 16px 48px}
 header{padding-top:22px}
 .mast{margin-bottom:24px}
 .lead{grid-template-columns:minmax(0,1fr)}
 .gaze.short{grid-column:span 2}
 .wide{display:none}.phone{display:block}
 .panel{padding:18px 16px}
 .method{columns:1}
 section{margin-top:56px}
 .facts{grid-template-columns:repeat(2,minmax(0,1fr));gap:0 20px}
}
@media(max-width:520px){
 .cards{grid-template-columns:repeat(2,minmax(0,1fr));gap:12px}
 .card figcaption{padding:10px}
 .card dl{grid-template-columns:minmax(0,1fr);gap:0}
 .card dt{font-size:.75rem}
 .mark{flex-direction:column}.mark b{align-self:flex-start}
 .words{grid-template-columns:repeat(3,minmax(0,1fr));gap:12px}
 .words figcaption span{display:none}
}
@media print{section{break-inside:avoid-page}.cards{grid-template-columns:repeat(4,1fr)}}
"""
