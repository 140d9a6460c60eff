#!/usr/bin/env bash
# Ends the test cluster of up.sh and removes all of it: jobs, daemons, namespaces, its lines in /etc/hosts, its state.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/testbed/settings.sh
source "$here/settings.sh"
[[ -s $SLURM_CONF ]] || exit 0
[[ $(id -u) == 0 ]] || die "run me as root, as up.sh was"

no_jobs() { [[ -z $(squeue --noheader) ]]; }
if timeout 5 scontrol ping >/dev/null 2>&1; then # jobs first: a slurmd that ends leaves its steps running
  squeue --noheader --format=%A | sort -u | xargs --no-run-if-empty scancel
  until_true 10 no_jobs || say "jobs are still ending; what is left of them on the nodes is killed"
fi

# stop NAME PIDFILE: ask, and insist after ten seconds
stop() {
  local pid signal
  for signal in TERM KILL; do
    running "$1" "$2" || break
    pid=$(cat "$2")
    kill -s "$signal" "$pid"
    gone() { ! running "$1" "$2"; }
    until_true 10 gone "$1" "$2"
  done
}
for file in "$STATE"/node*.pid; do stop slurmd "$file"; done
stop slurmctld "$STATE/slurmctld.pid"
stop slurmdbd "$STATE/slurmdbd.pid"
stop mariadbd "$STATE/mariadb.pid"
stop munged "$STATE/munge/pid"
# empty SPACE: kill what a job left on the node; again, because what is killed may have started another process just before
empty() {
  ip netns pids "$1" | xargs --no-run-if-empty kill -s KILL
  [[ -z $(ip netns pids "$1") ]]
}
for space in /run/netns/"$SPACE"*; do
  if [[ ! -e $space ]]; then continue; fi
  until_true 10 empty "${space##*/}" || say "processes are left in ${space##*/}: $(ip netns pids "${space##*/}" | xargs)"
  ip netns del "${space##*/}"
  # A namespace lives on while a process does, and would keep the other end.
  ip link del "pawnode${space##*"$SPACE"}" 2>/dev/null
done
if ip link show "$BRIDGE" >/dev/null 2>&1; then ip link del "$BRIDGE"; fi
others=$(grep -v "$MARK" /etc/hosts)
echo "$others" >/etc/hosts
rm -rf "$STATE"
