#!/bin/sh
# Runs in namespaces of its own and ends as systemd, process 1 of a machine that knows only the units in UNITS.
# What it writes to /etc, /opt, /root, /run and /var is in memory, and it can change no setting of the kernel.
# usage: boot.sh SCRATCH UNITS
set -eu
scratch=$1 units=$2

mount -t tmpfs -o mode=755 llmd "$scratch"
# /root becomes open to all users of this machine, for an interpreter that is installed there.
for tree in etc opt root var; do
    mkdir -p "$scratch/$tree" "$scratch/work/$tree"
    mount -t overlay -o "lowerdir=/$tree,upperdir=$scratch/$tree,workdir=$scratch/work/$tree" llmd "/$tree"
done
mount -t tmpfs -o mode=755 llmd /etc/systemd/system
cp "$units"/* /etc/systemd/system/

mkdir "$scratch/dev"
for device in null zero full random urandom tty; do
    touch "$scratch/dev/$device"
    mount --bind "/dev/$device" "$scratch/dev/$device"
done
mount --rbind "$scratch/dev" /dev
mount -t tmpfs -o mode=755 llmd /run
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
umount --recursive --lazy /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up

exec env -i container=llmd-test SYSTEMD_UNIT_PATH=/etc/systemd/system PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --unit=basic.target --log-target=null
