#!/bin/bash
# unshare --mount bash as_a_pod.sh PYTHON CHECKOUT SHARED COMMAND...
# Runs a command as the chart's pods do (cluster/kubernetes/templates/_ray.tpl), with this machine's Python in place of the
# image: as user 1000, without capabilities, on a read-only root. /tmp, /home/ray, /dev/shm and SHARED can be written.
# The mount namespace goes with the command, and all of this with it. Needs root.
set -euo pipefail
python=$1 checkout=$2 shared=$3
readarray -t kept < <("$python" -c 'import sys; print(sys.prefix, sys.base_prefix, sep="\n")')
kept+=("$checkout" "$shared")

mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
for i in "${!kept[@]}"; do
  mkdir "/mnt/$i"
  mount --bind "${kept[i]}" "/mnt/$i"
done
mount -t tmpfs -o mode=755 tmpfs /root
mount -t tmpfs -o mode=755 tmpfs /home
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
install -d -o 1000 -g 1000 /home/ray
# What these folders cover comes back, and nothing else does.
for i in "${!kept[@]}"; do
  mkdir -p "${kept[i]}"
  mount --bind "/mnt/$i" "${kept[i]}"
  [ "${kept[i]}" = "$shared" ] || mount -o remount,ro,bind "${kept[i]}"
done
mount -o remount,ro,bind /

cd "$checkout"
exec setpriv --reuid 1000 --regid 1000 --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs \
  env -i HOME=/home/ray PATH=/usr/bin:/bin PYTHONPATH="$checkout" PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 "${@:4}"
