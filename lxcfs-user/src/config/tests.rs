use super::*;
use proptest::prelude::*;

fn from_toml(text: &str) -> Result<Config, ConfigError> {
    let settings = Settings::parse_toml(Path::new("/etc/lxcfs/lxcfs.toml"), text)?;
    Config::new(&settings, Path::new("/cwd"))
}

#[test]
fn an_empty_file_and_a_mountpoint_give_the_recommended_set() {
    let config = from_toml("mountpoint = '/var/lib/lxcfs/'").unwrap();
    assert_eq!(config.mountpoint, Path::new("/var/lib/lxcfs"));
    assert_eq!(config.mountpoint.as_os_str(), "/var/lib/lxcfs");
    assert_eq!(config.pidfile, Path::new("/run/lxcfs.pid"));
    assert_eq!(config.views, ViewPolicy::default());
    assert!(config.ebpf && config.heal);
    assert_eq!(
        config.control_socket(),
        Path::new("/run/lxcfs/control.sock")
    );
}

#[test]
fn unknown_keys_name_the_key_and_the_file() {
    let error = from_toml("mountpoint = '/m'\ndisable-swop = true")
        .unwrap_err()
        .to_string();
    assert!(error.contains("/etc/lxcfs/lxcfs.toml"), "{error}");
    assert!(error.contains("disable-swop"), "{error}");
    assert!(
        error.contains("disable-swap"),
        "lists what it knows: {error}"
    );
}

#[test]
fn unknown_choices_list_the_known_ones() {
    let error = from_toml("mountpoint = '/m'\ncpus = 'all'")
        .unwrap_err()
        .to_string();
    assert!(error.contains("quota, cpuset, host"), "{error}");
    assert!(error.contains("line 2"), "{error}");
}

#[test]
fn no_mountpoint_is_an_error_that_shows_one() {
    for text in ["", "mountpoint = ''"] {
        let error = from_toml(text).unwrap_err().to_string();
        assert!(error.contains("lxcfs /var/lib/lxcfs"), "{error}");
    }
}

#[test]
fn what_stands_above_wins_and_silence_lets_through() {
    let file = Settings::parse_toml(
        Path::new("f"),
        "mountpoint = '/file'\ndisable-swap = true\ncpus = 'host'\nthreads = 2",
    )
    .unwrap();
    let flags = Settings {
        disable_swap: Some(false),
        threads: Some(3),
        ..Settings::default()
    };
    let config = Config::new(&flags.over(file), Path::new("/")).unwrap();
    assert_eq!(config.mountpoint, Path::new("/file"));
    assert!(config.views.swap);
    assert_eq!(config.views.cpus, CpuPolicy::Host);
    assert_eq!(config.threads, Some(3));
}

#[test]
fn a_flag_for_the_cpu_view_hides_the_files_other_spelling() {
    let file = Settings::parse_toml(Path::new("f"), "mountpoint='/m'\nno-cpu-view = true").unwrap();
    let flags = Settings {
        cpus: Some(CpuPolicy::Host),
        ..Settings::default()
    };
    let config = Config::new(&flags.over(file), Path::new("/")).unwrap();
    assert_eq!(config.views.cpus, CpuPolicy::Host);
}

#[test]
fn contradictions_and_ranges_are_refused_with_the_remedy() {
    for (text, expected) in [
        ("cpu-numbering = 'physical'", "--cpus cpuset"),
        ("cpus = 'host'\nno-cpu-view = true", "leave one out"),
        ("threads = 0", "1 to 64"),
        ("cache-ttl-ms = 5000", "0 to 1000"),
        ("metrics = 'here'", "unix:/PATH"),
        ("metrics = 'unix:relative'", "slash"),
    ] {
        let error = from_toml(&format!("mountpoint = '/m'\n{text}"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_runtime_dir_moves_the_pidfile_with_it() {
    let file = Settings::parse_toml(Path::new("f"), "pidfile = '/run/file.pid'").unwrap();
    let flags = Settings {
        mountpoint: Some("rel/mount".into()),
        runtime_dir: Some("run2".into()),
        ..Settings::default()
    };
    let config = Config::new(&flags.over(file), Path::new("/cwd")).unwrap();
    assert_eq!(config.pidfile, Path::new("/cwd/run2/lxcfs.pid"));
    assert_eq!(config.mountpoint, Path::new("/cwd/rel/mount"));
}

#[test]
fn a_port_alone_is_loopback() {
    for (text, expected) in [
        ("9100", "127.0.0.1:9100"),
        (":9100", "127.0.0.1:9100"),
        ("0.0.0.0:9100", "0.0.0.0:9100"),
        ("[::1]:9100", "[::1]:9100"),
        ("unix:/run/x.sock", "unix:/run/x.sock"),
    ] {
        assert_eq!(text.parse::<Listen>().unwrap().to_string(), expected);
    }
}

#[test]
fn every_choice_has_one_name() {
    fn check<T: Named + std::fmt::Debug>() {
        for (name, choice, _) in T::NAMES {
            assert_eq!(choice.name(), *name);
            assert_eq!(T::from_name(name), Some(*choice));
        }
    }
    check::<CpuPolicy>();
    check::<CpuNumbering>();
    check::<BoundaryPolicy>();
    check::<LogLevel>();
    check::<LogFormat>();
}

proptest! {
    #[test]
    fn any_text_is_a_configuration_or_an_error(text in "(?s).{0,200}") {
        let _ = from_toml(&text);
    }

    #[test]
    fn any_address_is_parsed_or_refused(text in ".{0,60}") {
        let _ = text.parse::<Listen>();
    }
}

#[test]
fn the_example_file_shows_the_defaults_of_every_key() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/lxcfs.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let shown = Settings::parse_toml(Path::new(path), &text).unwrap();
    let shown = Settings {
        mountpoint: Some("/m".into()),
        ..shown
    };
    let bare = Settings {
        mountpoint: Some("/m".into()),
        ..Settings::default()
    };
    let config = |settings| Config::new(settings, Path::new("/")).unwrap();
    assert_eq!(config(&shown), config(&bare));
    // Keys without a default are there as comments that parse, too.
    let all: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.contains(" = ") => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let all = Settings::parse_toml(Path::new(path), &all).unwrap();
    assert!(all.mountpoint.is_some() && all.pidfile.is_some());
    assert!(all.threads.is_some() && all.metrics.is_some());
}
