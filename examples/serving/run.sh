#!/usr/bin/env bash
# Train a small demo, export its checkpoint, serve it and send it images. Needs plsc on the path.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=${1:-$(mktemp -d)/service}
plsc demo --size small --output "$work"

plsc export --checkpoint-dir "$work/checkpoints" --to "$work/exported"
plsc serve "$work/exported" >"$work/access.log" 2>"$work/server.log" &
server=$!
trap 'kill $server; wait $server || true' EXIT
for _ in $(seq 300); do
    grep -q "serving on" "$work/server.log" && break
    kill -0 $server || { cat "$work/server.log"; exit 1; }
    sleep 0.2
done
curl -fsS -F image=@"$work/one.png" http://127.0.0.1:8866/embed | cut -c1-100
python "$here/client.py" "$work/one.png" "$work/one_again.png" "$work/another.png"
