#!/bin/bash
# A real Slurm on the machines of machines.sh: slurmctld on the host, slurmd on each machine, GPUs pretended by /dev/null.
#   slurm.sh up MACHINES [GPUS_PER_MACHINE] | slurm.sh boot MACHINE | slurm.sh down
# Its commands need SLURM_CONF=$LAB/slurm/slurm.conf. Debian: apt-get install slurm-wlm munge
# There is no accounting, so `sacct` is empty; `scontrol show job` tells all.
set -euo pipefail
export LAB=${LAB:-${TMPDIR:-/tmp}/lab}
HERE=$(dirname "$(readlink -f "$0")") S=$LAB/slurm
export SLURM_CONF=$S/slurm.conf

configure() { # MACHINES GPUS
  cat >"$SLURM_CONF" <<END
ClusterName=lab
SlurmctldHost=controller(10.213.7.1)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$S/state
SlurmdSpoolDir=$S/spool/%n
SlurmdPidFile=$S/slurmd.%n.pid
SlurmctldPidFile=$S/slurmctld.pid
SlurmctldLogFile=$S/slurmctld.log
SlurmdLogFile=$S/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=5
ReturnToService=2
SlurmdTimeout=20
MpiDefault=none
GresTypes=gpu
NodeName=node[1-$1] CPUs=4 RealMemory=4000 Gres=gpu:a100:$2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
  if [ "$2" = 0 ]; then sed -i 's/ Gres=[^ ]*//' "$SLURM_CONF"; fi
  for g in $(seq "$2"); do
    [ -e "/dev/clgpu$g" ] || mknod "/dev/clgpu$g" c 1 3
    echo "Name=gpu Type=a100 File=/dev/clgpu$g"
  done >"$S/gres.conf"
}

case $1 in
  up)
    mkdir -p "$S/state" "$S/spool" /run/munge
    chown munge:munge /run/munge
    [ -s /etc/munge/munge.key ] || { head -c 1024 /dev/urandom >/etc/munge/munge.key; chown munge:munge /etc/munge/munge.key; }
    chmod 400 /etc/munge/munge.key
    runuser -u munge -- munged --force --pid-file=/run/munge/munged.pid # its socket lies on the shared file system
    configure "$2" "${3:-0}"
    sed 1d "$LAB/machines/hosts" | sed 's/$/ # lab/' >>/etc/hosts
    # slurmctld wants to run on the host that the file names.
    unshare --uts bash -c 'hostname controller && exec slurmctld'
    for i in $(seq "$2"); do "$0" boot "$i"; done ;;
  boot) "$HERE/machines.sh" do "$2" slurmd -N "node$2" ;;
  down) # slurmd goes with its machine
    kill "$(cat "$S/slurmctld.pid")" "$(cat /run/munge/munged.pid)" || true
    cp /etc/hosts "$S/hosts" && grep -v '# lab$' "$S/hosts" >/etc/hosts
    rm -f /dev/clgpu* ;;
esac
