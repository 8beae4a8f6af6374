# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_lxcfs_global_optspecs
    string join \n v/version config= runtime-dir= p/pidfile= nonempty= no-heal= cache-ttl-ms= threads= workers= workers-uid= u/disable-swap= disable-zswap= no-loadavg= no-uptime= no-cpu-view= no-psi-poll= cpus= cpu-numbering= boundary= disable= memory-high= no-ebpf= log-level= log-format= metrics= d/debug f/foreground l/enable-loadavg enable-cfs enable-pidfd enable-cgroup enable-psi-poll s o= h/help
end

function __fish_lxcfs_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_lxcfs_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_lxcfs_using_subcommand
    set -l cmd (__fish_lxcfs_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c lxcfs -n "__fish_lxcfs_needs_command" -l config -d 'Read this configuration file [default: /etc/lxcfs/lxcfs.toml if it exists]' -r -F
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l runtime-dir -d 'Directory of the pidfile and of lxcfs/, the daemon\'s state [default: /run]' -r -F
complete -c lxcfs -n "__fish_lxcfs_needs_command" -s p -l pidfile -d 'Write and lock this pidfile [default: RUNTIME_DIR/lxcfs.pid]' -r -F
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l nonempty -d 'Mount even on a directory that holds files' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l no-heal -d 'Leave dead mounts in containers alone at start' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l cache-ttl-ms -d 'Answer from one snapshot of a container for this long, 0 to 1000 [default: 5]' -r
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l threads -d 'Serving threads [default: one per core, at most 4]' -r
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l workers -d 'Who starts the workers that serve [default: own]' -r -f -a "own\t'the daemon itself'
outside\t'`lxcfs serve`, with fewer rights; the daemon only holds the mount'"
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l workers-uid -d 'The user, besides root, whose `lxcfs serve` may serve with --workers outside' -r
complete -c lxcfs -n "__fish_lxcfs_needs_command" -s u -l disable-swap -d 'Show no swap: totals 0, /proc/swaps empty' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l disable-zswap -d 'Show 0 in meminfo\'s Zswap lines' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l no-loadavg -d 'Show the host\'s load average instead of the container\'s' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l no-uptime -d 'Show the host\'s uptime instead of the container\'s' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l no-cpu-view -d 'Take the number of CPUs from the cpuset alone, whatever the quota (--cpus cpuset)' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l no-psi-poll -d 'Refuse pressure stall triggers (write and poll on /proc/pressure/*)' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l cpus -d 'What decides how many CPUs a container sees [default: quota]' -r -f -a "quota\t'the effective cpuset, narrowed to the quota rounded up'
cpuset\t'the effective cpuset alone'
host\t'all CPUs of the host'"
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l cpu-numbering -d 'How the visible CPUs are numbered [default: sequential]' -r -f -a "sequential\t'0 to N-1'
physical\t'the host\'s numbers (not with --cpus quota)'"
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l boundary -d 'Which cgroup of a process is its container [default: auto]' -r -f -a "auto\t'cgroup namespace, then the runtime\'s naming, then PID namespace, then host'
cgroupns\t'only the cgroup namespace decides'
runtime\t'only the runtime\'s naming decides'
pidns\t'only the PID namespace decides'
caller\t'the caller\'s own cgroup, whatever it is'"
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l disable -d 'Do not serve these files, e.g. slabinfo,pressure,cpu: containers see the host\'s' -r
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l memory-high -d 'Let memory.high count as a limit' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l no-ebpf -d 'Collect from cgroup files alone' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l log-level -d 'How much to log [default: info]; `lxcfs log-level` changes it while running' -r -f -a "error\t'what makes an answer wrong or impossible'
warn\t'what needs somebody\'s attention'
info\t'start, stop, features and their state'
debug\t'every decision'
trace\t'every request'"
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l log-format -d 'What a log line looks like [default: human]' -r -f -a "human\t'for people and the journal'
json\t'one JSON object per line'"
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l metrics -d 'Serve /livez, /readyz and /metrics on ADDRESS:PORT, PORT (loopback) or unix:/PATH' -r
complete -c lxcfs -n "__fish_lxcfs_needs_command" -s o -d 'Mount options: those of libfuse are accepted, the mount\'s own are fixed' -r
complete -c lxcfs -n "__fish_lxcfs_needs_command" -s v -l version -d 'Print the version'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -s d -l debug -d 'Log at level debug (--log-level debug)'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -s f -l foreground -d 'Stay in the foreground: always so'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -s l -l enable-loadavg -d 'Serve the container\'s load average: on unless --no-loadavg'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l enable-cfs -d 'Count the CPU quota: on unless --no-cpu-view'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l enable-pidfd -d 'Use pidfds: always so'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l enable-cgroup -d 'Serve /cgroup: not any more, cgroup namespaces have replaced it'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -l enable-psi-poll -d 'Serve pressure stall triggers: on unless --no-psi-poll'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -s s -d 'Serve with one thread: ignored, as by C lxcfs (--threads 1)'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -a "show" -d 'Prints what a container reads in a virtual file, and with --explain why'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -a "attach" -d 'Gives running containers their own view, whatever runs them'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -a "detach" -d 'Takes our mounts out of running containers: they see the host again'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -a "heal" -d 'Replaces dead mounts of lxcfs in running containers'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -a "doctor" -d 'Tells what works on this machine, what does not, and what to do; exit status 1 if broken'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -a "status" -d 'Tells how the running daemon is'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -a "log-level" -d 'Changes how much the running daemon logs'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -a "probe" -d 'Tells whether the mount answers; exit status 1 if not'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -a "agent" -d 'Gives every container that asks for it its own view, from its start on'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -a "nri" -d 'The same by the runtime\'s NRI alone'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -a "hook" -d 'Answers a container runtime\'s OCI hook: reads the container\'s state on standard input'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -a "upgrade" -d 'Switches the running daemon to another binary, unseen by readers'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -a "serve" -d 'Serves a mount that `lxcfs --workers outside` holds, with few rights'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -a "worker" -d 'Serves as a worker; started by the holder'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -a "webhook" -d 'Runs the Kubernetes admission webhook (the program lxcfs-webhook)'
complete -c lxcfs -n "__fish_lxcfs_needs_command" -a "manifests" -d 'Prints Kubernetes manifests (the program lxcfs-webhook)'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand show" -l pid -d 'The container of this process [default: this one]' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand show" -l cgroup -d 'The container at this cgroup: /docker/4f0c… or /sys/fs/cgroup/docker/4f0c…' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand show" -l config -d 'Read this configuration file [default: /etc/lxcfs/lxcfs.toml if it exists]' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand show" -s u -l disable-swap -d 'Show no swap: totals 0, /proc/swaps empty' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand show" -l disable-zswap -d 'Show 0 in meminfo\'s Zswap lines' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand show" -l no-loadavg -d 'Show the host\'s load average instead of the container\'s' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand show" -l no-uptime -d 'Show the host\'s uptime instead of the container\'s' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand show" -l no-cpu-view -d 'Take the number of CPUs from the cpuset alone, whatever the quota (--cpus cpuset)' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand show" -l no-psi-poll -d 'Refuse pressure stall triggers (write and poll on /proc/pressure/*)' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand show" -l cpus -d 'What decides how many CPUs a container sees [default: quota]' -r -f -a "quota\t'the effective cpuset, narrowed to the quota rounded up'
cpuset\t'the effective cpuset alone'
host\t'all CPUs of the host'"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand show" -l cpu-numbering -d 'How the visible CPUs are numbered [default: sequential]' -r -f -a "sequential\t'0 to N-1'
physical\t'the host\'s numbers (not with --cpus quota)'"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand show" -l boundary -d 'Which cgroup of a process is its container [default: auto]' -r -f -a "auto\t'cgroup namespace, then the runtime\'s naming, then PID namespace, then host'
cgroupns\t'only the cgroup namespace decides'
runtime\t'only the runtime\'s naming decides'
pidns\t'only the PID namespace decides'
caller\t'the caller\'s own cgroup, whatever it is'"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand show" -l disable -d 'Do not serve these files, e.g. slabinfo,pressure,cpu: containers see the host\'s' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand show" -l memory-high -d 'Let memory.high count as a limit' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand show" -l no-ebpf -d 'Collect from cgroup files alone' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand show" -l explain -d 'Say for every line what decided it: file, ancestor, program, rule'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand show" -l json -d 'Print JSON: text, lines and where they come from'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand show" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand attach" -l pid -d 'The container this process runs in (repeatable)' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand attach" -l container -d 'The container whose id begins like this (repeatable)' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand attach" -l files -d 'These files only, e.g. meminfo,cpuinfo,pressure; or all but some: -uptime' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand attach" -l mount -d 'Attach from this mount [default: the configured one, else /var/lib/lxcfs]' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand attach" -l parallel -d 'Containers handled at the same time [default: one per core, at most 8]' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand attach" -l deadline-ms -d 'Time one container may take [default: 2000]' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand attach" -l all -d 'All of them'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand attach" -l takeover -d 'Replace working mounts of another lxcfs'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand attach" -l dry-run -d 'Only say what would be done'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand attach" -l json -d 'Report as JSON'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand attach" -l verbose -d 'Report every file, also those that are as wanted'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand attach" -s h -l help -d 'Print help'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand detach" -l pid -d 'The container this process runs in (repeatable)' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand detach" -l container -d 'The container whose id begins like this (repeatable)' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand detach" -l files -d 'These files only' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand detach" -l mount -d 'Attach from this mount [default: the configured one, else /var/lib/lxcfs]' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand detach" -l parallel -d 'Containers handled at the same time [default: one per core, at most 8]' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand detach" -l deadline-ms -d 'Time one container may take [default: 2000]' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand detach" -l all -d 'All of them'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand detach" -l dry-run -d 'Only say what would be done'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand detach" -l json -d 'Report as JSON'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand detach" -l verbose -d 'Report every file, also those that are as wanted'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand detach" -s h -l help -d 'Print help'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand heal" -l pid -d 'The container this process runs in (repeatable)' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand heal" -l container -d 'The container whose id begins like this (repeatable)' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand heal" -l mount -d 'Attach from this mount [default: the configured one, else /var/lib/lxcfs]' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand heal" -l parallel -d 'Containers handled at the same time [default: one per core, at most 8]' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand heal" -l deadline-ms -d 'Time one container may take [default: 2000]' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand heal" -l all -d 'All of them'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand heal" -l dry-run -d 'Only say what would be done'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand heal" -l json -d 'Report as JSON'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand heal" -l verbose -d 'Report every file, also those that are as wanted'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand heal" -s h -l help -d 'Print help'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand doctor" -l mount -d 'Look at this mount [default: the configured one, else /var/lib/lxcfs]' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand doctor" -l runtime-dir -d 'Directory of the pidfile and of lxcfs/, the daemon\'s state [default: /run]' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand doctor" -l json -d 'Print JSON'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand status" -l runtime-dir -d 'Directory of the pidfile and of lxcfs/, the daemon\'s state [default: /run]' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand status" -l json -d 'Print JSON'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand status" -s h -l help -d 'Print help'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand log-level" -l runtime-dir -d 'Directory of the pidfile and of lxcfs/, the daemon\'s state [default: /run]' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand log-level" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand probe" -l deadline-ms -d 'Give up after this long' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand probe" -l read -d 'Read in this process, with no deadline'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand probe" -s h -l help -d 'Print help'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand agent" -l mount -d 'Attach from this mount' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand agent" -l host-mount -d 'The same mount as the runtime sees it, when that is elsewhere' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand agent" -l nri -d 'The runtime\'s NRI socket, or off' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand agent" -l docker -d 'dockerd\'s socket, or off' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand agent" -l scan-seconds -d 'Seconds between looks at all processes; 0 to rely on the runtimes\' word alone' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand agent" -l metrics -d 'Serve /livez, /readyz and /metrics on ADDRESS:PORT, PORT (loopback) or unix:/PATH' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand agent" -l runtime-dir -d 'Directory of the pidfile and of lxcfs/, the daemon\'s state [default: /run]' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand agent" -l log-level -d 'How much to log [default: info]' -r -f -a "error\t'what makes an answer wrong or impossible'
warn\t'what needs somebody\'s attention'
info\t'start, stop, features and their state'
debug\t'every decision'
trace\t'every request'"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand agent" -l log-format -d 'What a log line looks like [default: human]' -r -f -a "human\t'for people and the journal'
json\t'one JSON object per line'"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand agent" -l namespace -d 'Every pod of this Kubernetes namespace (repeatable)' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand agent" -l exclude-namespace -d 'No pod of this Kubernetes namespace (repeatable)' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand agent" -l cgroup -d 'Containers whose cgroup path matches, for instance \'/lxc.payload.*\' (repeatable)' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand agent" -l files -d 'Files for containers that do not choose: meminfo,cpu or -swaps [default: all]' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand agent" -l no-spec-mounts -d 'Put nothing into container specs: attach everything right before the start'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand agent" -l no-ebpf -d 'Use no eBPF: containers that no runtime tells of wait for the next scan'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand agent" -l all -d 'Every container that does not opt out, not only those that ask'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand agent" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand nri" -l mount -d 'Attach from this mount' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand nri" -l host-mount -d 'The same mount as the runtime sees it, when that is elsewhere' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand nri" -l nri -d 'The runtime\'s NRI socket, or off' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand nri" -l docker -d 'dockerd\'s socket, or off' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand nri" -l scan-seconds -d 'Seconds between looks at all processes; 0 to rely on the runtimes\' word alone' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand nri" -l metrics -d 'Serve /livez, /readyz and /metrics on ADDRESS:PORT, PORT (loopback) or unix:/PATH' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand nri" -l runtime-dir -d 'Directory of the pidfile and of lxcfs/, the daemon\'s state [default: /run]' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand nri" -l log-level -d 'How much to log [default: info]' -r -f -a "error\t'what makes an answer wrong or impossible'
warn\t'what needs somebody\'s attention'
info\t'start, stop, features and their state'
debug\t'every decision'
trace\t'every request'"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand nri" -l log-format -d 'What a log line looks like [default: human]' -r -f -a "human\t'for people and the journal'
json\t'one JSON object per line'"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand nri" -l namespace -d 'Every pod of this Kubernetes namespace (repeatable)' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand nri" -l exclude-namespace -d 'No pod of this Kubernetes namespace (repeatable)' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand nri" -l cgroup -d 'Containers whose cgroup path matches, for instance \'/lxc.payload.*\' (repeatable)' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand nri" -l files -d 'Files for containers that do not choose: meminfo,cpu or -swaps [default: all]' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand nri" -l no-spec-mounts -d 'Put nothing into container specs: attach everything right before the start'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand nri" -l no-ebpf -d 'Use no eBPF: containers that no runtime tells of wait for the next scan'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand nri" -l all -d 'Every container that does not opt out, not only those that ask'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand nri" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand hook" -l mount -d 'Attach from this mount' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand hook" -l runtime-dir -d 'Directory of the pidfile and of lxcfs/, the daemon\'s state [default: /run]' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand hook" -l namespace -d 'Every pod of this Kubernetes namespace (repeatable)' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand hook" -l exclude-namespace -d 'No pod of this Kubernetes namespace (repeatable)' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand hook" -l cgroup -d 'Containers whose cgroup path matches, for instance \'/lxc.payload.*\' (repeatable)' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand hook" -l files -d 'Files for containers that do not choose: meminfo,cpu or -swaps [default: all]' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand hook" -l print -d 'Print the file for hooks.d instead; with --all, for every container'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand hook" -l all -d 'Every container that does not opt out, not only those that ask'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand hook" -s h -l help -d 'Print help'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand upgrade" -l runtime-dir -d 'Directory of the pidfile and of lxcfs/, the daemon\'s state [default: /run]' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand upgrade" -s h -l help -d 'Print help'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l holder -d 'The holder\'s socket [default: RUNTIME_DIR/lxcfs/workers.sock]' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l config -d 'Read this configuration file [default: /etc/lxcfs/lxcfs.toml if it exists]' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l runtime-dir -d 'Directory of the pidfile and of lxcfs/, the daemon\'s state [default: /run]' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -s p -l pidfile -d 'Write and lock this pidfile [default: RUNTIME_DIR/lxcfs.pid]' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l nonempty -d 'Mount even on a directory that holds files' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l no-heal -d 'Leave dead mounts in containers alone at start' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l cache-ttl-ms -d 'Answer from one snapshot of a container for this long, 0 to 1000 [default: 5]' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l threads -d 'Serving threads [default: one per core, at most 4]' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l workers -d 'Who starts the workers that serve [default: own]' -r -f -a "own\t'the daemon itself'
outside\t'`lxcfs serve`, with fewer rights; the daemon only holds the mount'"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l workers-uid -d 'The user, besides root, whose `lxcfs serve` may serve with --workers outside' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -s u -l disable-swap -d 'Show no swap: totals 0, /proc/swaps empty' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l disable-zswap -d 'Show 0 in meminfo\'s Zswap lines' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l no-loadavg -d 'Show the host\'s load average instead of the container\'s' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l no-uptime -d 'Show the host\'s uptime instead of the container\'s' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l no-cpu-view -d 'Take the number of CPUs from the cpuset alone, whatever the quota (--cpus cpuset)' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l no-psi-poll -d 'Refuse pressure stall triggers (write and poll on /proc/pressure/*)' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l cpus -d 'What decides how many CPUs a container sees [default: quota]' -r -f -a "quota\t'the effective cpuset, narrowed to the quota rounded up'
cpuset\t'the effective cpuset alone'
host\t'all CPUs of the host'"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l cpu-numbering -d 'How the visible CPUs are numbered [default: sequential]' -r -f -a "sequential\t'0 to N-1'
physical\t'the host\'s numbers (not with --cpus quota)'"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l boundary -d 'Which cgroup of a process is its container [default: auto]' -r -f -a "auto\t'cgroup namespace, then the runtime\'s naming, then PID namespace, then host'
cgroupns\t'only the cgroup namespace decides'
runtime\t'only the runtime\'s naming decides'
pidns\t'only the PID namespace decides'
caller\t'the caller\'s own cgroup, whatever it is'"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l disable -d 'Do not serve these files, e.g. slabinfo,pressure,cpu: containers see the host\'s' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l memory-high -d 'Let memory.high count as a limit' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l no-ebpf -d 'Collect from cgroup files alone' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l log-level -d 'How much to log [default: info]; `lxcfs log-level` changes it while running' -r -f -a "error\t'what makes an answer wrong or impossible'
warn\t'what needs somebody\'s attention'
info\t'start, stop, features and their state'
debug\t'every decision'
trace\t'every request'"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l log-format -d 'What a log line looks like [default: human]' -r -f -a "human\t'for people and the journal'
json\t'one JSON object per line'"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l metrics -d 'Serve /livez, /readyz and /metrics on ADDRESS:PORT, PORT (loopback) or unix:/PATH' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -s o -d 'Mount options: those of libfuse are accepted, the mount\'s own are fixed' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -s v -l version -d 'Print the version'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -s d -l debug -d 'Log at level debug (--log-level debug)'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -s f -l foreground -d 'Stay in the foreground: always so'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -s l -l enable-loadavg -d 'Serve the container\'s load average: on unless --no-loadavg'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l enable-cfs -d 'Count the CPU quota: on unless --no-cpu-view'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l enable-pidfd -d 'Use pidfds: always so'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l enable-cgroup -d 'Serve /cgroup: not any more, cgroup namespaces have replaced it'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -l enable-psi-poll -d 'Serve pressure stall triggers: on unless --no-psi-poll'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -s s -d 'Serve with one thread: ignored, as by C lxcfs (--threads 1)'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand serve" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l base-dir -d 'What relative paths are relative to' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l join -d 'The holder\'s socket, for a worker from outside' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l server -d 'Whose worker it is then' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l crashed -d 'The latest workers before it that crashed' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l config -d 'Read this configuration file [default: /etc/lxcfs/lxcfs.toml if it exists]' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l runtime-dir -d 'Directory of the pidfile and of lxcfs/, the daemon\'s state [default: /run]' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -s p -l pidfile -d 'Write and lock this pidfile [default: RUNTIME_DIR/lxcfs.pid]' -r -F
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l nonempty -d 'Mount even on a directory that holds files' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l no-heal -d 'Leave dead mounts in containers alone at start' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l cache-ttl-ms -d 'Answer from one snapshot of a container for this long, 0 to 1000 [default: 5]' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l threads -d 'Serving threads [default: one per core, at most 4]' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l workers -d 'Who starts the workers that serve [default: own]' -r -f -a "own\t'the daemon itself'
outside\t'`lxcfs serve`, with fewer rights; the daemon only holds the mount'"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l workers-uid -d 'The user, besides root, whose `lxcfs serve` may serve with --workers outside' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -s u -l disable-swap -d 'Show no swap: totals 0, /proc/swaps empty' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l disable-zswap -d 'Show 0 in meminfo\'s Zswap lines' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l no-loadavg -d 'Show the host\'s load average instead of the container\'s' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l no-uptime -d 'Show the host\'s uptime instead of the container\'s' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l no-cpu-view -d 'Take the number of CPUs from the cpuset alone, whatever the quota (--cpus cpuset)' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l no-psi-poll -d 'Refuse pressure stall triggers (write and poll on /proc/pressure/*)' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l cpus -d 'What decides how many CPUs a container sees [default: quota]' -r -f -a "quota\t'the effective cpuset, narrowed to the quota rounded up'
cpuset\t'the effective cpuset alone'
host\t'all CPUs of the host'"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l cpu-numbering -d 'How the visible CPUs are numbered [default: sequential]' -r -f -a "sequential\t'0 to N-1'
physical\t'the host\'s numbers (not with --cpus quota)'"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l boundary -d 'Which cgroup of a process is its container [default: auto]' -r -f -a "auto\t'cgroup namespace, then the runtime\'s naming, then PID namespace, then host'
cgroupns\t'only the cgroup namespace decides'
runtime\t'only the runtime\'s naming decides'
pidns\t'only the PID namespace decides'
caller\t'the caller\'s own cgroup, whatever it is'"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l disable -d 'Do not serve these files, e.g. slabinfo,pressure,cpu: containers see the host\'s' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l memory-high -d 'Let memory.high count as a limit' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l no-ebpf -d 'Collect from cgroup files alone' -r -f -a "true\t''
false\t''"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l log-level -d 'How much to log [default: info]; `lxcfs log-level` changes it while running' -r -f -a "error\t'what makes an answer wrong or impossible'
warn\t'what needs somebody\'s attention'
info\t'start, stop, features and their state'
debug\t'every decision'
trace\t'every request'"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l log-format -d 'What a log line looks like [default: human]' -r -f -a "human\t'for people and the journal'
json\t'one JSON object per line'"
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l metrics -d 'Serve /livez, /readyz and /metrics on ADDRESS:PORT, PORT (loopback) or unix:/PATH' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -s o -d 'Mount options: those of libfuse are accepted, the mount\'s own are fixed' -r
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -s v -l version -d 'Print the version'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -s d -l debug -d 'Log at level debug (--log-level debug)'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -s f -l foreground -d 'Stay in the foreground: always so'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -s l -l enable-loadavg -d 'Serve the container\'s load average: on unless --no-loadavg'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l enable-cfs -d 'Count the CPU quota: on unless --no-cpu-view'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l enable-pidfd -d 'Use pidfds: always so'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l enable-cgroup -d 'Serve /cgroup: not any more, cgroup namespaces have replaced it'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -l enable-psi-poll -d 'Serve pressure stall triggers: on unless --no-psi-poll'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -s s -d 'Serve with one thread: ignored, as by C lxcfs (--threads 1)'
complete -c lxcfs -n "__fish_lxcfs_using_subcommand worker" -s h -l help -d 'Print help (see more with \'--help\')'
