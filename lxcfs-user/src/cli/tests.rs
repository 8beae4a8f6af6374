use std::collections::BTreeSet;

use super::args::{Cli, Command};
use super::*;
use crate::config::{LogLevel, Settings};
use crate::policy::{CpuPolicy, ViewPolicy};

/// Parses what a shell would pass; without a configuration file.
fn parse(line: &str) -> Result<Serve, String> {
    let cli = Cli::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())?;
    assert!(cli.command.is_none(), "{line}");
    let (settings, notes) = cli.serve.settings()?;
    let config = Config::new(&settings, Path::new("/cwd")).map_err(|error| error.to_string())?;
    Ok(Serve { config, notes })
}

fn plain(mountpoint: &str) -> Config {
    let settings = Settings {
        mountpoint: Some(mountpoint.into()),
        ..Settings::default()
    };
    Config::new(&settings, Path::new("/cwd")).unwrap()
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

/// Start scripts, units and DaemonSets that users have today, line by line.
#[test]
fn command_lines_found_in_the_wild_mean_the_recommended_set() {
    for (line, mountpoint) in [
        // Debian's unit, Proxmox, and a start by hand.
        ("/usr/bin/lxcfs /var/lib/lxcfs", "/var/lib/lxcfs"),
        ("lxcfs /var/lib/lxcfs", "/var/lib/lxcfs"),
        // A unit written by hand for CentOS.
        ("/usr/bin/lxcfs -f /var/lib/lxcfs", "/var/lib/lxcfs"),
        // A unit whose containers bind /var/lib/lxc as a whole.
        ("/usr/bin/lxcfs /var/lib/lxc/lxcfs/", "/var/lib/lxc/lxcfs"),
        // Start scripts of DaemonSets, after nsenter.
        (
            "/usr/local/bin/lxcfs /var/lib/lxcfs/ --enable-cfs -l",
            "/var/lib/lxcfs",
        ),
        (
            "/usr/local/bin/lxcfs /var/lib/lxc/lxcfs/",
            "/var/lib/lxc/lxcfs",
        ),
        // Incus.
        (
            "lxcfs /var/lib/incus-lxcfs --enable-loadavg --enable-cfs",
            "/var/lib/incus-lxcfs",
        ),
        // libfuse habits.
        (
            "lxcfs -s -f -o allow_other /var/lib/lxcfs",
            "/var/lib/lxcfs",
        ),
        (
            "lxcfs -o allow_other,direct_io,entry_timeout=0.5,attr_timeout=0.5 /var/lib/lxcfs",
            "/var/lib/lxcfs",
        ),
        ("lxcfs -sfl --enable-pidfd /var/lib/lxcfs", "/var/lib/lxcfs"),
        (
            "lxcfs --enable-cgroup --enable-psi-poll -- /var/lib/lxcfs",
            "/var/lib/lxcfs",
        ),
    ] {
        assert_eq!(parse(line).unwrap().config, plain(mountpoint), "{line}");
    }
}

/// All that C lxcfs 3 to 7 take, in every spelling of getopt_long, on both sides.
#[test]
fn every_option_of_c_lxcfs_is_taken_before_and_after_the_mountpoint() {
    for options in [
        "-d",
        "--debug",
        "-f",
        "--foreground",
        "-l",
        "--enable-loadavg",
        "-u",
        "--disable-swap",
        "--disable-zswap",
        "--enable-cfs",
        "--enable-pidfd",
        "--enable-psi-poll",
        "--enable-cgroup",
        "--runtime-dir=/run/second",
        "--runtime-dir /run/second",
        "-p /x.pid",
        "-p/x.pid",
        "--pidfile=/x.pid",
        "--pidfile /x.pid",
        "-s",
        "-o allow_other",
        "-oallow_other",
        "-o allow_other,nonempty,direct_io,entry_timeout=0.5,attr_timeout=0.5",
        "-o allow_other -o nonempty",
        // Short ones in one word, the last with its value beside it or behind it.
        "-lus",
        "-fdl",
        "-fup /x.pid",
        "-lp/x.pid",
        "-so allow_other",
        "-foallow_other",
    ] {
        let before = parse(&format!("lxcfs {options} /m"));
        let before = before.unwrap_or_else(|error| panic!("{options}: {error}"));
        let after = parse(&format!("lxcfs /m {options}"));
        let after = after.unwrap_or_else(|error| panic!("{options}: {error}"));
        assert_eq!(before.config.mountpoint, Path::new("/m"), "{options}");
        assert_eq!(before.config, after.config, "{options}");
        assert_eq!(before.notes, after.notes, "{options}");
    }
}

#[test]
fn lxds_snap_line_names_its_pidfile_after_the_mountpoint() {
    let line = "lxcfs --enable-loadavg --enable-cfs /var/snap/lxd/common/var/lib/lxcfs \
                -p /var/snap/lxd/common/lxcfs.pid";
    let expected = Config {
        pidfile: "/var/snap/lxd/common/lxcfs.pid".into(),
        ..plain("/var/snap/lxd/common/var/lib/lxcfs")
    };
    assert_eq!(parse(line).unwrap().config, expected);
}

#[test]
fn debug_of_the_start_scripts_third_argument_raises_the_log_level() {
    for line in ["lxcfs /m -d", "lxcfs --debug /m", "lxcfs -fd /m"] {
        let expected = Config {
            log_level: LogLevel::Debug,
            ..plain("/m")
        };
        assert_eq!(parse(line).unwrap().config, expected, "{line}");
    }
}

#[test]
fn swap_and_zswap_go_off_in_either_spelling_and_place() {
    for line in [
        "lxcfs -u --disable-zswap /m",
        "lxcfs /m --disable-swap --disable-zswap",
        "lxcfs --disable-zswap /m -u",
        "lxcfs -uu --disable-zswap --disable-zswap /m",
    ] {
        let expected = Config {
            views: ViewPolicy {
                swap: false,
                zswap: false,
                ..ViewPolicy::default()
            },
            ..plain("/m")
        };
        assert_eq!(parse(line).unwrap().config, expected, "{line}");
    }
}

#[test]
fn pidfile_and_runtime_dir_take_every_getopt_spelling() {
    for line in [
        "lxcfs -p /x.pid /m",
        "lxcfs -p/x.pid /m",
        "lxcfs --pidfile /x.pid /m",
        "lxcfs --pidfile=/x.pid /m",
        // getopt_long accepts unambiguous abbreviations.
        "lxcfs --pidf=/x.pid /m",
    ] {
        assert_eq!(
            parse(line).unwrap().config.pidfile,
            Path::new("/x.pid"),
            "{line}"
        );
    }
    let config = parse("lxcfs /m --runtime-dir=/run/second").unwrap().config;
    assert_eq!(config.pidfile, Path::new("/run/second/lxcfs.pid"));
    assert_eq!(config.state_dir(), Path::new("/run/second/lxcfs"));
}

#[test]
fn every_obsolete_option_is_explained_in_one_line() {
    let options = [
        "-f",
        "-l",
        "-s",
        "--enable-cfs",
        "--enable-pidfd",
        "--enable-cgroup",
        "--enable-psi-poll",
        "-o allow_other",
    ];
    for option in options {
        let notes = parse(&format!("lxcfs {option} /m")).unwrap().notes;
        assert_eq!(notes.len(), 1, "{option}: {notes:?}");
        assert!(!notes[0].contains('\n'), "{option}");
        assert!(notes[0].contains(option), "{option}: {}", notes[0]);
    }
    let all = parse(&format!("lxcfs {} /m", options.join(" "))).unwrap();
    assert_eq!(all.notes.len(), options.len());
}

#[test]
fn nonempty_keeps_its_meaning() {
    assert!(parse("lxcfs -o nonempty /m").unwrap().config.nonempty);
    assert!(parse("lxcfs --nonempty /m").unwrap().config.nonempty);
    assert!(!parse("lxcfs -o ro /m").unwrap().config.nonempty);
}

#[test]
fn what_is_wrong_is_named() {
    for (line, expected) in [
        ("lxcfs", "no mountpoint"),
        ("lxcfs --frobnicate /m", "--frobnicate"),
        ("lxcfs /m /n", "cannot be used"),
        ("lxcfs -o frob=1 /m", "frob=1"),
        ("lxcfs --cpus all /m", "quota"),
        ("lxcfs --threads many /m", "many"),
        ("lxcfs --metrics here /m", "unix:/PATH"),
    ] {
        let error = parse(line).unwrap_err();
        assert!(error.contains(expected), "{line}: {error}");
    }
}

#[test]
fn a_switch_of_the_file_can_be_undone() {
    let file = Settings::parse_toml(
        Path::new("f"),
        "disable-swap = true\nno-loadavg = true\nno-cpu-view = true\nno-ebpf = true",
    )
    .unwrap();
    let line = "lxcfs --disable-swap=false -l --enable-cfs --no-ebpf=false /m";
    let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
    let (flags, _) = cli.serve.settings().unwrap();
    let config = Config::new(&flags.over(file), Path::new("/")).unwrap();
    assert_eq!(config, plain("/m"));
}

#[test]
fn the_newer_switch_decides_over_the_older() {
    let config = parse("lxcfs -l --no-loadavg --enable-cfs --cpus host /m")
        .unwrap()
        .config;
    assert!(!config.views.loadavg);
    assert_eq!(config.views.cpus, CpuPolicy::Host);
}

#[test]
fn a_first_word_decides_between_command_and_mountpoint() {
    let cli = Cli::try_parse_from(["lxcfs", "webhook", "--help"]).unwrap();
    assert!(
        matches!(cli.command, Some(Command::Webhook(passed)) if passed.arguments == ["--help"])
    );
    assert_eq!(
        parse("lxcfs ./webhook").unwrap().config.mountpoint,
        Path::new("/cwd/webhook")
    );
    assert_eq!(
        parse("lxcfs -l webhook").unwrap().config.mountpoint,
        Path::new("/cwd/webhook")
    );
}

#[test]
fn the_file_has_a_key_for_every_flag_and_no_other() {
    let flags: BTreeSet<String> = Cli::command()
        .get_arguments()
        .filter(|arg| arg.get_help_heading() != Some("Accepted for compatibility with C lxcfs"))
        .filter_map(|arg| {
            arg.get_long().or(arg
                .get_value_names()
                .filter(|_| arg.is_positional())
                .map(|_| "mountpoint"))
        })
        .filter(|flag| !["config", "version", "help"].contains(flag))
        .map(str::to_owned)
        .collect();
    // serde lists the keys it knows when it meets one it does not.
    let error = Settings::parse_toml(Path::new("f"), "no-such-key = 1")
        .unwrap_err()
        .to_string();
    let (_, known) = error.split_once("expected one of").unwrap();
    let keys: BTreeSet<String> = known
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();
    assert_eq!(flags, keys);
}

#[test]
fn help_is_no_failure_and_names_everything() {
    for line in [["lxcfs", "--help"], ["lxcfs", "-h"]] {
        let error = Cli::try_parse_from(line).unwrap_err();
        assert!(!error.use_stderr());
        let text = error.to_string();
        for expected in [
            "MOUNTPOINT",
            "--enable-loadavg",
            "/etc/lxcfs/lxcfs.toml",
            "USR2",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }
    for line in [["lxcfs", "--version"], ["lxcfs", "-v"], ["lxcfs", "-V"]] {
        let error = Cli::try_parse_from(line).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("lxcfs {}\n", env!("CARGO_PKG_VERSION"))
        );
    }
}
