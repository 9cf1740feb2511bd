#!/usr/bin/env bash
# Starts a SLURM of one node on this machine, without systemd, runs a command in it, and stops it again:
#   tests/slurm.sh pytest -m slurm
# Needs root and Debian's slurm-wlm (apt-get install slurm-wlm).
set -euo pipefail

folder=$(mktemp -d)
chmod 755 "$folder"
cpus=$(nproc)
ports=$(python3 -c 'import socket
free = [socket.create_server(("", 0)) for _ in range(2)]
print(*(one.getsockname()[1] for one in free))')
memory=$(awk '/^MemTotal/ { print int($2 / 1024 * 0.9) }' /proc/meminfo)

cat >"$folder/slurm.conf" <<END
ClusterName=cryohush
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmctldPort=${ports% *}
SlurmdPort=${ports#* }
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8
END
mkdir -p "$folder/state" "$folder/spool" /run/munge
export SLURM_CONF=$folder/slurm.conf

pids=()
stop() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$folder"
}
trap stop EXIT

# munge is what SLURM's programs know each other by; one that already runs is used
if ! munge -n >/dev/null 2>&1; then
    chown munge: /run/munge
    runuser -u munge -- munged --foreground >"$folder/munged.log" 2>&1 &
    pids+=($!)
fi
slurmctld -D >/dev/null 2>&1 &
pids+=($!)
slurmd -D -N "$(hostname -s)" >/dev/null 2>&1 &
pids+=($!)

for _ in $(seq 60); do
    if sinfo --noheader --format %T 2>/dev/null | grep -qE '^(idle|mixed|alloc)'; then
        "$@"
        exit
    fi
    sleep 1
done
echo "SLURM did not start:" >&2
tail -n 20 "$folder"/*.log >&2
exit 1
