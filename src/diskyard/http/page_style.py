"""The style of the API's page: light and dark, wide and narrow, without anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --ink: #1c2024; --faint: #60646c; --line: #e1e4e8; --panel: #f6f7f9;
  --accent: #0b5cad; --read: #1d7a46; --write: #9a5b00; --admin: #a3263c; --get: #0b5cad;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171a; --ink: #e3e6ea; --faint: #9aa2ad; --line: #2c3238; --panel: #1d2125;
    --accent: #7cb7ff; --read: #6fcf97; --write: #f0b25c; --admin: #ff8b9d; --get: #7cb7ff;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font-size: .875em; background: var(--panel); padding: .1em .3em; border-radius: 4px; }
pre {
  margin: .5rem 0; padding: .75rem 1rem; overflow-x: auto; background: var(--panel);
  border: 1px solid var(--line); border-radius: 8px; font-size: .8125rem; line-height: 1.5;
}
pre code { font-size: inherit; padding: 0; background: none; }
.frame { display: grid; grid-template-columns: 17rem minmax(0, 1fr); }
nav {
  position: sticky; top: 0; align-self: start; height: 100vh; overflow-y: auto;
  padding: 1.5rem 1rem 3rem 1.5rem; border-right: 1px solid var(--line); font-size: .875rem;
}
nav strong { font-size: 1.125rem; }
nav h2 {
  margin: 1.25rem 0 .25rem; font-size: .75rem; letter-spacing: .06em; text-transform: uppercase;
  color: var(--faint);
}
nav ul { margin: 0; padding: 0; list-style: none; }
nav li a { display: block; padding: .125rem 0; overflow-wrap: anywhere; }
main { padding: 1.5rem 3rem 6rem; max-width: 66rem; }
h1 { margin: 0 0 .25rem; font-size: 1.875rem; line-height: 1.2; }
main > h2 { margin: 3rem 0 .25rem; font-size: 1.5rem; text-transform: capitalize; }
section { padding: 1.75rem 0 1rem; border-top: 1px solid var(--line); margin-top: 1.5rem; }
section h3 { margin: 0; font-size: 1.25rem; }
section h4 { margin: 1.25rem 0 .25rem; font-size: .9375rem; }
.faint { color: var(--faint); }
.where { margin: .25rem 0 .5rem; font-size: .875rem; color: var(--faint); }
.scope {
  margin-left: .5rem; padding: .1rem .5rem; border: 1px solid currentColor; border-radius: 1rem;
  font-size: .75rem; font-weight: 600; vertical-align: .15em; white-space: nowrap;
}
.read { color: var(--read); } .write { color: var(--write); }
.admin { color: var(--admin); } .none { color: var(--faint); }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .875rem; }
th, td { padding: .4rem .75rem .4rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { color: var(--faint); font-weight: 500; }
td:first-child { white-space: nowrap; }
td:last-child { min-width: 16rem; }
.kind { color: var(--faint); font-size: .8125rem; overflow-wrap: anywhere; min-width: 8rem;
  max-width: 16rem; }
.must { color: var(--admin); font-size: .75rem; }
details { margin: .75rem 0; }
summary { cursor: pointer; font-weight: 600; font-size: .9375rem; }
@media (max-width: 56rem) {
  .frame { display: block; }
  nav { position: static; height: auto; border-right: 0; border-bottom: 1px solid var(--line); }
  nav ul { columns: 2; }
  main { padding: 1.5rem; }
}
@media print { nav { display: none; } .frame { display: block; } }
"""

_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

#: The page's ``Content-Security-Policy``: nothing runs and nothing is loaded; only this style is allowed.
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
