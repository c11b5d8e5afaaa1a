#!/bin/bash
# A Slurm of one node on a fresh Debian machine (or container), for the opt-in test of sweeps; as root:
#
#   apt-get install -y --no-install-recommends slurm-wlm munge
#   tests/slurm/one_node.sh start
#   pytest -m slurm tests/llm_runs/test_slurm.py
#   tests/slurm/one_node.sh stop
#
# Two partitions on the one node: `low`, whose jobs are preempted and queued again for those of `high`.
set -euo pipefail

folder=/run/one_node_slurm  # gone with the next start of the machine
cpus=$(nproc)

start() {
    mkdir -p "$folder"/{state,spool,log} /run/munge /etc/slurm
    [ -f /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 status=none
    chown -R munge: /etc/munge /run/munge /var/lib/munge /var/log/munge
    chmod 400 /etc/munge/munge.key
    pgrep -x munged >/dev/null || runuser -u munge -- munged
    cat >/etc/slurm/slurm.conf <<CONF
ClusterName=one
SlurmctldHost=$(hostname)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=2
NodeName=$(hostname) CPUs=$cpus RealMemory=2000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 MaxTime=INFINITE State=UP GraceTime=5
PartitionName=high Nodes=ALL PriorityTier=10 MaxTime=INFINITE State=UP
CONF
    slurmctld
    slurmd
    for _ in $(seq 30); do
        sinfo --noheader --format=%t 2>/dev/null | grep -q idle && { sinfo; return; }
        sleep 1
    done
    echo "the node is not idle after 30 s; see $folder/log" >&2
    return 1
}

stop() {
    scancel --quiet --user="$(id -un)" || true
    for name in slurmd slurmctld; do
        [ -f "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")" || true
    done
}

case ${1:-} in
    start | stop) "$1" ;;
    *) echo "usage: $0 start | stop" >&2 && exit 2 ;;
esac
