use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;

/// One point for every family, so that a check of the text sees them all.
#[derive(Debug)]
struct Everything;

impl Source for Everything {
    fn figures(&self, out: &mut Figures) {
        for family in FAMILIES {
            let labels = vec!["x\"\\\n"; family.labels.len()];
            if family.kind == Kind::Histogram {
                let mut value = Distribution {
                    sum: 0.5,
                    ..Distribution::default()
                };
                value.buckets[0] = 2;
                value.buckets[LATENCY_BOUNDS.len()] = 1;
                out.distribution(family, &labels, value);
            } else {
                out.count(family, &labels, 7);
            }
        }
    }
}

#[test]
fn promtool_finds_nothing_to_say() {
    let text = Metrics::new(vec![Arc::new(Everything)]).text();
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is missing: apt-get install prometheus");
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

#[test]
fn the_text_has_every_family_with_its_type_and_value() {
    let text = Metrics::new(vec![Arc::new(Everything)]).text();
    for family in FAMILIES {
        let kind = format!("{:?}", family.kind).to_lowercase();
        let head = format!("# TYPE {} {kind}\n", family.name);
        assert!(text.contains(&head), "{head} in {text}");
    }
    assert!(text.contains("lxcfs_requests_in_flight 7\n"), "{text}");
    let buckets: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("lxcfs_request_duration_seconds_bucket"))
        .collect();
    assert_eq!(buckets.len(), LATENCY_BOUNDS.len() + 1);
    assert!(buckets[0].ends_with(" 2"), "{}", buckets[0]);
    let last = buckets[LATENCY_BOUNDS.len()];
    assert!(
        last.contains("le=\"+Inf\"") && last.ends_with(" 3"),
        "cumulative: {last}"
    );
}

#[test]
fn docs_list_exactly_these_families() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let docs = std::fs::read_to_string(path).expect(path);
    let listed: Vec<&str> = docs
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name)
        .collect();
    let known: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
    assert_eq!(listed, known, "docs/metrics.md and FAMILIES differ");
    for family in FAMILIES {
        let kind = format!("{:?}", family.kind).to_lowercase();
        let labels: Vec<String> = family.labels.iter().map(|l| format!("`{l}`")).collect();
        let row = format!(
            "| `{}` | {kind} | {} | {} |",
            family.name,
            labels.join(" "),
            family.help
        );
        assert!(docs.contains(&row), "expected in docs/metrics.md:\n{row}");
    }
}
