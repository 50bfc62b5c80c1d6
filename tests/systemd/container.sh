#!/usr/bin/env bash
# A real systemd manager in a container of its own, for the tests.
#
#   container.sh DIRECTORY SOURCE PYTHON SITE
#
# DIRECTORY gets the container's upper layer and must lie on a disk; SOURCE is this project, PYTHON the interpreter's
# prefix and SITE its packages: they appear below /opt/vv, where a service without access to /root and /home sees them.
# Prints "init PID" when the manager starts. Ends, and ends the container, when stdin does.
#
# Rules:  - Nothing of the machine is written to: an overlay lies over its root, /run and /tmp are new, /sys and /proc/sys
#           read-only, devices only the harmless ones, and no capability that reaches the clock, modules or the log.
#         - Whatever way it ends, no process, mount or control group stays: the mounts live in a mount namespace of ours.

set -euo pipefail

# What the manager shall not be able to do to the machine.
WITHOUT=-sys_time,-sys_module,-sys_rawio,-sys_boot,-syslog,-audit_control,-audit_write,-audit_read,-wake_alarm,-mac_admin,-mac_override,-mknod

if [[ ${1:-} == --inside ]]; then
    # The first process of the new namespaces: the last steps before the manager.
    new=$2
    mount -t proc -o nosuid,nodev,noexec proc "$new/proc"
    for path in sys sysrq-trigger; do
        if [[ ! -e $new/proc/$path ]]; then continue; fi
        mount --bind "$new/proc/$path" "$new/proc/$path"
        mount -o remount,bind,ro "$new/proc/$path"
    done
    mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$new/sys"
    mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$new/sys/fs/cgroup"
    hostname vv-test
    ip link set lo up
    cd "$new"
    mkdir -p run/old
    pivot_root . run/old
    umount -l /run/old
    rmdir /run/old
    exec env -i container=vhostvsock-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        setpriv --bounding-set "$WITHOUT" /lib/systemd/systemd --unit=vv-test.target \
        --log-target=journal --show-status=no </dev/null >/dev/null 2>&1
fi

if [[ ${VV_CONTAINER:-} != 1 ]]; then
    VV_CONTAINER=1 exec unshare --mount --propagation private bash "$0" "$@"
fi

directory=$1 source=$2 python=$3 site=$4
new=$directory/root
group=
manager=
init=

finish() {
    # The manager before its parent, which then is there to reap it.
    if [[ -n $init ]]; then
        kill -KILL "$init" 2>/dev/null || true
        wait "$manager" || true
    elif [[ -n $manager ]]; then
        kill -KILL "$manager" 2>/dev/null || true
    fi
    if [[ -n $group && -d $group ]]; then
        echo 1 >"$group/cgroup.kill" || true
        wait || true
        for _ in $(seq 100); do
            if find "$group" -depth -type d -exec rmdir {} + 2>/dev/null; then break; fi
            sleep 0.05
        done
    fi
    # Only what is surely no mount: the tree itself begins with the machine's own root.
    umount --recursive --lazy "$new" "$directory/groups" 2>/dev/null || true
    rm -rf --one-file-system "$directory/upper" "$directory/work"
    rmdir "$new" "$directory/groups" "$directory" 2>/dev/null || true
}
trap finish EXIT
trap 'exit 1' TERM INT HUP

# ---- the tree ----

mkdir "$directory/upper" "$directory/work" "$directory/groups" "$new"
mount -t overlay -o "lowerdir=/,upperdir=$directory/upper,workdir=$directory/work" overlay "$new"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$new/run"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$new/tmp"
mount -t tmpfs -o mode=755,nosuid tmpfs "$new/dev"
for device in null zero full random urandom tty; do
    touch "$new/dev/$device"
    mount --bind "/dev/$device" "$new/dev/$device"
done
mkdir "$new/dev/pts" "$new/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$new/dev/pts"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$new/dev/shm"
ln -s pts/ptmx "$new/dev/ptmx"
ln -s /proc/self/fd "$new/dev/fd"

for pair in "source=$source" "python=$python" "site=$site"; do
    mkdir -p "$new/opt/vv/${pair%%=*}"
    mount --bind "${pair#*=}" "$new/opt/vv/${pair%%=*}"
    mount -o remount,bind,ro "$new/opt/vv/${pair%%=*}"
done
cat >"$new/usr/local/bin/vhostvsock" <<END
#!/bin/sh
# The interpreter's libraries may have been built for another place.
export LD_LIBRARY_PATH=/opt/vv/python/lib PYTHONPATH=/opt/vv/source:/opt/vv/site PYTHONDONTWRITEBYTECODE=1
exec /opt/vv/python/bin/python3 -P -m vhostvsock "\$@"
END
chmod 755 "$new/usr/local/bin/vhostvsock"

# ---- what the manager shall and shall not start: nothing of the machine's own services ----

rm -rf "$new/etc/systemd/system" "$new/etc/systemd/system.control" "$new/usr/local/lib/systemd" "$new/var/log/journal"
mkdir -p "$new/etc/systemd/system"
: >"$new/etc/fstab"
tr -d - </proc/sys/kernel/random/uuid >"$new/etc/machine-id"
cat >"$new/etc/systemd/system/vv-test.target" <<END
[Unit]
Description=Tests of vhostvsock
Requires=sysinit.target
After=sysinit.target
AllowIsolate=yes
END
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-timesyncd.service systemd-resolved.service \
    systemd-networkd.service systemd-logind.service systemd-modules-load.service systemd-tmpfiles-setup-dev.service \
    systemd-remount-fs.service systemd-update-utmp.service dev-hugepages.mount sys-fs-fuse-connections.mount; do
    ln -s /dev/null "$new/etc/systemd/system/$unit"
done

# ---- the control group ----

mount -t cgroup2 cgroup2 "$directory/groups"
group=$directory/groups/vhostvsock-test-$$
mkdir "$group"

# ---- the manager ----

(
    echo "$BASHPID" >"$group/cgroup.procs"
    exec setpriv --pdeathsig KILL unshare --pid --fork --kill-child --uts --ipc --net --cgroup --mount \
        --propagation private bash "$0" --inside "$new"
) </dev/null &
manager=$!
for _ in $(seq 200); do
    init=$(cat "/proc/$manager/task/$manager/children" 2>/dev/null) || exit 1
    init=${init// /}
    # Until bash has become the manager, entering its namespaces would lead into the old root.
    if [[ -n $init && $(cat "/proc/$init/comm" 2>/dev/null) == systemd ]]; then break; fi
    sleep 0.05
done
echo "init $init"
cat >/dev/null
