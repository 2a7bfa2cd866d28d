#!/usr/bin/env bash
# The demo's own screen → docs/images/demo.svg: runs `cargo xtask demo` in a terminal of tmux; rich (a Python package,
# put into a folder of its own) draws the chapters that are named below. Needs root, tmux and python3 with venv.
set -euo pipefail
cd "$(dirname "$0")/../.."

chapters='5 7' # endpoints that come and go; the agent that is killed
columns=100    # what the demo is made for

work=$(mktemp -d)
tmux=(tmux -L "lb-demo-$$" -f /dev/null)
trap '"${tmux[@]}" kill-server 2>/dev/null || true; rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" --quiet install rich==15.0.0

# So high that the whole demo stays on the screen.
"${tmux[@]}" new-session -d -x "$columns" -y 300 -s demo \
	"cargo xtask demo 2>$work/log; echo \$? >$work/status; sleep 600"
until [ -s "$work/status" ]; do sleep 1; done
"${tmux[@]}" capture-pane -t demo -e -p >"$work/screen"
if [ "$(cat "$work/status")" != 0 ]; then
	cat "$work/log" "$work/screen"
	exit 1
fi

"$work/venv/bin/python" - "$work/screen" "$columns" docs/images/demo.svg $chapters <<'PYTHON'
import os, re, sys
from rich.console import Console
from rich.text import Text

screen, columns, svg, *wanted = sys.argv[1:]
lines = [Text.from_ansi(line.rstrip("\n")) for line in open(screen)]
drawn, is_drawn = [], True  # What comes before the first chapter is the map.
for line in lines:
    chapter = re.match(r"(\d+)  \S", line.plain)
    if chapter:
        is_drawn = chapter[1] in wanted
    if re.match(r"all \d+ promises", line.plain):
        is_drawn = True
        drawn += [Text()] if drawn[-1].plain else []
    if is_drawn:
        drawn.append(line)
while drawn and not drawn[-1].plain.strip():
    drawn.pop()
console = Console(record=True, width=int(columns), file=open(os.devnull, "w"), force_terminal=True, color_system="standard")
for line in drawn:
    console.print(line, soft_wrap=True)
text = console.export_svg(title="cargo xtask demo", unique_id="demo")
# No font from another host: the reader's own monospace does, every piece of text has its width.
text = re.sub(r"\s*@font-face \{.*?\}", "", text, flags=re.DOTALL).replace("Fira Code, monospace", "monospace")
# Not every viewer takes leading spaces for text.
text = text.replace("<svg ", '<svg xml:space="preserve" ', 1)
open(svg, "w").write("\n".join(line.rstrip() for line in text.splitlines()) + "\n")
PYTHON
echo "docs/images/demo.svg is drawn anew"
