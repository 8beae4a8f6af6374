//! The same questions to the same tools on the host and in the container, side by side.

use std::fmt::Write as _;

/// A row: the tool as a reader would call it, and shell text that asks it for one line.
pub(crate) struct Question {
    pub(crate) tool: &'static str,
    pub(crate) shell: &'static str,
}

const fn ask(tool: &'static str, shell: &'static str) -> Question {
    Question { tool, shell }
}

pub(crate) const QUESTIONS: &[Question] = &[
    ask("nproc", "nproc"),
    ask("getconf _NPROCESSORS_ONLN", "getconf _NPROCESSORS_ONLN"),
    ask("lscpu, CPU(s)", "lscpu | sed -n 's/^CPU(s): *//p'"),
    ask(
        "grep -c ^processor /proc/cpuinfo",
        "grep -c ^processor /proc/cpuinfo",
    ),
    ask(
        "free -m, total",
        "free -m | awk '/^Mem:/ { print $2 \" MiB\" }'",
    ),
    ask(
        "free -m, used",
        "free -m | awk '/^Mem:/ { print $3 \" MiB\" }'",
    ),
    ask(
        "free -m, available",
        "free -m | awk '/^Mem:/ { print $7 \" MiB\" }'",
    ),
    ask(
        "free -m, swap",
        "free -m | awk '/^Swap:/ { print $2 \" MiB\" }'",
    ),
    ask("uptime -p", "uptime -p"),
    ask("cat /proc/loadavg", "cat /proc/loadavg"),
    ask(
        "top -bn1, tasks",
        "top -bn1 | sed -n 's/^Tasks: *\\([0-9]* total, *[0-9]* running\\).*/\\1/p'",
    ),
    ask(
        "top -bn1, memory",
        "top -bn1 | sed -n 's/^\\([KMG]iB\\) Mem *: *\\([0-9.]*\\) total.*/\\2 \\1/p'",
    ),
    ask(
        "vmstat, processes r b",
        "vmstat | awk 'NR == 3 { print $1, $2 }'",
    ),
    ask(
        "ps -e, oldest started",
        "ps -e --no-headers -o lstart --sort=start_time | head -1",
    ),
];

/// Draws rows of question, host's answer and container's answer.
pub(crate) fn draw(rows: &[(&str, String, String)]) -> String {
    let width = |pick: fn(&(&str, String, String)) -> usize, least: usize| {
        rows.iter().map(pick).max().unwrap_or(0).max(least)
    };
    let first = width(|row| row.0.len(), 4);
    let second = width(|row| row.1.len(), 4);
    let mut text = format!("{:first$}  {:second$}  container\n", "tool", "host");
    for (tool, host, container) in rows {
        let _ = writeln!(text, "{tool:first$}  {host:second$}  {container}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{QUESTIONS, draw};
    use crate::command::output;

    #[test]
    fn columns_line_up() {
        let rows = [("nproc", "64".to_owned(), "1".to_owned())];
        assert_eq!(draw(&rows), "tool   host  container\nnproc  64    1\n");
    }

    #[test]
    fn every_question_has_one_line_of_answer_here() {
        for question in QUESTIONS {
            let answer = output(Command::new("sh").args(["-c", question.shell])).unwrap();
            assert_eq!(answer.lines().count(), 1, "{}: {answer:?}", question.tool);
        }
    }
}
