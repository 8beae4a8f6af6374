//! A mount's files as facts: one value per file and line, whatever the order of lines.

use std::collections::BTreeMap;

/// File and line, and its value.
pub(crate) type Facts = BTreeMap<(String, String), String>;

/// The facts in files given as `path mode` and content.
pub(crate) fn facts<'a>(files: impl Iterator<Item = (&'a str, &'a str)>) -> Facts {
    let mut all = Facts::new();
    for (name, text) in files {
        let (path, mode) = name.split_once(' ').unwrap_or((name, ""));
        let mut add = |line: &str, value: &str| {
            all.insert((path.to_owned(), line.to_owned()), value.to_owned());
        };
        add("presence", "yes");
        add("mode", mode);
        match path {
            "proc/meminfo" => meminfo(text, &mut add),
            "proc/stat" => stat(text, &mut add),
            "proc/cpuinfo" => cpuinfo(text, &mut add),
            "proc/uptime" => fields(text, &["age", "idle"], &mut add),
            "proc/loadavg" => {
                let text = text.replace('/', " ");
                let names = [
                    "1 minute",
                    "5 minutes",
                    "15 minutes",
                    "running",
                    "threads",
                    "newest PID",
                ];
                fields(&text, &names, &mut add);
            }
            "proc/swaps" => swaps(text, &mut add),
            "proc/diskstats" => diskstats(text, &mut add),
            "proc/slabinfo" => add("rows", &text.lines().skip(2).count().min(1).to_string()),
            _ if path.starts_with("proc/pressure/") => pressure(text, &mut add),
            // Long, moving and ours alone.
            "proc/vmstat" => {}
            _ => add("content", text.trim_end()),
        }
    }
    all
}

type Add<'a> = &'a mut dyn FnMut(&str, &str);

fn meminfo(text: &str, add: Add<'_>) {
    for line in text.lines() {
        if let Some((name, value)) = line.split_once(':') {
            add(name, value.trim());
            add(&format!("{name} width"), &line.len().to_string());
        }
    }
}

fn stat(text: &str, add: Add<'_>) {
    const TIMES: [&str; 10] = [
        "user",
        "nice",
        "system",
        "idle",
        "iowait",
        "irq",
        "softirq",
        "steal",
        "guest",
        "guest_nice",
    ];
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        if name.starts_with("cpu") {
            for (field, value) in TIMES.iter().zip(words) {
                add(&format!("{name} {field}"), value);
            }
        } else {
            // Of intr and softirq the total.
            add(name, words.next().unwrap_or_default());
        }
    }
}

fn cpuinfo(text: &str, add: Add<'_>) {
    let mut blocks = 0_u32;
    for block in text.split("\n\n").filter(|block| !block.trim().is_empty()) {
        for line in block.lines() {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            add(&format!("{} of CPU {blocks}", name.trim()), value.trim());
        }
        blocks += 1;
    }
    add("CPUs", &blocks.to_string());
}

fn swaps(text: &str, add: Add<'_>) {
    let mut lines = text.lines();
    add("header", lines.next().unwrap_or_default());
    add("rows", &lines.clone().count().to_string());
    for line in lines {
        fields(line, &["Filename", "Type", "Size", "Used", "Priority"], add);
    }
}

fn diskstats(text: &str, add: Add<'_>) {
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let device = words.get(2).copied().unwrap_or_default();
        add(device, "shown");
        add(&format!("{device} columns"), &words.len().to_string());
        for (number, value) in words.iter().enumerate().skip(3) {
            add(&format!("{device} field {}", number + 1), value);
        }
    }
}

fn pressure(text: &str, add: Add<'_>) {
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        for word in words {
            let (field, value) = word.split_once('=').unwrap_or((word, ""));
            add(&format!("{name} {field}"), value);
        }
    }
}

fn fields(text: &str, names: &[&str], add: Add<'_>) {
    let words: Vec<&str> = text.split_whitespace().collect();
    for (name, value) in names.iter().zip(&words) {
        add(name, value);
    }
    add("columns", &words.len().to_string());
}
