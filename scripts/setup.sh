#!/usr/bin/env bash
# Makes .venv in the repository and installs into it what halonet needs.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/setup.sh [--accelerator cpu|tpu|cuda]

Makes .venv from requirements.txt, with the jax for this machine's accelerator
(detected, unless it is named), and installs halonet itself, editable. Done
before for the same requirements: returns at once.
END
}

fail() {
  echo "error: $*" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
stamp=$venv/halonet-setup
accelerator=

while [ $# -gt 0 ]; do
  case $1 in
    --accelerator) accelerator=${2-} && shift $(($# > 1 ? 2 : 1)) ;;
    --accelerator=*) accelerator=${1#*=} && shift ;;
    -h | --help) usage && exit ;;
    *) fail "unknown argument $1; see scripts/setup.sh --help" ;;
  esac
  case $accelerator in
    cpu | tpu | cuda) ;;
    *) fail "--accelerator is '$accelerator'; it must be cpu, tpu or cuda" ;;
  esac
done

# Google's devices of the kinds that JAX looks for (its network card is another).
has_tpu_on_pci() {
  local device
  for device in /sys/bus/pci/devices/*; do
    [ "$(cat "$device/vendor" 2> /dev/null)" = 0x1ae0 ] || continue
    case $(cat "$device/device" 2> /dev/null) in
      0x0027 | 0x005e | 0x0062 | 0x0063 | 0x006f | 0x0076) return 0 ;;
    esac
  done
  return 1
}

# What was installed before stays, unless another accelerator is asked for.
if [ -z "$accelerator" ] && [ -f "$stamp" ]; then
  accelerator=$(head -n 1 "$stamp")
fi
if [ -z "$accelerator" ]; then
  if compgen -G '/dev/accel*' > /dev/null || has_tpu_on_pci; then
    accelerator=tpu
  elif nvidia-smi -L > /dev/null 2>&1; then
    accelerator=cuda
  else
    accelerator=cpu
  fi
fi

wanted=$accelerator$'\n'$(cksum < "$root/requirements.txt")$'\n'$(
  cksum < "$root/pyproject.toml"
)$'\n'$root
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] &&
  "$venv/bin/python" -c '' 2> /dev/null; then
  exit 0
fi

fits() {
  "$@" -c 'import sys
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' > /dev/null 2>&1
}

make_venv() {
  local python
  for python in python3 python3.13 python3.12 python3.11; do
    fits "$python" || continue
    echo "Making $venv with $("$python" --version)"
    # Debian's python3 comes without the venv module's pip.
    "$python" -m venv --clear "$venv" > "$root/.venv-log" 2>&1 && {
      rm -f "$root/.venv-log"
      return
    }
    missing=$(command -v "$python")
  done
  if command -v uv > /dev/null; then
    echo "Making $venv with uv"
    uv venv --quiet --clear --seed --python '>=3.11,<3.14' "$venv" && return
  fi
  rm -rf "$venv" "$root/.venv-log"
  [ -z "${missing-}" ] ||
    fail "$missing has no venv module; install python3-venv, or uv"
  fail "no Python 3.11, 3.12 or 3.13 was found; install one, or uv"
}

started=$SECONDS
if ! fits "$venv/bin/python" ||
  ! "$venv/bin/python" -m pip --version > /dev/null 2>&1; then
  make_venv
fi
rm -f "$stamp"

requirements=(-r "$root/requirements.txt")
case $accelerator in
  tpu) requirements+=('jax[tpu]') ;;
  cuda) requirements+=('jax[cuda12]') ;;
esac
echo "Installing requirements.txt for $accelerator (about 1 GB, some minutes)"
export PIP_DISABLE_PIP_VERSION_CHECK=1
"$venv/bin/python" -m pip install --quiet "${requirements[@]}"
"$venv/bin/python" -m pip install --quiet --no-deps --editable "$root"
printf '%s\n' "$wanted" > "$stamp"
echo "Installed in $((SECONDS - started)) s: $venv"
