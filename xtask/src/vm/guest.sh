#!/bin/bash
# Runs inside the virtual machine, as process 1 or as a systemd unit: prepares what a running
# Debian has, runs /payload/vm/command, reports its output and status over virtio ports.
# /payload/vm/settings sets LAYOUT (v2, v1, hybrid), SHELL_ON_CONSOLE, REBOOTS and the environment.
. /payload/vm/settings
export PATH=/payload/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LANG=C.UTF-8 TERM=${TERM:-linux} LXCFS_IN_VM=1 LXCFS_BIN=/payload/bin/lxcfs
export LXCFS_VM_LAYOUT=$LAYOUT

mount_v1() {
    mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
    local have hierarchy first
    have=$(awk '!/^#/ && $4 == 1 { print $1 }' /proc/cgroups)
    for hierarchy in cpu,cpuacct cpuset memory blkio pids devices freezer \
        net_cls,net_prio perf_event hugetlb rdma misc; do
        first=${hierarchy%%,*}
        grep -qx "$first" <<<"$have" || continue
        mkdir -p "/sys/fs/cgroup/$hierarchy"
        if ! mount -t cgroup -o "$hierarchy" cgroup "/sys/fs/cgroup/$hierarchy"; then
            rmdir "/sys/fs/cgroup/$hierarchy"
            continue
        fi
        [ "$hierarchy" = "$first" ] || for name in ${hierarchy//,/ }; do
            ln -s "$hierarchy" "/sys/fs/cgroup/$name"
        done
    done
    mkdir -p /sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
}

mount_v2() {
    mount -t cgroup2 cgroup2 "$1"
    local controller
    for controller in $(cat "$1/cgroup.controllers"); do
        echo "+$controller" >"$1/cgroup.subtree_control"
    done
}

# The first CPU quota, cpuset and memory cgroup make the kernel patch its own code (static keys), and
# the last one that goes patches it back. Emulated CPUs that run this very code may see half of
# it, and hang. So it is done once, while nothing runs, and stays.
patch_kernel() {
    local at
    for at in /sys/fs/cgroup{,/cpu,/cpuset,/memory,/unified}; do
        [ -e $at/cgroup.procs ] || continue
        mkdir $at/kept
        [ ! -e $at/kept/cpu.max ] || echo "100000 100000" >$at/kept/cpu.max
        [ ! -e $at/kept/cpu.cfs_quota_us ] || echo 100000 >$at/kept/cpu.cfs_quota_us
    done
}

prepare() {
    mount -t tmpfs -o mode=755 tmpfs /run
    mount -t tmpfs -o mode=1777 tmpfs /tmp
    mkdir -p /run/lock /dev/pts /dev/shm /dev/mqueue
    mount -t devpts -o mode=620,ptmxmode=666,gid=5 devpts /dev/pts
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    mount -t mqueue mqueue /dev/mqueue
    ln -sf /proc/self/fd /dev/fd
    ln -sf /proc/self/fd/0 /dev/stdin
    ln -sf /proc/self/fd/1 /dev/stdout
    ln -sf /proc/self/fd/2 /dev/stderr
    mount -t securityfs securityfs /sys/kernel/security
    mount -t tracefs tracefs /sys/kernel/tracing
    mount -t debugfs debugfs /sys/kernel/debug
    mount -t bpf bpf /sys/fs/bpf
    mount -t fusectl fusectl /sys/fs/fuse/connections
    case $LAYOUT in
    v2) mount_v2 /sys/fs/cgroup ;;
    v1) mount_v1 ;;
    hybrid)
        mount_v1
        mkdir -p /sys/fs/cgroup/unified
        mount_v2 /sys/fs/cgroup/unified
        ;;
    esac
    patch_kernel
    mount --make-rshared /
    hostname lxcfs-vm
    ip link set lo up
    ulimit -n 1048576
    ulimit -c 0
    cd /root
}

port() {
    local name
    for name in /sys/class/virtio-ports/*/name; do
        if [ "$(cat "$name")" = "$1" ]; then
            name=${name%/name}
            echo "/dev/${name##*/}"
            return
        fi
    done
    echo "no virtio port $1" >/dev/console
}

# Copies a pipe to a port, so that a command may reopen /dev/stdout as often as it likes.
relay() {
    mkfifo "/run/lxcfs-vm.$1"
    cat "/run/lxcfs-vm.$1" >"$(port "lxcfs.$1")" &
}

run_command() {
    relay stdout
    local out=$!
    relay stderr
    local err=$! status tries
    echo started >"$(port lxcfs.status)"
    setsid /bin/bash /payload/vm/command </dev/null \
        >/run/lxcfs-vm.stdout 2>/run/lxcfs-vm.stderr &
    wait $!
    status=$?
    # Daemons the command left behind may hold the pipes: what is in them is sent, no more.
    for tries in {1..40}; do
        kill -0 $out 2>/dev/null || kill -0 $err 2>/dev/null || break
        sleep 0.05
    done
    echo "exit $status" >"$(port lxcfs.status)"
}

[ $$ -ne 1 ] || prepare
if [ -n "$REBOOTS" ]; then
    # A command that reboots says so before. A machine that comes back without that died of a
    # panic, perhaps with half of its disk written: ending without a status says so.
    booted=/var/lib/lxcfs-vm.booted announced=/var/lib/lxcfs-vm.reboots
    [ ! -e $booted ] || [ -e $announced ] || busybox poweroff -f
    rm -f $announced
    touch $booted
    sync
fi
swap=$(grep -lx swap /sys/block/vd*/serial)
if [ -n "$swap" ]; then
    swap=${swap%/serial}
    mkswap "/dev/${swap##*/}" >/dev/null && swapon "/dev/${swap##*/}"
fi
if [ -n "$SHELL_ON_CONSOLE" ]; then
    echo "cgroup $LAYOUT, $(uname -r). The build is in /payload/bin; exit ends the machine."
    setsid --ctty /bin/bash -i </dev/ttyS0 >/dev/ttyS0 2>&1
    echo "exit 0" >"$(port lxcfs.status)"
else
    run_command
fi
# With QEMU's -no-reboot this ends the machine at once.
[ -n "$REBOOTS" ] || busybox reboot -f
busybox poweroff -f
