#!/usr/bin/env bash
# Run the service, building its environment at first: start.sh. VENV names another environment.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${VENV:-"$here/venv"}
if [ ! -x "$venv/bin/python" ]; then
    "$here/install.sh" "$venv"
fi
export SERVING_LOG_PATH=${SERVING_LOG_PATH:-"$here"}
cd "$here"
exec "$venv/bin/python" web_service.py
