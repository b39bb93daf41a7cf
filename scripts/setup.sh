#!/usr/bin/env bash
# Makes .venv in the repository and installs into it what halonet needs.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/setup.sh [--accelerator cpu|tpu|cuda] [--python PATH] [--list]

Makes .venv from requirements.txt, with the JAX for this machine's accelerator,
and installs halonet itself in editable mode. Returns at once if that was done
before for the same requirements.

  --accelerator  by default the one detected
  --python       Python 3.11, 3.12 or 3.13; by default the one that .venv has,
                 otherwise the newest on the PATH or in pyenv
  --list         prints the Pythons found, newest first, and installs nothing

The environment variable HALONET_VENV names another folder than .venv.
END
}

fail() {
  echo "error: $*" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${HALONET_VENV:-$root/.venv}
stamp=$venv/halonet-setup
accelerator=
python=

# Prints the path of the Python behind COMMAND if it can make a virtual
# environment and its minor version is among those given. A command may exist
# and fail: pyenv has shims for versions that are not active.
resolve() { # COMMAND MINOR...
  local command=$1
  shift
  "$command" -c 'import ensurepip, sys
assert sys.version_info[0] == 3 and str(sys.version_info[1]) in sys.argv[1:]
print(f"{sys.base_prefix}/bin/python3.{sys.version_info[1]}")' \
    "$@" 2> /dev/null
}

# Prints the supported Pythons of this machine, newest first, one per version.
list_pythons() {
  local minor command
  for minor in 13 12 11; do
    for command in "python3.$minor" python3 \
      "${PYENV_ROOT:-${HOME-}/.pyenv}/versions/3.$minor".*/bin/python; do
      resolve "$command" "$minor" && break
    done
  done
  return 0
}

while [ $# -gt 0 ]; do
  option=${1%%=*}
  case $1 in
    --accelerator=* | --python=*) value=${1#*=} && shift ;;
    --accelerator | --python) value=${2-} && shift $(($# > 1 ? 2 : 1)) ;;
    --list) list_pythons && exit ;;
    -h | --help) usage && exit ;;
    *) fail "unknown argument $1; see scripts/setup.sh --help" ;;
  esac
  case $option=$value in
    --accelerator=cpu | --accelerator=tpu | --accelerator=cuda)
      accelerator=$value
      ;;
    --accelerator=*)
      fail "--accelerator is '$value'; it must be cpu, tpu or cuda"
      ;;
    --python=*)
      python=$(resolve "$value" 11 12 13) ||
        fail "--python is '$value'; it must be a Python 3.11, 3.12 or 3.13" \
          "that has the venv module"
      ;;
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

# The venv stays as it is unless it is broken or has another Python than asked.
present=$(resolve "$venv/bin/python" 11 12 13) || present=
[ -z "$python" ] || [ "$python" = "$present" ] || present=

wanted=$accelerator$'\n'$(cksum < "$root/requirements.txt")$'\n'$(
  cksum < "$root/pyproject.toml"
)$'\n'$root
if [ -n "$present" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]
then
  exit 0
fi

started=$SECONDS
if [ -z "$present" ] ||
  ! "$venv/bin/python" -m pip --version > /dev/null 2>&1; then
  found=$(list_pythons)
  python=${python:-${found%%$'\n'*}}
  if [ -n "$python" ]; then
    echo "Making $venv with $python"
    "$python" -m venv --clear "$venv"
  elif command -v uv > /dev/null; then
    echo "Making $venv with uv"
    uv venv --quiet --clear --seed --python '>=3.11,<3.14' "$venv"
  else
    fail "no Python 3.11, 3.12 or 3.13 with the venv module was found;" \
      "install one (Debian: python3-venv), or uv"
  fi
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
