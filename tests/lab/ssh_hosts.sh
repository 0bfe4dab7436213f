#!/bin/bash
# Machines of machines.sh as hosts for cluster/ssh.yaml: its addresses (192.0.2.11, ...), sshd, a user `ubuntu` with a key
# that opens all of them, and the folder /shared with this repository. As root, on Debian with openssh-server and rsync.
#   ssh_hosts.sh up "1 2 3" REPOSITORY VENV   # also after `machines.sh boot N`
#   ssh_hosts.sh do N COMMAND                 # as ubuntu, in a login shell
#   ssh_hosts.sh down                         # after machines.sh down
set -euo pipefail
export LAB=${LAB:-${TMPDIR:-/tmp}/lab}
MACHINES=$(dirname "$(readlink -f "$0")")/machines.sh
KEY=$LAB/key SHARED=$LAB/shared
case $1 in
  up)
    id ubuntu >/dev/null 2>&1 || { useradd --no-create-home --shell /bin/bash --password '*' ubuntu; touch "$LAB/user"; }
    mkdir -p /shared "$SHARED/prefpaint-ray" /run/sshd
    touch /shared/lab # keeps the folder, on which the machines mount theirs, from being removed as empty
    [ -d "$3/.venv" ] || { mkdir "$3/.venv"; echo "$3" >"$LAB/venv"; }
    [ -e "$KEY" ] || ssh-keygen -q -t rsa -N '' -f "$KEY"
    chown ubuntu "$SHARED"
    sed -E 's/^[0-9.]+ node([0-9]+)$/192.0.2.1\1 node\1/' "$LAB/machines/hosts" >"$LAB/hosts"
    cat "$LAB/hosts" >"$LAB/machines/hosts" # in place: the machines have this very file
    for i in $2; do
      "$MACHINES" do "$i" bash -euc "
        ip address flush dev eth0; ip address add 192.0.2.1$i/24 dev eth0; ip route add default via 192.0.2.1
        mount -o remount,size=16g /dev/shm # as Ray's default object store on a large host
        mount --bind '$SHARED' /shared; mount --bind '$3' /shared/prefpaint-ray
        [ -e '$3/.venv/bin' ] || mount --bind '$4' /shared/prefpaint-ray/.venv
        cd /home/ubuntu; mkdir -p .ssh; cp '$KEY' .ssh/id_rsa; cp '$KEY.pub' .ssh/authorized_keys
        echo 'export PYTHONPATH=/shared/prefpaint-ray HF_HUB_OFFLINE=1' >.bashrc; echo '. ~/.bashrc' >.profile
        printf 'Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n' >.ssh/config
        chown -R ubuntu . /etc/prefpaint; chmod -R go= .ssh
        /usr/sbin/sshd -o PidFile=none -o UsePAM=no"
    done ;;
  do) exec "$MACHINES" do "$2" runuser --login ubuntu -c "$3" ;;
  down)
    [ ! -e "$LAB/user" ] || { userdel ubuntu; rm "$LAB/user"; }
    [ ! -e "$LAB/venv" ] || { rmdir "$(cat "$LAB/venv")/.venv"; rm "$LAB/venv"; }
    rm -f /shared/lab
    rmdir /shared /home/ubuntu /etc/prefpaint 2>/dev/null || true ;;
esac
