#!/bin/bash
# Small machines on one Linux host, for root: each has its own network, processes, host name, /dev/shm, /tmp/ray and
# /home/ubuntu, and an address on a private bridge. The rest of the file system is shared, as by NFS.
#   machines.sh up 3            node1 to node3 with 10.213.7.11 and so on; the host itself is `controller`, 10.213.7.1
#   machines.sh do 1 COMMAND    runs a command on node1
#   machines.sh cut 2 | mend 2  unplugs or plugs the cable of node2
#   machines.sh kill 2 | boot 2 switches node2 off or on
#   machines.sh down
# Files lie in the folder LAB. Debian: apt-get install iproute2
set -euo pipefail
export LAB=${LAB:-${TMPDIR:-/tmp}/lab}
STATE=$LAB/machines NET=10.213.7 BRIDGE=clbr
mkdir -p "$STATE"

boot() {
  local n=node$1 cable=clv$1 own=$STATE/node$1
  ip netns add "cl$n"
  ip link add "$cable" type veth peer name eth0 netns "cl$n"
  ip link set "$cable" master $BRIDGE up
  ip -n "cl$n" addr add "$NET.1$1/24" dev eth0
  ip -n "cl$n" link set eth0 up
  ip -n "cl$n" link set lo up
  ip -n "cl$n" route add default via $NET.1 # programs find their own address by their route to the world
  mkdir -p "$own/ray" "$own/home" "$own/etc-prefpaint"
  # A Python in the home (pyenv) stays readable for other users, without opening the host's home.
  # bash is process 1 and buries orphans; --mount-proc shows this machine's processes alone to `ps` and `ray stop`.
  nsenter --net="/run/netns/cl$n" unshare --mount --uts --ipc --pid --fork --kill-child --mount-proc bash -euc "
    hostname $n
    mount -t tmpfs -o size=4g tmpfs /dev/shm
    mkdir -p /tmp/ray /home/ubuntu /etc/prefpaint
    mount --bind $own/ray /tmp/ray
    chmod 1777 /tmp/ray
    mount --bind $own/home /home/ubuntu
    mount --bind $own/etc-prefpaint /etc/prefpaint
    mount --bind $STATE/hosts /etc/hosts
    if [ -d $HOME/.pyenv ]; then
      mkdir -p $own/home-of-root/.pyenv
      chmod 755 $own/home-of-root
      mount --bind $HOME/.pyenv $own/home-of-root/.pyenv
      mount --rbind $own/home-of-root $HOME
    fi
    touch $own/booted
    exec bash -c 'while :; do sleep 3600 & wait \$!; done'" </dev/null >"$own/log" 2>&1 &
  local outer=$!
  disown
  for _ in $(seq 100); do
    [ -e "$own/booted" ] && break
    sleep 0.1
  done
  rm "$own/booted" # fails, with all of this script, if the machine did not boot
  pgrep -P $outer >"$STATE/$n.pid"
}

switch_off() {
  kill -9 "$(cat "$STATE/node$1.pid")" || true
  rm "$STATE/node$1.pid"
  ip link del "clv$1" 2>/dev/null || true
  ip netns del "clnode$1"
}

case $1 in
  up)
    { echo "127.0.0.1 localhost"; echo "$NET.1 controller"; for i in $(seq "$2"); do echo "$NET.1$i node$i"; done; } >"$STATE/hosts"
    ip link add $BRIDGE type bridge
    ip addr add $NET.1/24 dev $BRIDGE
    ip link set $BRIDGE up
    for i in $(seq "$2"); do boot "$i"; done ;;
  do) exec nsenter -t "$(cat "$STATE/node$2.pid")" --net --uts --ipc --pid --mount -- "${@:3}" ;;
  cut) ip link set "clv$2" down ;;
  mend) ip link set "clv$2" up ;;
  kill) switch_off "$2" ;;
  boot) boot "$2" ;;
  down)
    for file in "$STATE"/node*.pid; do
      [ ! -e "$file" ] || { name=${file##*/node}; switch_off "${name%.pid}"; }
    done
    ip link del $BRIDGE 2>/dev/null || true ;;
esac
