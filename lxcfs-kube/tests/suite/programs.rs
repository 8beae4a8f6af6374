//! The manifests and the programs they start, held together: no manifest may use an option
//! that its program does not have, and `lxcfs` hands on what is the other program's.

use std::path::Path;
use std::process::Command;

use clap::Parser as _;
use lxcfs_kube::manifests::{Options, Part};
use lxcfs_kube::mutate::{Config, Mode, Runtime};
use serde_json::Value;

/// Every choice that adds a word to a command line.
fn everything() -> Options {
    Options {
        config: Config {
            mode: Mode::Attach,
            runtime: Runtime::Crun,
            files: "-cpu,+node".to_owned(),
            excluded_namespaces: vec!["lxcfs-system".to_owned(), "ci".to_owned()],
            excluded_runtime_classes: vec!["kata".to_owned()],
            idmapped_mounts: true,
            ..Config::default()
        },
        all: true,
        namespaces: vec!["web".to_owned()],
        start_taint: true,
        ..Options::default()
    }
}

fn commands(options: &Options) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    for part in Part::ALL {
        for object in part.objects(options).unwrap() {
            let pod = &object["spec"]["template"]["spec"];
            for list in ["initContainers", "containers"] {
                for container in pod[list].as_array().into_iter().flatten() {
                    // `args` would be appended to it, and nothing but these starts a program.
                    assert!(container.get("args").is_none());
                    let words = container["command"].as_array().unwrap().iter();
                    let words = words.map(|word| word.as_str().unwrap().to_owned());
                    commands.push(words.collect());
                }
            }
        }
    }
    commands
}

#[test]
fn every_command_line_of_the_manifests_is_one_its_program_takes() {
    let mut programs = std::collections::BTreeMap::<String, usize>::new();
    for options in [Options::default(), everything()] {
        for command in commands(&options) {
            let taken = match command[0].as_str() {
                "lxcfs" => lxcfs_user::cli::args::Cli::try_parse_from(&command).map(|cli| {
                    let serves = cli.command.is_none();
                    format!("lxcfs {}", if serves { "serve" } else { "command" })
                }),
                "lxcfs-webhook" => lxcfs_kube::cli::Cli::try_parse_from(&command)
                    .map(|_| "lxcfs-webhook".to_owned()),
                other => panic!("{other} is not in the image"),
            };
            let program = taken.unwrap_or_else(|error| panic!("{command:?}\n{error}"));
            *programs.entry(program).or_default() += 1;
        }
    }
    assert_eq!(programs.len(), 3, "all were seen: {programs:?}");
}

#[test]
fn a_value_of_the_manifests_arrives_where_it_belongs() {
    use lxcfs_user::cli::args::{Cli, Command};
    let agents = commands(&everything()).into_iter().filter_map(|command| {
        let cli = Cli::try_parse_from(&command).ok()?;
        match cli.command? {
            Command::Agent(agent) => Some(agent),
            _ => None,
        }
    });
    let agents: Vec<_> = agents.collect();
    assert_eq!(agents.len(), 2, "one per profile");
    for agent in agents {
        assert!(agent.policy.all);
        assert_eq!(agent.policy.files, "-cpu,+node");
        assert_eq!(agent.policy.namespace, ["web"]);
        assert_eq!(agent.policy.exclude_namespace, ["lxcfs-system", "ci"]);
        assert_eq!(agent.mount.to_str(), Some("/var/lib/lxc/lxcfs"));
    }
}

#[test]
fn alerts_watch_metrics_that_exist() {
    // Tests beside the programs hold these two documents to what is really told.
    let known = [
        include_str!("../../../docs/metrics.md"),
        include_str!("../../../docs/kubernetes.md"),
    ];
    let objects = Part::Monitoring.objects(&Options::default()).unwrap();
    let groups = objects
        .iter()
        .filter_map(|object| object["spec"]["groups"].as_array());
    let rules = groups
        .flatten()
        .filter_map(|group| group["rules"].as_array());
    let rules: Vec<&Value> = rules.flatten().collect();
    assert!(rules.len() > 5);
    for rule in rules {
        let expression = rule["expr"].as_str().unwrap();
        let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
        let names: Vec<&str> = expression
            .split(word)
            .filter(|name| name.starts_with("lxcfs_"))
            .collect();
        assert!(!names.is_empty(), "{expression}");
        for name in names {
            let row = [format!("| `{name}`"), format!("| `{name}{{")];
            let found = known
                .iter()
                .any(|text| row.iter().any(|row| text.contains(row)));
            assert!(found, "{name} of {expression} is told by nobody");
        }
    }
}

#[test]
fn lxcfs_hands_webhook_and_manifests_to_the_other_program() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "-p", "lxcfs-user", "--bin", "lxcfs"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status();
    assert!(built.is_ok_and(|status| status.success()));
    // Installed side by side, as in the image.
    let lxcfs = Path::new(env!("CARGO_BIN_EXE_lxcfs-webhook")).with_file_name("lxcfs");
    let says = |arguments: &[&str]| {
        let output = Command::new(&lxcfs).args(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(says(&["webhook", "--help"]).contains("--tls-dir"));
    assert!(says(&["manifests", "simple"]).contains("kind: DaemonSet"));
}

#[test]
fn the_compose_example_says_what_the_manifests_say() {
    let text = include_str!("../../../deploy/compose.yaml");
    let file: Value = serde_saphyr::from_str(text).unwrap();
    let services = &file["services"];
    for (name, serves) in [("daemon", true), ("agent", false)] {
        let service = &services[name];
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(service["image"], format!("localhost/lxcfs:{version}"));
        // The image's entry point is lxcfs.
        let words = service["command"].as_array().unwrap().iter();
        let words = ["lxcfs"]
            .into_iter()
            .chain(words.map(|word| word.as_str().unwrap()));
        let cli = lxcfs_user::cli::args::Cli::try_parse_from(words).unwrap();
        assert_eq!(cli.command.is_none(), serves);
        assert_eq!(
            (&service["pid"], &service["cgroup"]),
            (&"host".into(), &"host".into())
        );
        let volumes: Vec<&str> = service["volumes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|volume| volume.as_str().unwrap())
            .collect();
        let propagation = if serves { "rshared" } else { "rslave" };
        assert_eq!(
            volumes[0],
            format!("/var/lib/lxc:/var/lib/lxc:{propagation}")
        );
    }
    assert_eq!(services["daemon"]["privileged"], true);
    let agent = &services["agent"];
    assert!(agent.get("privileged").is_none());
    assert_eq!(agent["cap_drop"], serde_json::json!(["ALL"]));
    assert_eq!(
        agent["cap_add"],
        serde_json::json!(lxcfs_common::pod::AGENT_CAPABILITIES)
    );
    assert_eq!(services["app"]["labels"][lxcfs_common::pod::INJECT], "true");
}
