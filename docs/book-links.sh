#!/usr/bin/env bash
# A preprocessor of mdbook: links of pages to files outside docs/ → their addresses in the repository. Reads and writes
# the JSON that mdbook hands from one preprocessor to the next. Needs jq.
set -euo pipefail
if [ "${1:-}" = supports ]; then exit 0; fi
exec jq --arg files https://github.com/lb-ebpf/lb-ebpf/blob/main/ '
	.[1] | walk(
		if type == "object" and (.path | type) == "string" and has("content") then
			("\\]\\(" + "\\.\\./" * (.path | split("/") | length)) as $out
			| .content |= gsub($out; "](" + $files)
		else . end
	)'
