#!/bin/sh
# Real parallel text to a served translation model: fetch, plan, train, compress, serve, report.
set -eu
folder=$(dirname "$0")
began=$(date +%s)

say() { printf '\n== %s (%d s) ==\n' "$1" "$(($(date +%s) - began))"; }
field() { python3 -c 'import json, sys; print(json.loads(sys.stdin.readlines()[-1])[sys.argv[1]])' "$1"; }

say "1/6 data: LibreOffice's help in English and German"
chinchilla data get libreoffice-help

say "2/6 plan and train: 8 minutes"
run=$(chinchilla train "$folder/translate.toml" --json | field run)

say "3/6 compress to int8"
small=$(chinchilla compress "$run" --json | field run)

say "4/6 translate"
chinchilla predict "$small" "Click the icon to open the dialog." | sed 's/^/Click the icon to open the dialog.  ->  /'

say "5/6 serve, ask over HTTP, stop"
log=$(mktemp)
chinchilla serve "$small" --port 0 2>"$log" &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
python3 - "$log" <<'PYTHON'
import json, re, sys, time, urllib.request

for _ in range(300):
    found = re.search(r"http://\S+?(?=;|\s|$)", open(sys.argv[1]).read())
    if found:
        break
    time.sleep(0.2)
else:
    sys.exit("the server did not start:\n" + open(sys.argv[1]).read())
body = json.dumps({"text": "Specifies the name of the selected file."}).encode()
request = urllib.request.Request(found[0].rstrip("/") + "/v1/translate", body, {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request, timeout=60)))
PYTHON
kill "$server"
wait "$server" || true
trap - EXIT

say "6/6 report"
chinchilla report "$run" >/dev/null
report=$(chinchilla report "$small")

say "done"
echo "serve it:  chinchilla serve $small    (in .venv/bin)"
echo "report:    $report"
