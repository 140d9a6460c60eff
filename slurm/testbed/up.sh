#!/usr/bin/env bash
# A real Slurm with several virtual nodes on this one machine, for tests. Run as root; run again to start what has died.
#
#   up.sh [NODES]                       default 4: node1 ... node4, partitions main, low (gives way to main) and small (node1, 10 minutes)
#   export SLURM_CONF=$(up.sh --conf)   how every Slurm command finds it
#
#   PAW_SLURM_STATE=/tmp/paw-slurm   everything it writes, but for its lines in /etc/hosts
#   PAW_SLURM_NET=namespaces|loopback   a network namespace per node (default where the kernel allows it), or loopback addresses for all
#   PAW_SLURM_ACCOUNTING=yes|no      slurmdbd and sacct (default yes where MariaDB is installed)
#   PAW_SLURM_GPUS=8                 GPUs that each node claims to have; none of them is real
#
# Packages (Debian 12): slurmctld slurmd slurm-client munge iproute2, and for sacct slurmdbd slurm-wlm-mysql-plugin mariadb-server.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/testbed/settings.sh
source "$here/settings.sh"
if [[ ${1:-} == --conf ]]; then echo "$SLURM_CONF"; exit 0; fi
nodes=${1:-4} gpus=${PAW_SLURM_GPUS:-8}
[[ $nodes =~ ^[1-9][0-9]?$ ]] || die "the number of nodes is 1 to 99, not '$nodes'"
[[ $(id -u) == 0 ]] || die "run me as root: daemons, namespaces and /etc/hosts need it"
for program in slurmctld slurmd munged mungekey ip; do
  command -v "$program" >/dev/null || die "$program is missing: make setup-slurm"
done

can_namespace() {
  unshare --net --uts true && ip link add "$BRIDGE-try" type bridge && ip link del "$BRIDGE-try"
} 2>/dev/null
network=${PAW_SLURM_NET:-$(if can_namespace; then echo namespaces; else echo loopback; fi)}
accounting=${PAW_SLURM_ACCOUNTING:-$(if command -v slurmdbd mariadbd >/dev/null; then echo yes; else echo no; fi)}
case $network in
  namespaces) prefix=10.66.0 controller=10.66.0.254 ports='' ;;
  loopback) prefix=127.0.66 controller=127.0.0.1 ports="Port=[17801-$((17800 + nodes))]" ;;
  *) die "PAW_SLURM_NET is namespaces or loopback, not '$network'" ;;
esac

# ---------------------------------------------------------------------------------------------------------------- configuration
fill() {
  local store=slurmdbd comment=''
  if [[ $accounting == no ]]; then store=none comment='#'; fi
  sed -e "s|@STATE@|$STATE|g; s|@CONTROLLER@|$controller|g; s|@PORT@|17817|; s|@DBD_PORT@|17819|g; s|@ACCOUNTING@|$store|" \
    -e "s|@WITH_ACCOUNTING@|$comment|; s|@FIRST@|node1|" \
    -e "s|@NODES@|NodeName=node[1-$nodes] NodeAddr=$prefix.[1-$nodes] $ports CPUs=16 RealMemory=64000 Gres=gpu:$gpus State=UNKNOWN|" "$1"
}
if [[ -s $SLURM_CONF ]] && ! diff -q <(fill "$here/slurm.conf.in") "$SLURM_CONF" >/dev/null; then
  "$here/down.sh" # other nodes or another network: start anew
fi
mkdir -p "$STATE"/{controller,log,gpu,munge}
fill "$here/slurm.conf.in" >"$SLURM_CONF"
(umask 077 && fill "$here/slurmdbd.conf.in" >"$STATE/slurmdbd.conf")
# Slurm wants a character device for each GPU, and opens none of them unless control groups guard it.
for ((i = 0; i < gpus; i++)); do ln -sfn /dev/null "$STATE/gpu/nvidia$i"; done
{ ((gpus == 0)) || echo "Name=gpu File=$STATE/gpu/nvidia[0-$((gpus - 1))]"; } >"$STATE/gres.conf"

# --------------------------------------------------------------------------------------------------------------------- network
others=$(grep -v "$MARK" /etc/hosts || true)
{ # written in place: in a container /etc/hosts is a mount point and cannot be replaced
  echo "$others"
  for ((i = 1; i <= nodes; i++)); do echo "$prefix.$i node$i $MARK"; done
} >/etc/hosts
if [[ $network == namespaces ]]; then
  if ! ip link show "$BRIDGE" >/dev/null 2>&1; then
    ip link add "$BRIDGE" type bridge
    ip addr add "$controller/24" dev "$BRIDGE"
    ip link set "$BRIDGE" up
  fi
  for ((i = 1; i <= nodes; i++)); do
    if [[ -e /run/netns/$SPACE$i ]]; then continue; fi
    ip netns add "$SPACE$i"
    ip link add "pawnode$i" type veth peer name eth0 netns "$SPACE$i"
    ip link set "pawnode$i" master "$BRIDGE" up
    ip -n "$SPACE$i" addr add "$prefix.$i/24" dev eth0
    ip -n "$SPACE$i" link set eth0 up
    ip -n "$SPACE$i" link set lo up
  done
fi

# --------------------------------------------------------------------------------------------------------------------- daemons
if ! running munged "$STATE/munge/pid"; then
  chmod 755 "$STATE" "$STATE/munge" # what leads to the socket must not be writable for others
  [[ -s $STATE/munge/key ]] || mungekey --create --keyfile="$STATE/munge/key"
  munged --force --key-file="$STATE/munge/key" --socket="$STATE/munge/socket" --pid-file="$STATE/munge/pid" \
    --log-file="$STATE/log/munged.log" --seed-file="$STATE/munge/seed"
fi
if [[ $accounting == yes ]]; then
  socket=$STATE/mariadb.socket data=$STATE/mariadb
  if ! running mariadbd "$STATE/mariadb.pid"; then
    [[ -d $data/mysql ]] || mariadb-install-db --no-defaults --user=root --datadir="$data" --auth-root-authentication-method=socket \
      --skip-test-db >"$STATE/log/mariadb-install.log" 2>&1 || die "see $STATE/log/mariadb-install.log"
    setsid mariadbd --no-defaults --user=root --datadir="$data" --socket="$socket" --pid-file="$STATE/mariadb.pid" --skip-networking \
      --innodb-lock-wait-timeout=900 >"$STATE/log/mariadb.log" 2>&1 </dev/null &
    until_true 60 mariadb-admin --no-defaults --socket="$socket" ping || die "MariaDB does not start: see $STATE/log/mariadb.log"
  fi
  running slurmdbd "$STATE/slurmdbd.pid" || MYSQL_UNIX_PORT=$socket slurmdbd
  until_true 60 sacctmgr --noheader show cluster || die "slurmdbd does not answer: see $STATE/log/slurmdbd.log"
  sacctmgr --noheader show cluster paw | grep -q paw || sacctmgr --immediate add cluster paw >/dev/null
fi
running slurmctld "$STATE/slurmctld.pid" || slurmctld
until_true 30 scontrol ping || die "slurmctld does not answer: see $STATE/log/slurmctld.log"
for ((i = 1; i <= nodes; i++)); do
  if running slurmd "$STATE/node$i.pid"; then continue; fi
  mkdir -p "$STATE/node$i"
  enter=()
  if [[ $network == namespaces ]]; then enter=(nsenter "--net=/run/netns/$SPACE$i"); fi
  # its own host name, too, where that is allowed
  if unshare --uts true 2>/dev/null; then enter+=(unshare --uts sh -c "hostname node$i; exec \"\$@\"" sh); fi
  "${enter[@]}" slurmd -N "node$i"
done
all_up() { [[ $(sinfo --noheader --Node --partition=main --states=idle,alloc,mix --format=%N | wc -l) == "$nodes" ]]; }
until_true 60 all_up || die "not all nodes came up: see sinfo and $STATE/log"
sinfo >&2
echo "export SLURM_CONF=$SLURM_CONF"
