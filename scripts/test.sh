#!/usr/bin/env bash
# Sets up if need be, then checks the style and runs the tests, on two workers;
# arguments go to pytest.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/scripts/setup.sh"
cd "$root"
.venv/bin/ruff check --quiet .
.venv/bin/ruff format --check --quiet .
exec .venv/bin/python -m pytest -n 2 --dist loadgroup "$@"
