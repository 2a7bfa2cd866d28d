#!/usr/bin/env bash
# The demo's own screen → docs/images/demo.svg: runs `cargo xtask demo` in a terminal of tmux and lets `freeze` draw the
# chapters that are named below. Needs root, tmux and Go; a minute and a half.
set -euo pipefail
cd "$(dirname "$0")/../.."

freeze=github.com/charmbracelet/freeze@v0.2.2
columns=104
lines=250                # the whole demo on one screen
chapters='^(5|7)  '      # endpoints that come and go; the agent that is killed

work=$(mktemp -d)
tmux=(tmux -L "lb-demo-$$" -f /dev/null)
trap '"${tmux[@]}" kill-server 2>/dev/null || true; rm -rf "$work"' EXIT

"${tmux[@]}" new-session -d -x $columns -y $lines -s demo \
	"cargo xtask demo 2>$work/log; echo \$? >$work/status; sleep 600"
until [ -e "$work/status" ]; do sleep 1; done
"${tmux[@]}" capture-pane -t demo -e -p >"$work/screen"
if [ "$(cat "$work/status")" != 0 ]; then
	cat "$work/log" "$work/screen"
	exit 1
fi
cp "$work/screen" /tmp/docs-tools/screen
