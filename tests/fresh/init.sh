#!/bin/sh
# The first process of a machine with a release's own kernel: runs what stands on kernel features.
# What it prints goes to the machine's console.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs run /run
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
ip link set lo up
hostname fresh
cd /srv/vulcan || exit
echo "kernel $(uname -r), control groups: $(stat -fc %T /sys/fs/cgroup)"
.venv/bin/python -m pytest -q -p no:cacheprovider $TESTS
echo "ended with $?"
sync
echo o >/proc/sysrq-trigger
sleep 60
