"""The look of a report, light and dark, from a telephone's width upwards."""

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --ink: #1b2026; --soft: #5c6773; --rule: #e3e7eb; --paper: #fbfbfa; --card: #fff;
  --accent: #2563c9; --good: #1c7c54;
  --c0: #2563c9; --c1: #d9772b; --c2: #1c8a6b; --c3: #b8396b; --c4: #7a5cc4; --c5: #80868d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaee; --soft: #9aa5b1; --rule: #2c333b; --paper: #14171b;
  --card: #1b2026; --accent: #79a8f5; --good: #58c295;
  --c0: #79a8f5; --c1: #f0a35e; --c2: #58c7a3; --c3: #ee7fa8; --c4: #b39bf0; --c5: #a0a7af; } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink); background: var(--paper);
  max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.15; margin: 0 0 .2rem; overflow-wrap: anywhere; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
h3 { font-size: .95rem; margin: 0 0 .5rem; } * + h3 { margin-top: 1.2rem; }
p { margin: .3rem 0 .8rem; } .soft, figcaption, .note { color: var(--soft); font-size: .875rem; }
.note { max-width: 44rem; } figure { margin: 0; min-width: 0; } figcaption { margin-top: .35rem; line-height: 1.4; }
img, svg { display: block; width: 100%; height: auto; } img { image-rendering: pixelated; border-radius: 4px; }
svg { overflow: visible; } svg text { font-size: 11px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.rule { stroke: var(--rule); stroke-width: 1; }
.line, .faint { fill: none; stroke: var(--accent); stroke-width: 1.8; stroke-linejoin: round; }
.faint { stroke-width: 1; opacity: .28; } .area { fill-opacity: .14; stroke-width: 1.6; }
.c0 { --own: var(--c0); } .c1 { --own: var(--c1); } .c2 { --own: var(--c2); } .c3 { --own: var(--c3); }
.c4 { --own: var(--c4); } .c5 { --own: var(--c5); } .line, .area { stroke: var(--own); } .area { fill: var(--own); }
.key { list-style: none; margin: .4rem 0; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem;
  font-size: .875rem; }
.key li::before { content: ""; display: inline-block; width: .7rem; height: .7rem; border-radius: 2px;
  margin-right: .4rem;
  background: var(--own); }
.row { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.cards { display: grid; gap: 1.2rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.pair { display: grid; gap: 1rem; grid-template-columns: repeat(2, minmax(0, 24rem)); }
.film { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 23.5rem)); }
.strip { display: grid; gap: .7rem; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); max-width: 49rem; }
.wide { max-width: 49rem; } .plot { max-width: 34rem; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 1rem 1.1rem; }
.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1rem;
  margin: .8rem 0 0; font-size: .9rem; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
header { display: grid; gap: 1.5rem 2.5rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.big { font-size: 2.6rem; line-height: 1.1; font-weight: 650; font-variant-numeric: tabular-nums; }
.arrow { color: var(--good); font-weight: 600; } .big .arrow { font-size: 1.7rem; }
.bars { display: grid; grid-template-columns: max-content minmax(0, 1fr) max-content; gap: .35rem .7rem;
  align-items: center;
  font-size: .875rem; margin: .7rem 0; font-variant-numeric: tabular-nums; }
.bar { display: block; height: .7rem; border-radius: 3px; background: var(--accent);
  } .bar.other { background: var(--c5); }
.score { display: grid; grid-template-columns: minmax(0, 1fr) max-content; gap: 0 1rem; padding: .5rem 0;
  border-top: 1px solid var(--rule); } .score:first-of-type { border-top: 0; }
.score .value { text-align: right; font-variant-numeric: tabular-nums; } .score .soft { line-height: 1.4; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; } .scroll { overflow-x: auto; }
td, th { padding: .35rem .7rem .35rem 0; text-align: left; vertical-align: top; border-top: 1px solid var(--rule); }
table .soft { font-size: .78rem; white-space: nowrap; }
th { color: var(--soft); font-weight: 500; border-top: 0; white-space: nowrap; }
td.number, th.number { text-align: right; padding: .35rem 0 .35rem .7rem; font-variant-numeric: tabular-nums; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--accent); } details > .row { margin-top: 1rem; }
pre, code { font: .8125rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
.live { display: inline-block; padding: .1rem .6rem; border-radius: 1rem; background: var(--accent);
  color: var(--card);
  font-size: .8rem; }
.meter { height: .55rem; border-radius: .3rem; background: var(--rule); margin: .6rem 0; overflow: hidden; }
"""
