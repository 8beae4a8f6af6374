//! Every parser meets text that nobody chose: its file has property tests, or a fuzz target.

/// Functions that need neither: nothing in them depends on more than a comparison of words.
const WORDS: [&str; 1] = ["lxcfs-common/src/pod.rs"];

/// The name of the first function of a file's own code that reads a text or bytes, by its name.
fn parser(text: &str) -> Option<&str> {
    let code = text.split("#[cfg(test)]").next().unwrap_or(text);
    let functions = code
        .lines()
        .filter_map(|line| line.split_once("fn ").map(|at| at.1));
    let names = functions.map(|rest| rest.split(['(', '<']).next().unwrap_or(rest));
    names.into_iter().find(|name| {
        ["parse", "decode"].iter().any(|verb| {
            name.strip_prefix(verb)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        })
    })
}

/// The module of a source file: `a/b.rs` and `a/b/mod.rs` are `b`.
fn module(path: &str) -> &str {
    let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
    path.rsplit('/').next().unwrap_or(path)
}

/// Parsers without arbitrary input among `files`, path and text of every Rust source.
pub(super) fn check(files: &[(String, String)]) -> Vec<String> {
    let fuzzed: String = files
        .iter()
        .filter(|(path, _)| path.starts_with("fuzz/fuzz_targets/"))
        .map(|(_, text)| text.as_str())
        .collect();
    let has_properties = |path: &str| {
        let text = files.iter().find(|(known, _)| known == path);
        text.is_some_and(|(_, text)| text.contains("proptest!"))
    };
    let sources = files
        .iter()
        .filter(|(path, _)| path.starts_with("lxcfs-") && path.contains("/src/"))
        .filter(|(path, _)| !path.ends_with("tests.rs") && !WORDS.contains(&path.as_str()));
    let mut wrong = Vec::new();
    for (path, text) in sources {
        let Some(name) = parser(text) else { continue };
        let place = path.trim_end_matches(".rs").trim_end_matches("/mod");
        let beside = place
            .rsplit_once('/')
            .map_or("", |(directory, _)| directory);
        // All of the views are rendered from arbitrary text by one target.
        let is_view = path.starts_with("lxcfs-user/src/view/") && fuzzed.contains("view::render");
        let covered = is_view
            || has_properties(path)
            || has_properties(&format!("{place}/tests.rs"))
            || has_properties(&format!("{beside}/tests.rs"))
            || fuzzed.contains(&format!("{}::", module(path)));
        if !covered {
            wrong.push(format!(
                "{path}: {name} reads what others write: give it a proptest or a target in fuzz/"
            ));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::check;

    fn files(list: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(path, text): &(&str, &str)| ((*path).to_owned(), (*text).to_owned());
        list.iter().map(owned).collect()
    }

    const CODE: &str = "pub fn parse<'a>(text: &'a str) {}";

    #[test]
    fn a_parser_without_arbitrary_input_is_named() {
        let found = check(&files(&[("lxcfs-user/src/a/b.rs", CODE)]));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("lxcfs-user/src/a/b.rs: parse "));
        let found = check(&files(&[(
            "lxcfs-user/src/a/b.rs",
            "fn parsed() {} fn pars() {}",
        )]));
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn property_tests_beside_it_and_fuzz_targets_count() {
        for (path, text) in [
            ("lxcfs-user/src/a/b/tests.rs", "proptest! {}"),
            ("lxcfs-user/src/a/tests.rs", "proptest! {}"),
            ("fuzz/fuzz_targets/x.rs", "b::parse(text)"),
        ] {
            let found = check(&files(&[("lxcfs-user/src/a/b.rs", CODE), (path, text)]));
            assert!(found.is_empty(), "{path}: {found:?}");
        }
        let inside = format!("{CODE}\n#[cfg(test)]\nmod tests {{ proptest! {{}} }}");
        assert!(check(&files(&[("lxcfs-user/src/a/b.rs", &inside)])).is_empty());
    }
}
