# shellcheck shell=bash
# What up.sh and down.sh agree on; sourced by both. Everything that the cluster writes is under $STATE, except its lines in /etc/hosts.
# shellcheck disable=SC2034  # used by the scripts that source this file

STATE=${PAW_SLURM_STATE:-/tmp/paw-slurm}
MARK='# paw test cluster'
BRIDGE=pawslurm0
SPACE=pawslurm-   # prefix of the nodes' network namespaces
export SLURM_CONF=$STATE/slurm.conf

say() { echo "$(basename "$0"): $*" >&2; }
die() { say "$*"; exit 1; }

# running NAME PIDFILE: the recorded process is alive under that name, so neither a zombie nor a pid that somebody else got since
running() {
  local pid
  pid=$(cat "$2" 2>/dev/null) && [[ -n $pid ]] || return 1
  [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$1" ]] && ! grep -q '^State:.Z' "/proc/$pid/status"
}

# until_true SECONDS COMMAND...: try until it succeeds
until_true() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.2
  done
}
