#!/usr/bin/env bash
# Runs the tests, on two workers.
set -euo pipefail

case ${1-} in
  -h | --help)
    cat <<'END'
usage: scripts/test.sh [--all] [pytest arguments]

Sets up if need be, then checks the style and runs the smoke tests listed in
tests/smoke.txt: a few minutes on two cores. With pytest arguments: the tests
that these select, for example tests/ops or -m slow.

  --all  all tests but the slow ones; what .ci/run calls
END
    exit
    ;;
  '') set -- --hypothesis-profile=smoke @tests/smoke.txt ;;
  --all) shift ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
bin=${HALONET_VENV:-.venv}/bin
"$bin/ruff" check --quiet .
"$bin/ruff" format --check --quiet .
exec "$bin/python" -m pytest -n 2 --dist loadgroup "$@"
