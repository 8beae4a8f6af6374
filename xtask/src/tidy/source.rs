//! A Rust source file as the rules see it: the paths it names, with comments, strings and unit
//! tests left out.
//!
//! This is no parser: it reads tokens, so that paths inside macros count too.

/// A path such as `std::fs::read`, with the line it starts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedPath {
    pub(crate) line: usize,
    pub(crate) segments: Vec<String>,
}

impl NamedPath {
    /// Whether the path is `prefix` or continues it; `prefix` is written with `::`.
    pub(crate) fn starts_with(&self, prefix: &str) -> bool {
        let mut segments = self.segments.iter();
        prefix
            .split("::")
            .all(|wanted| segments.next().is_some_and(|segment| segment == wanted))
    }
}

/// The part of a file above its unit tests: everything before the first `#[cfg(test)]` that
/// stands before a `mod`.
pub(crate) fn without_unit_tests(text: &str) -> &str {
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let rest = &text[offset + line.len()..];
        if line.trim() == "#[cfg(test)]" && rest.trim_start().starts_with("mod ") {
            return &text[..offset];
        }
        offset += line.len();
    }
    text
}

/// Every path that `text` names, groups of `use` spelled out.
pub(crate) fn paths(text: &str) -> Vec<NamedPath> {
    let tokens = tokens(text);
    let mut paths = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        at = read_path(&tokens, at, &[], &mut paths);
    }
    paths
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `::`
    Join,
    Other(char),
}

/// Reads one path at `at` and returns where to go on. `prefix` is what a group continues.
fn read_path(
    tokens: &[(usize, Token)],
    mut at: usize,
    prefix: &[String],
    paths: &mut Vec<NamedPath>,
) -> usize {
    let Some((line, Token::Word(first))) = tokens.get(at) else {
        return at + 1;
    };
    // `a.b` names a field or method, and `a::b` after `>` or `)` goes on with a type.
    let follows = at
        .checked_sub(1)
        .and_then(|before| tokens.get(before))
        .map(|(_, token)| token);
    let is_root = prefix.is_empty() && follows == Some(&Token::Join) && at >= 2;
    if first == "use"
        || follows == Some(&Token::Other('.'))
        || (is_root && continues(&tokens[at - 2].1))
    {
        return at + 1;
    }
    let mut segments = prefix.to_vec();
    segments.push(first.clone());
    at += 1;
    while tokens
        .get(at)
        .is_some_and(|(_, token)| *token == Token::Join)
    {
        match tokens.get(at + 1) {
            Some((_, Token::Word(word))) => {
                segments.push(word.clone());
                at += 2;
            }
            Some((_, Token::Other('{'))) => {
                at += 2;
                while let Some((_, token)) = tokens.get(at) {
                    match token {
                        Token::Other('}') => return at + 1,
                        _ => at = read_path(tokens, at, &segments, paths),
                    }
                }
                return at;
            }
            _ => break,
        }
    }
    paths.push(NamedPath {
        line: *line,
        segments,
    });
    at
}

fn continues(token: &Token) -> bool {
    match token {
        Token::Word(word) => word != "use",
        other => matches!(other, Token::Other('>' | ')')),
    }
}

fn tokens(text: &str) -> Vec<(usize, Token)> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    let look = |at: usize| chars.get(at).copied().unwrap_or('\0');
    while at < chars.len() {
        let start = at;
        match (chars[at], look(at + 1)) {
            ('/', '/') => at = find(&chars, at, "\n"),
            ('/', '*') => at = skip_block_comment(&chars, at),
            ('r', '"' | '#') if raw_string_end(&chars, at).is_some() => {
                at = raw_string_end(&chars, at).unwrap_or(at + 1);
            }
            ('"', _) => at = skip_string(&chars, at),
            // A lifetime is a quote, a letter and no closing quote; anything else is a character.
            ('\'', c) if c == '\\' || look(at + 2) == '\'' => {
                at += if c == '\\' { 2 } else { 1 };
                at = find(&chars, at + 1, "'") + 1;
            }
            (':', ':') => {
                tokens.push((line, Token::Join));
                at += 2;
            }
            (c, _) if c.is_alphanumeric() || c == '_' => {
                while look(at).is_alphanumeric() || look(at) == '_' {
                    at += 1;
                }
                tokens.push((line, Token::Word(chars[start..at].iter().collect())));
            }
            (c, _) => {
                if !c.is_whitespace() {
                    tokens.push((line, Token::Other(c)));
                }
                at += 1;
            }
        }
        at = at.min(chars.len());
        line += chars[start..at].iter().filter(|c| **c == '\n').count();
    }
    tokens
}

fn find(chars: &[char], from: usize, what: &str) -> usize {
    let what: Vec<char> = what.chars().collect();
    (from..chars.len())
        .find(|at| chars[*at..].starts_with(&what))
        .unwrap_or(chars.len())
}

fn skip_block_comment(chars: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn skip_string(chars: &[char], at: usize) -> usize {
    let mut at = at + 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// The end of `r"…"` or `r#"…"#` at `at`; nothing when it is an identifier.
fn raw_string_end(chars: &[char], at: usize) -> Option<usize> {
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    if chars.get(at + 1 + hashes) != Some(&'"') {
        return None;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    Some(find(chars, at + 2 + hashes, &close) + close.len())
}

#[cfg(test)]
mod tests {
    use super::{paths, without_unit_tests};

    fn names(text: &str) -> Vec<String> {
        paths(text)
            .into_iter()
            .filter(|path| path.segments.len() > 1)
            .map(|path| format!("{} {}", path.line, path.segments.join("::")))
            .collect()
    }

    #[test]
    fn groups_are_spelled_out() {
        let text = "use std::{fs, io::{self, Read}};\nuse crate::units::Bytes;";
        assert_eq!(
            names(text),
            [
                "1 std::fs",
                "1 std::io::self",
                "1 std::io::Read",
                "2 crate::units::Bytes"
            ]
        );
    }

    #[test]
    fn code_and_macros_count_comments_and_strings_do_not() {
        let text = "// std::fs\n/* std::fs /* std::env */ */\nlet a = \"std::net\\\" std::net\";\n\
                    let b = r#\"std::net\"#; let c = '\"';\nprintln!(\"{}\", std::env::args().count());";
        assert_eq!(names(text), ["5 std::env::args"]);
    }

    #[test]
    fn fields_and_continued_types_are_no_roots() {
        let text =
            "self.fuser; <T as Trait>::aya::x; Vec::<u8>::new(); 'a: loop {} x.tokio::<u8>();";
        assert_eq!(names(text), Vec::<String>::new());
        assert_eq!(names("use ::aya::Ebpf;"), ["1 aya::Ebpf"]);
    }

    #[test]
    fn unit_tests_are_cut_off_and_test_only_items_are_not() {
        let text = "#[cfg(test)]\nfn a() {}\nfn b() {}\n#[cfg(test)]\nmod tests { use std::fs; }\n";
        assert_eq!(
            without_unit_tests(text),
            "#[cfg(test)]\nfn a() {}\nfn b() {}\n"
        );
    }
}
