# root.sh ROOT SUITE DEBIAN SECURITY PACKAGE...: installs packages into a fresh debootstrap. Runs in a mount
# namespace of its own, so that its mounts vanish with it.
set -eu
root=$1 suite=$2 debian=$3 security=$4
shift 4
mount -t proc proc "$root/proc"
mount -t devpts devpts "$root/dev/pts"
mount --bind /etc/resolv.conf "$root/etc/resolv.conf" || cp /etc/resolv.conf "$root/etc/resolv.conf"
cat >"$root/etc/apt/sources.list" <<END
deb $debian $suite main
deb $security $suite-security main
END
# Nothing may be started while packages are installed.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod +x "$root/usr/sbin/policy-rc.d"
in_root() {
    chroot "$root" /usr/bin/env -i DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8 \
        PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
}
in_root apt-get -q -o Acquire::Retries=5 update
in_root apt-get -q -o Acquire::Retries=5 install -y --no-install-recommends "$@"
in_root apt-get clean
rm -rf "$root"/var/lib/apt/lists/* "$root/usr/sbin/policy-rc.d"
# Only what a test starts runs: a booted systemd must be idle.
in_root systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer lxc.service lxc-net.service lxcfs.service \
    podman.service podman.socket podman-auto-update.timer podman-auto-update.service \
    podman-restart.service prometheus-node-exporter.service sysstat.service \
    systemd-timesyncd.service systemd-networkd.service
echo lxcfs-vm >"$root/etc/hostname"
echo 127.0.0.1 localhost lxcfs-vm >"$root/etc/hosts"
: >"$root/etc/fstab"
echo root:100000:65536 >"$root/etc/subuid"
echo root:100000:65536 >"$root/etc/subgid"
mkdir -p "$root/payload" "$root/usr/lib/modules"
# C lxcfs of other suites, callable by name.
for suite in bookworm sid; do
    cat >"$root/usr/local/bin/lxcfs-$suite" <<END
#!/bin/sh
lib=/opt/lxcfs-$suite/usr/lib/x86_64-linux-gnu
LD_LIBRARY_PATH=\$lib:\$lib/lxcfs:/opt/lxcfs-$suite/lib/x86_64-linux-gnu exec /opt/lxcfs-$suite/usr/bin/lxcfs "\$@"
END
    chmod +x "$root/usr/local/bin/lxcfs-$suite"
done
