#!/usr/bin/env bash
# Trains on a TPU VM or a pod slice: a thin wrapper of gcloud. What runs on the
# workers is in tpu_worker.sh. Kept to bash 3.2, which macOS has.
set -euo pipefail

usage() {
  cat << 'END'
usage: scripts/tpu_vm.sh COMMAND NAME [options]

  create   makes the TPU VM or pod slice NAME; it costs money from then on
  setup    copies the last commit's files to all workers and installs there
  train    starts the training on all workers, or goes on with it; it runs on
           when ssh ends, and arguments --config.FIELD=VALUE are passed on
  status   the VM's state, and on each worker the training's last line
  logs     follows worker 0's log
  stop     ends the training (it saves first) and waits; the VM stays
  delete   deletes the VM, after a question; what is in gs:// stays

options
  --zone=ZONE          default: gcloud's compute/zone
  --dry_run            prints the gcloud commands and runs nothing
  --type=TYPE          create: default v3-32; other kinds: v4-32, v5litepod-16
  --version=VERSION    create: runtime; default: the one for JAX on that type
  --spot               create: cheaper, and may be taken away at any time
  --config=FILE[:ARG]  train: a file in the repository
  --workdir=gs://...   train: the run's folder, the same again to go on with it
  --worker=N           logs: which worker
  --kill               stop: at once, nothing is saved
  --yes                delete: without the question
END
}

# Slips end with 2, as in the other commands; what fails on the way with 1.
fail() {
  echo "error: $*" >&2
  exit "${status_of_fail:-2}"
}

failed() {
  status_of_fail=1
  fail "$@"
}

# A word as a shell reads it back.
quote() {
  case $1 in
    '' | *[!A-Za-z0-9_./:=@%+,-]*)
      printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")"
      ;;
    *) printf %s "$1" ;;
  esac
}

quote_all() {
  local word line=
  for word; do
    line="$line${line:+ }$(quote "$word")"
  done
  printf '%s\n' "$line"
}

run() {
  if [ -n "$dry_run" ]; then
    quote_all "$@"
  else
    "$@"
  fi
}

tpu_vm() {
  local command=$1
  shift
  run gcloud compute tpus tpu-vm "$command" "$@" ${zone:+"--zone=$zone"}
}

on_all_workers() {
  tpu_vm ssh "$name" --worker=all --command="$1"
}

# The values that describe gives, in $state, $type, $version and $spot.
describe() {
  local format='value(state,acceleratorType,runtimeVersion,'
  format+='schedulingConfig.spot)'
  if [ -n "$dry_run" ]; then
    tpu_vm describe "$name" --format="$format"
    state=READY
    return
  fi
  local values
  values=$(tpu_vm describe "$name" --format="$format") ||
    failed "$name in $zone cannot be described; see the line above"
  IFS=$'\t' read -r state type version spot <<< "$values"
}

# Says what to do when nothing can run there. Google's documentation: a spot VM
# that was taken away cannot be started; it is deleted and created again.
require_ready() {
  case $state in
    READY) return ;;
    PREEMPTED | TERMINATED)
      failed "$name is $state, which is final: run" \
        "'scripts/tpu_vm.sh delete $name --zone=$zone'," \
        "'scripts/tpu_vm.sh create $name --zone=$zone --type=$type" \
        "--version=$version${spot:+ --spot}', then setup and train; with the" \
        "same --workdir it goes on from its last checkpoint"
      ;;
    STOPPED)
      failed "$name is STOPPED: run" \
        "'gcloud compute tpus tpu-vm start $name --zone=$zone'"
      ;;
  esac
  failed "$name is $state, not READY; try again later"
}

# The runtime that Google's documentation names for JAX on each generation.
version_for() {
  case $1 in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) return 1 ;;
  esac
}

create() {
  [ -n "$version" ] || version=$(version_for "$type") || fail \
    "--type is '$type'; it must begin with v2-, v3-, v4-, v5litepod-, v5p- or" \
    "v6e-, or --version must name its runtime"
  tpu_vm create "$name" --accelerator-type="$type" --version="$version" \
    ${spot:+--spot}
  [ -n "$dry_run" ] || echo "$name costs money until" \
    "'scripts/tpu_vm.sh delete $name --zone=$zone'"
}

setup() {
  local archive remote=halonet/scripts/tpu_worker.sh
  archive=$(git -C "$root" rev-parse --absolute-git-dir 2> /dev/null) ||
    fail "setup copies the last commit, and $root is no git checkout"
  archive=$archive/tpu_vm.tar.gz
  [ -z "$(git -C "$root" status --porcelain)" ] ||
    echo "warning: uncommitted changes are not copied; the last commit is" >&2
  describe
  require_ready
  run git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  tpu_vm scp "$archive" "$name:halonet.tar.gz" --worker=all
  run rm -f "$archive"
  on_all_workers "{ [ ! -e $remote ] || bash $remote check; } && \
mkdir -p halonet && tar -xzf halonet.tar.gz -C halonet && \
bash $remote install" ||
    failed "$name is not set up on every worker; see above"
}

train() {
  [ -n "$config" ] || fail "train needs --config=FILE, a file in the repository"
  [ -f "$root/${config%%:*}" ] ||
    fail "--config is '$config'; no such file in the repository"
  case $workdir in
    gs://?*) ;;
    *) fail "--workdir is '$workdir'; it must be a folder gs://BUCKET/..." ;;
  esac
  describe
  require_ready
  # All are asked before one is started: a slice trains together or not at all.
  on_all_workers 'bash halonet/scripts/tpu_worker.sh check' || failed \
    "not started: a training runs ('scripts/tpu_vm.sh stop $name' ends it)," \
    "or a worker is not set up ('scripts/tpu_vm.sh setup $name'); see above"
  on_all_workers "bash halonet/scripts/tpu_worker.sh start $(
    quote_all --config="$config" --workdir="$workdir" ${rest[@]+"${rest[@]}"}
  )" || failed "not started on every worker, and the others wait: run" \
    "'scripts/tpu_vm.sh stop $name --kill', then train"
  [ -n "$dry_run" ] ||
    echo "Next: scripts/tpu_vm.sh logs $name --zone=$zone"
}

status() {
  describe
  [ -n "$dry_run" ] || echo "$name: $type in $zone, $state"
  require_ready
  on_all_workers 'bash halonet/scripts/tpu_worker.sh status' ||
    failed "not every worker answers, or 'setup $name' is missing; see above"
}

logs() {
  tpu_vm ssh "$name" --worker="$worker" \
    --command='bash halonet/scripts/tpu_worker.sh follow'
}

stop() {
  local signal=TERM
  [ -z "$kill" ] || signal=KILL
  on_all_workers "bash halonet/scripts/tpu_worker.sh stop $signal 600" ||
    failed "the training did not end on every worker; see above" \
      "('stop --kill' ends it without saving)"
  [ -n "$dry_run" ] || echo "$name still costs money until" \
    "'scripts/tpu_vm.sh delete $name --zone=$zone'"
}

delete() {
  describe
  if [ -z "$dry_run" ]; then
    echo "Deletes the TPU VM $name ($type, $state) in $zone with its disk," \
      "its logs, and what a training has done since its last checkpoint" \
      "('stop' saves). The workdir in gs:// is kept."
    if [ -z "$yes" ]; then
      local answer=
      read -r -p "Delete $name? [y/N] " answer || true
      case $answer in
        y | Y | yes) ;;
        *) failed "$name was not deleted" ;;
      esac
    fi
  fi
  tpu_vm delete "$name" --quiet
}

# ------------------------------------------------------------------ Arguments
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
zone='' type=v3-32 version='' spot='' dry_run='' yes='' kill=''
config='' workdir='' worker=0 rest=()

case " $* " in *' --help '* | *' -h '*) usage && exit ;; esac
command=${1-}
case $command in
  create) known='type version spot' ;;
  train) known='config workdir' ;;
  logs) known='worker' ;;
  stop) known='kill' ;;
  delete) known='yes' ;;
  setup | status) known='' ;;
  '') fail "a command is missing; see scripts/tpu_vm.sh --help" ;;
  *) fail "unknown command $command; see scripts/tpu_vm.sh --help" ;;
esac
name=${2-}
case $name in
  '' | -*) fail "$command needs the VM's name: $command NAME" ;;
  *[!a-z0-9-]*) fail "the name '$name' may hold a-z, 0-9 and - only" ;;
esac
shift 2

while [ $# -gt 0 ]; do
  option=${1%%=*}
  key=${option#--}
  case " $command $1" in
    ' train --config.'*=*) rest+=("$1") && shift && continue ;;
    ' train --config.'*) fail "$1: write $1=VALUE" ;;
  esac
  case " zone dry_run $known " in
    *" $key "*) [ "$option" = "--$key" ] ;;
    *) false ;;
  esac || fail "$command knows no argument $1; see scripts/tpu_vm.sh --help"
  case $key in
    spot | dry_run | yes | kill)
      [ "$1" = "$option" ] || fail "$option takes no value"
      printf -v "$key" 1
      ;;
    *)
      if [ "$1" = "$option" ]; then
        [ $# -gt 1 ] || fail "$option needs a value"
        shift
      fi
      value=${1#"$option="}
      case $value in '' | --*) fail "$option needs a value" ;; esac
      printf -v "$key" %s "$value"
      ;;
  esac
  shift
done
case $worker in
  *[!0-9]*) fail "--worker is '$worker'; it must be a number" ;;
esac

if [ -z "$dry_run" ]; then
  command -v gcloud > /dev/null ||
    failed "gcloud is missing; see https://cloud.google.com/sdk/docs/install"
  [ -n "$zone" ] ||
    zone=$(gcloud config get-value compute/zone 2> /dev/null) || true
  [ -n "$zone" ] ||
    fail "no zone: give --zone=ZONE (europe-west4-a has v3-32), or run" \
      "'gcloud config set compute/zone ZONE'"
fi
"$command"
