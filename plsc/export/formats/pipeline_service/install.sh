#!/usr/bin/env bash
# Build the Python environment of the service: install.sh [folder]. PYTHON names the interpreter (3.8 to 3.13).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:-"$here/venv"}
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install -q -r "$here/requirements.txt"
# Without their dependencies, because they pin versions that do not exist for newer Pythons.
"$venv/bin/python" -m pip install -q --no-deps paddle-serving-server==0.9.0 paddle-serving-app==0.9.0
