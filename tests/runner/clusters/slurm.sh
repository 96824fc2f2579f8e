#!/usr/bin/env bash
# A real SLURM of one node with two CPUs, in a folder of its own, for tests: `slurm.sh up DIR`, `slurm.sh down DIR`. Root, on Debian or its kin.
# No accounting (no slurmdbd): the harder case, in which nobody but the scheduler's memory knows how a job has ended.
# Use it with SLURM_CONF=DIR/slurm.conf. Nothing outside DIR is written, but for packages where they are missing.
set -euo pipefail
what=$1 dir=$(realpath -m "$2")
export SLURM_CONF="$dir/slurm.conf"

up() {
    command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null ||
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null
    mkdir -p "$dir/state" "$dir/spool" && chmod 755 "$dir"
    head -c 1024 /dev/urandom >"$dir/munge.key" && chmod 400 "$dir/munge.key"
    host=$(hostname -s)
    read -r ctld d < <(python3 -c '
import socket
found = [socket.socket() for _ in range(2)]
for s in found: s.bind(("127.0.0.1", 0))
ports = [s.getsockname()[1] for s in found]
for s in found: s.close()  # before they are told: whoever reads them begins at once
print(*ports)')
    cat >"$SLURM_CONF" <<CONF
ClusterName=bench
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
SlurmctldPort=$ctld
SlurmdPort=$d
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=5,batch_sched_delay=1
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=60 State=UP
CONF
    # Two devices that stand for GPUs: SLURM hands them out by CUDA_VISIBLE_DEVICES and never opens them.
    printf 'Name=gpu File=/dev/zero\nName=gpu File=/dev/full\n' >"$dir/gres.conf"
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
        --log-file="$dir/munged.log" --seed-file="$dir/munged.seed"
    slurmctld -f "$SLURM_CONF"
    slurmd -f "$SLURM_CONF"
    SECONDS=0
    while [ $SECONDS -lt 60 ]; do  # where no controller runs, sinfo itself waits for minutes
        timeout 10 sinfo --noheader --format=%t 2>/dev/null | grep -q idle && return
        sleep 0.2
    done
    tail -n 20 "$dir"/*.log
    return 1
}

down() {
    timeout 10 scancel --user="$(id -u)" 2>/dev/null || true
    for name in slurmd slurmctld munged; do
        [ -s "$dir/$name.pid" ] || continue
        pid=$(cat "$dir/$name.pid")
        kill "$pid" 2>/dev/null || continue
        for _ in $(seq 50); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null || true
    done
}

"$what"
