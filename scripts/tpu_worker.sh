#!/usr/bin/env bash
# One worker's side of scripts/tpu_vm.sh, which calls it over ssh: installs the
# checkout that this file lies in, and starts, watches and stops its training.
#
# A training holds a lock for as long as it lives, so that a pid of an earlier
# boot is never taken for it. Its pid, log and exit status lie in RUN.
set -euo pipefail
export PATH="$HOME/.local/bin:$PATH" # uv, when pip has installed it.

readonly BUSY=3 # Exit status: a training runs.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root RUN=$root-run
mkdir -p "$RUN"

say() {
  echo "$HOSTNAME: $*"
}

training_runs() {
  ! flock --shared --nonblock "$RUN/lock" true
}

refuse_while_training() {
  training_runs || return 0
  say "a training runs (pid $(cat "$RUN/pid"))"
  exit $BUSY
}

install() {
  local archive=$root.tar.gz
  refuse_while_training
  # Files of the commit that was here before and are in this one no more.
  tar -tzf "$archive" | grep -v '/$' | LC_ALL=C sort > "$RUN/tracked.new"
  if [ -f "$RUN/tracked" ]; then
    LC_ALL=C comm -23 "$RUN/tracked" "$RUN/tracked.new" |
      (cd "$root" && xargs -r -d '\n' rm -f --)
  fi
  mv "$RUN/tracked.new" "$RUN/tracked"
  rm -f "$archive"
  # Ubuntu 22.04 has neither a Python that setup.sh takes nor uv.
  [ -n "$("$root/scripts/setup.sh" --list)" ] || command -v uv > /dev/null ||
    python3 -m pip install --user --quiet uv
  "$root/scripts/setup.sh" --accelerator tpu
  say "set up in $root"
}

start() {
  refuse_while_training
  cd "$root"
  exec 9> "$RUN/lock"
  # A status that asks at this moment holds the lock for an instant.
  flock --timeout 2 9 || {
    say "another training is being started"
    exit $BUSY
  }
  rm -f "$RUN/exit"
  echo "--- $(date -u +%FT%TZ) scripts/train.sh $*" >> "$RUN/log"
  # A session of its own outlives ssh. The shell waits for the training, also
  # after the SIGTERM that both get, and notes how it ended.
  # shellcheck disable=SC2016
  PYTHONUNBUFFERED=1 setsid bash -c 'trap : TERM; "$@"; echo $? > "$0"' \
    "$RUN/exit" scripts/train.sh "$@" \
    >> "$RUN/log" 2>&1 < /dev/null &
  echo $! > "$RUN/pid"
  say "training started (pid $!)"
}

status() {
  local state
  if training_runs; then
    state="training runs (pid $(cat "$RUN/pid"))"
  elif [ -f "$RUN/exit" ]; then
    state="training ended, exit status $(cat "$RUN/exit")"
  elif [ -f "$RUN/pid" ]; then
    state="training was killed"
  else
    say "no training was started"
    return
  fi
  say "$state: $(tail -n 1 "$RUN/log")"
}

stop() {
  local signal=$1 limit=$2 pid
  if ! training_runs; then
    say "no training runs"
    return
  fi
  pid=$(cat "$RUN/pid")
  say "SIG$signal to the training (pid $pid)"
  kill "-$signal" -- "-$pid" || true # It may have ended in between.
  SECONDS=0
  while training_runs; do
    if [ "$SECONDS" -ge "$limit" ]; then
      say "the training (pid $pid) still runs after $limit s"
      exit $BUSY
    fi
    sleep 0.2
  done
  say "the training is gone"
}

follow() {
  [ -f "$RUN/log" ] || {
    say "no training was started"
    exit 1
  }
  exec tail -n 100 -F "$RUN/log"
}

case $1 in
  check) refuse_while_training ;;
  install | start | status | stop | follow) "$@" ;;
  *)
    echo "error: unknown command $1" >&2
    exit 2
    ;;
esac
