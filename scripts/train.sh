#!/usr/bin/env bash
# Sets up if need be, then trains: scripts/train.sh --help
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/scripts/setup.sh"

# Without a config: the embedded digits, whose folder is not where you may be.
here=$root
[ "$PWD" = "$root" ] && here=.
case " $* " in
  *' --config='* | *' --config '* | *' -h '* | *' --help '*) ;;
  *) set -- --config="$here/configs/digits.py" "$@" ;;
esac
exec "${HALONET_VENV:-$here/.venv}/bin/python" -m halonet.train "$@"
