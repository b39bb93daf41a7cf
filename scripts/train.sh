#!/usr/bin/env bash
# Sets up if need be, then trains: scripts/train.sh --help
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/scripts/setup.sh"

# Without a config: the embedded digits, into the repository's runs/digits.
case " $*" in
  *' --config='* | *' --config '* | *' -h'* | *' --help'*) ;;
  *) set -- --config="$root/configs/digits.py" "$@" ;;
esac
exec "$root/.venv/bin/python" -m halonet.train "$@"
