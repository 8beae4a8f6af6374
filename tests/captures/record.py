#!/usr/bin/env python3
"""Records what a kernel says of containers in known states: host files and cgroup files, as text.

Run as root on the machine to record; the text goes to standard output. README.md says how.
"""

import glob
import os
import platform
import signal
import subprocess
import sys
import time

MIB = 1 << 20
ROOT = "/sys/fs/cgroup"
BASE = "lxcfs-capture"

# Files of one cgroup that views are made of; those that a kernel lacks are left out.
FILES = """
cgroup.controllers cgroup.procs cgroup.threads cgroup.events tasks notify_on_release
memory.max memory.high memory.current memory.stat memory.swap.max memory.swap.current
memory.limit_in_bytes memory.usage_in_bytes memory.use_hierarchy
memory.memsw.limit_in_bytes memory.memsw.usage_in_bytes
cpu.max cpu.stat cpu.cfs_quota_us cpu.cfs_period_us
cpuacct.usage cpuacct.usage_all cpuacct.stat
cpuset.cpus cpuset.cpus.effective cpuset.effective_cpus
io.stat blkio.throttle.io_service_bytes_recursive blkio.throttle.io_serviced_recursive
blkio.throttle.io_service_bytes blkio.throttle.io_serviced
hugetlb.2MB.max hugetlb.2MB.current hugetlb.2MB.limit_in_bytes hugetlb.2MB.usage_in_bytes
cpu.pressure memory.pressure io.pressure irq.pressure
""".split()

# What a workload does; it runs in a process of its own, already in its cgroup. Memory is not
# zero, because kernels since 6.12 give pages of zeros back.
WORKLOADS = {
    "idle": "",
    "small": "keep = bytearray(b'x') * (10 * MIB)",
    "busy": "keep = bytearray(b'x') * (20 * MIB); path = '/var/tmp/lxcfs-capture'\n"
    "open(path, 'wb').write(bytes(12 * MIB)); os.sync()\n"
    "os.posix_fadvise(os.open(path, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)\n"
    "open(path, 'rb').read(8 * MIB); os.unlink(path)\n"
    "while time.process_time() < 1: pass",
    "large": "keep = bytearray(b'x') * (64 * MIB)",
    "mlocked": "keep = mmap.mmap(-1, 40 * MIB)\n"
    "address = ctypes.addressof(ctypes.c_char.from_buffer(keep))\n"
    "libc = ctypes.CDLL(None, use_errno=True)\n"
    "assert libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(40 * MIB)) == 0",
    "huge": "keep = mmap.mmap(-1, 4 * MIB, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x40000)\n"
    "keep[0] = keep[2 * MIB] = 1",
}
HUGE_PAGES = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"


def read(path):
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return None


def write(path, value):
    with open(path, "w") as file:
        file.write(value)


def hierarchies():
    """Mount point, v1 controllers (empty for v2)."""
    found = {}
    for line in read("/proc/self/mountinfo").splitlines():
        fields, _, super_fields = line.partition(" - ")
        kind, _, options = super_fields.split(" ", 2)
        if kind in ("cgroup", "cgroup2") and fields.split()[2] not in found:
            names = [] if kind == "cgroup2" else options.split(",")
            found[fields.split()[2]] = (fields.split()[4], kind, names)
    return list(found.values())


HIERARCHIES = hierarchies()


def mount_of(controller):
    """Where a controller is and whether that is v2."""
    for mount, kind, names in HIERARCHIES:
        if kind == "cgroup" and controller in names:
            return mount, False
    for mount, kind, _ in HIERARCHIES:
        # Not all controllers that a hierarchy has are handed on to its children.
        handed_on = (read(mount + "/cgroup.subtree_control") or "").split()
        if kind == "cgroup2" and controller in handed_on:
            return mount, True
    return None, False


def is_v2(controller):
    return mount_of(controller)[1]


class Cgroup:
    """One path in every hierarchy; an inner one hands its controllers on and has no process."""

    def __init__(self, path, inner=False, **settings):
        self.path = f"{BASE}/{path}" if path else BASE
        for mount, kind, names in HIERARCHIES:
            here = f"{mount}/{self.path}"
            os.makedirs(here, exist_ok=True)
            if kind == "cgroup2" and inner:
                for controller in (read(here + "/cgroup.controllers") or "").split():
                    write(here + "/cgroup.subtree_control", "+" + controller)
            if "cpuset" in names:
                for name in ("cpuset.cpus", "cpuset.mems"):
                    write(f"{here}/{name}", read(f"{os.path.dirname(here)}/{name}").strip())
            if "memory" in names and "1" not in (read(here + "/memory.use_hierarchy") or "1"):
                write(here + "/memory.use_hierarchy", "1")
        for name, value in settings.items():
            self.set(name, value)

    def file(self, controller, v2_name, v1_name):
        mount, v2 = mount_of(controller)
        return f"{mount}/{self.path}/{v2_name if v2 else v1_name}"

    def set(self, name, value):
        if name == "memory":
            write(self.file("memory", "memory.max", "memory.limit_in_bytes"), str(value))
        elif name == "high":
            write(self.file("memory", "memory.high", ""), str(value))
        elif name == "huge":
            files = "hugetlb.2MB.max", "hugetlb.2MB.limit_in_bytes"
            write(self.file("hugetlb", *files), str(value))
        elif name == "swap" and is_v2("memory"):
            write(self.file("memory", "memory.swap.max", ""), str(value))
        elif name == "memsw" and not is_v2("memory"):
            write(self.file("memory", "", "memory.memsw.limit_in_bytes"), str(value))
        elif name == "quota" and is_v2("cpu"):
            write(self.file("cpu", "cpu.max", ""), f"{value} 100000")
        elif name == "quota":
            write(self.file("cpu", "", "cpu.cfs_quota_us"), str(value))
        elif name == "throttle" and mount_of("blkio")[0]:
            # Kernels after 5.10 count I/O on v1 only where there is a limit.
            for device in glob.glob("/sys/block/*/dev"):
                for way in "read", "write":
                    file = self.file("blkio", "", f"blkio.throttle.{way}_bps_device")
                    write(file, f"{read(device).strip()} {value}")
        elif name == "cpus":
            write(self.file("cpuset", "cpuset.cpus", "cpuset.cpus"), value)
        elif name == "frozen" and mount_of("freezer")[0]:
            write(self.file("freezer", "", "freezer.state"), "FROZEN")
        elif name == "frozen":
            mount = next(mount for mount, kind, _ in HIERARCHIES if kind == "cgroup2")
            write(f"{mount}/{self.path}/cgroup.freeze", "1")

    def run(self, workload, elsewhere=None):
        """Starts a workload inside and waits until it has done its work.

        `elsewhere` are the cgroups of hierarchies in which it is not in this one.
        """
        # A write that fails must end the child, which closing in `with` does.
        code = "import os, sys, time, mmap, ctypes\nMIB = 1 << 20\n"
        for mount, _, _ in HIERARCHIES:
            path = (elsewhere or {}).get(mount, self.path)
            code += f"with open('{mount}/{path}/cgroup.procs', 'w') as f: f.write('0')\n"
        code += WORKLOADS[workload] + "\nprint('ready', flush=True)\ntime.sleep(100000)\n"
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        if process.stdout.readline() != "ready\n":
            sys.exit(f"the workload {workload} in {self.path} failed")
        PROCESSES.append(process)
        return process.pid


PROCESSES = []


def cases():
    """Name of each case and the process whose container it shows."""
    Cgroup("", inner=True)
    plain = Cgroup("plain", memory=256 * MIB, quota=150_000, throttle=1 << 30)
    yield "plain", plain.run("busy")
    yield "unlimited", Cgroup("unlimited").run("small")
    Cgroup("nested", inner=True, memory=200 * MIB, quota=50_000)
    Cgroup("nested/inner", inner=True)
    yield "nested", Cgroup("nested/inner/leaf").run("small")
    Cgroup("pod", inner=True, memory=200 * MIB)
    Cgroup("pod/sibling").run("large")
    yield "pod", Cgroup("pod/app").run("small")
    yield "mlocked", Cgroup("mlocked", memory=256 * MIB).run("mlocked")
    frozen = Cgroup("frozen", memory=128 * MIB)
    pid = frozen.run("small")
    frozen.set("frozen", True)
    yield "frozen", pid
    Cgroup("cpuset", inner=True, cpus="0")
    # Only v2 lets a child ask for more than its parent has.
    leaf = Cgroup("cpuset/leaf", cpus="0-1") if is_v2("cpuset") else Cgroup("cpuset/leaf")
    yield "cpuset", leaf.run("idle")
    # Every level has files on v1; there, it is the process that is further up.
    outer = Cgroup("not-enabled", memory=128 * MIB)
    further_up = {} if is_v2("memory") else {mount_of("memory")[0]: outer.path}
    yield "not-enabled", Cgroup("not-enabled/leaf").run("idle", further_up)
    if is_v2("memory"):
        Cgroup("high", inner=True, memory=256 * MIB)
        yield "high", Cgroup("high/leaf", high=96 * MIB).run("small")
    if mount_of("hugetlb")[0]:
        write(HUGE_PAGES, "8")
        if int(read(HUGE_PAGES)) < 8:
            sys.exit("no 8 free huge pages of 2 MiB")
        yield "hugetlb", Cgroup("hugetlb", memory=256 * MIB, huge=8 * MIB).run("huge")
    if len(read("/proc/swaps").splitlines()) < 2:
        return
    if is_v2("memory"):
        yield "swap-off", Cgroup("swap-off", memory=64 * MIB, swap=0).run("small")
        lowered = Cgroup("swap-lowered", memory=32 * MIB, swap=100 * MIB)
        pid = lowered.run("large")
        lowered.set("swap", 4 * MIB)
        yield "swap-lowered", pid
    elif glob.glob(f"{mount_of('memory')[0]}/memory.memsw.*"):
        off = Cgroup("swap-off", memory=64 * MIB, memsw=64 * MIB)
        yield "swap-off", off.run("small")
        # v1 refuses a memsw limit below what is used. Memory that may take all of it leaves no
        # room for swap either, whatever is swapped out already.
        lowered = Cgroup("swap-lowered", memory=32 * MIB, memsw=132 * MIB)
        pid = lowered.run("large")
        lowered.set("memory", 132 * MIB)
        yield "swap-lowered", pid
        memsw = Cgroup("memsw", memory=32 * MIB, memsw=132 * MIB)
        yield "memsw", memsw.run("large")


def section(path, text):
    if text is not None:
        print(f"==> {path} <==")
        sys.stdout.write(text if text.endswith("\n") or not text else text + "\n")


def states(pids):
    """Running, uninterruptible and all threads, as the load average counts them."""
    counts = [0, 0, 0]
    for pid in pids:
        for task in glob.glob(f"/proc/{pid}/task/*/stat"):
            state = (read(task) or ") X").rpartition(") ")[2][:1]
            counts[0] += state == "R"
            counts[1] += state == "D"
            counts[2] += 1
    return counts


def record(found):
    section("facts", "".join(f"{name} {value}\n" for name, value in [
        ("release", platform.release()),
        ("machine", platform.machine()),
        ("page_size", os.sysconf("SC_PAGE_SIZE")),
        ("user_hz", os.sysconf("SC_CLK_TCK")),
        ("now", time.clock_gettime_ns(time.CLOCK_BOOTTIME)),
    ]))
    for name in ("meminfo", "cpuinfo", "diskstats", "vmstat", "uptime", "loadavg", "swaps"):
        section(f"/proc/{name}", read(f"/proc/{name}"))
    for name in ("cpu", "memory", "io", "irq"):
        section(f"/proc/pressure/{name}", read(f"/proc/pressure/{name}"))
    lines = read("/proc/stat").splitlines(True)
    kept = [line for line in lines if not line.startswith(("intr", "softirq"))]
    section("/proc/stat", "".join(kept))
    slabinfo = read("/proc/slabinfo")
    section("/proc/slabinfo", slabinfo and "".join(slabinfo.splitlines(True)[:2]))
    mounts = [line for line in read("/proc/self/mountinfo").splitlines(True) if " - cgroup" in line]
    section("/proc/self/mountinfo", "".join(mounts))
    for name in ("online", "possible", "present", "offline", "kernel_max", "isolated", "uevent"):
        path = f"/sys/devices/system/cpu/{name}"
        section(path, read(path))
    for name in ("online", "possible", "has_cpu", "has_memory"):
        path = f"/sys/devices/system/node/{name}"
        section(path, read(path))
    for path in glob.glob("/sys/kernel/mm/hugepages/*/nr_hugepages"):
        section(path, read(path))
    # What a process of the host has for cgroups.
    section("/proc/1/cgroup", read("/proc/1/cgroup"))
    names, cgroups = "", []
    for name, pid in found:
        text = read(f"/proc/{pid}/cgroup")
        section(f"/proc/{pid}/cgroup", text)
        section(f"/proc/{pid}/stat", read(f"/proc/{pid}/stat"))
        running, uninterruptible, threads = states([pid])
        if name == "frozen":
            uninterruptible = 0  # v1's freezer shows D, which the load average leaves out
        names += f"{name} {pid} {running} {uninterruptible} {threads}\n"
        for line in text.splitlines():
            path = line.split(":", 2)[2]
            while BASE in line and path not in cgroups:
                cgroups.append(path)
                path = os.path.dirname(path)
    section("cases", names)
    for mount, _, _ in HIERARCHIES:
        for path in sorted(cgroups):
            for name in FILES:
                here = f"{mount}{path.rstrip('/')}"
                # Threads and processes of the root are the machine's.
                if path == "/" and name in ("cgroup.procs", "cgroup.threads", "tasks"):
                    continue
                section(f"{here}/{name}", read(f"{here}/{name}"))


def clean():
    for process in PROCESSES:
        process.send_signal(signal.SIGKILL)
    for frozen in glob.glob(f"{ROOT}/freezer/{BASE}/**/freezer.state", recursive=True):
        write(frozen, "THAWED")
    for process in PROCESSES:
        process.wait()
    for mount, _, _ in HIERARCHIES:
        for path, _, _ in os.walk(f"{mount}/{BASE}", topdown=False):
            os.rmdir(path)
    if mount_of("hugetlb")[0]:
        write(HUGE_PAGES, "0")


try:
    record(list(cases()))
finally:
    clean()
