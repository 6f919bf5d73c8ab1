#!/usr/bin/env bash
# Run the service: start.sh. The first run builds its Python environment, by default venv/ here; VENV names another.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${VENV:-"$here/venv"}
# After a failed installation the environment has a Python without the packages.
find='import importlib.util, sys; sys.exit(importlib.util.find_spec("paddle_serving_server") is None)'
if ! "$venv/bin/python" -c "$find" 2>/dev/null; then
    "$here/install.sh" "$venv"
fi
export SERVING_LOG_PATH=${SERVING_LOG_PATH:-"$here"}
cd "$here"
exec "$venv/bin/python" web_service.py
