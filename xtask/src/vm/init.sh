#!/bin/busybox sh
# Process 1 of the initramfs: load modules, mount the root, hand over to guest.sh or systemd.
# A failure here panics the kernel ("attempted to kill init"), which the caller reports.
set -e
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/modules/$module" || echo "cannot load $module"
done </modules/order

# drive SERIAL: the block device that QEMU gave this serial number.
drive() {
    for block in /sys/block/vd*; do
        [ "$(cat "$block/serial")" = "$1" ] && echo "/dev/${block##*/}" && return
    done
    echo "no drive $1" >&2
    return 1
}

tries=0
while ! drive root >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 300 ]
    usleep 20000
done
mount -t ext4 "$(drive root)" /root
mkdir -p /root/payload /root/usr/lib/modules
mount -t ext4 -o ro "$(drive modules)" /root/usr/lib/modules
mount -t ext4 -o ro "$(drive payload)" /root/payload
mount -t ext4 -o ro "$(drive boot)" /root/payload/vm
mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
for word in $(cat /root/proc/cmdline); do
    if [ "$word" = lxcfs.init=systemd ]; then
        wants=/root/etc/systemd/system/multi-user.target.wants
        mkdir -p "$wants"
        cp /root/payload/vm/lxcfs-vm.service /root/etc/systemd/system/
        ln -sf ../lxcfs-vm.service "$wants/lxcfs-vm.service"
        exec switch_root /root /lib/systemd/systemd
    fi
done
exec switch_root /root /bin/bash /payload/vm/guest.sh
