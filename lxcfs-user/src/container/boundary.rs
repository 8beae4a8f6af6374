//! Which cgroup is "the container" of a caller. Pure: the facts are arguments, one path
//! per hierarchy of the layout.

use std::fmt;

use crate::policy::BoundaryPolicy;

use super::cgroup_path::{self, Runtime};

/// A path per hierarchy; `None` where `/proc/PID/cgroup` has no line for it.
pub type Paths = Vec<Option<Box<str>>>;

/// What is known of a caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallerFacts {
    /// Its own cgroups, seen from the host.
    pub paths: Paths,
    /// The root of its cgroup namespace, when that is not the host's.
    pub cgroupns_root: Option<Paths>,
    /// The cgroups of its PID namespace's init, when that namespace is not the host's.
    pub pidns_init: Option<Paths>,
}

/// The rule that found the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// The root of the caller's cgroup namespace.
    CgroupNamespace,
    /// The runtime's name of the cgroup or of an ancestor.
    RuntimeName(Runtime),
    /// The cgroup of the PID namespace's init.
    PidNamespace,
    /// The caller's own cgroup, because the operator wants that.
    Caller,
    /// Named on the command line.
    Given,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CgroupNamespace => f.write_str("root of the caller's cgroup namespace"),
            Self::RuntimeName(runtime) => write!(f, "cgroup named by its runtime ({runtime})"),
            Self::PidNamespace => f.write_str("cgroup of the PID namespace's init"),
            Self::Caller => f.write_str("the caller's own cgroup (--boundary caller)"),
            Self::Given => f.write_str("cgroup given on the command line"),
        }
    }
}

/// The container of a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// The rule that matched.
    pub rule: Rule,
    /// Its cgroup in every hierarchy.
    pub paths: Paths,
}

/// Decides. `None`: the caller belongs to the host.
#[must_use]
pub fn decide(caller: &CallerFacts, policy: BoundaryPolicy) -> Option<Boundary> {
    match policy {
        BoundaryPolicy::Auto => {
            by_namespace_or_name(caller, true, true).or_else(|| by_init(caller))
        }
        BoundaryPolicy::Cgroupns => by_namespace_or_name(caller, true, false),
        BoundaryPolicy::Runtime => by_namespace_or_name(caller, false, true),
        BoundaryPolicy::Pidns => by_init(caller),
        BoundaryPolicy::Caller => {
            let is_private = caller.cgroupns_root.is_some()
                || caller.pidns_init.is_some()
                || by_namespace_or_name(caller, false, true).is_some();
            is_private.then(|| Boundary {
                rule: Rule::Caller,
                paths: caller.paths.clone(),
            })
        }
    }
}

/// Rules 1 and 2. A runtime's name below the namespace's root wins over that root: it is
/// a container that shares the cgroup namespace of the one around it.
fn by_namespace_or_name(caller: &CallerFacts, namespace: bool, name: bool) -> Option<Boundary> {
    let roots = caller.cgroupns_root.as_ref().filter(|_| namespace);
    let mut rule = None;
    let mut paths = Paths::with_capacity(caller.paths.len());
    for (at, path) in caller.paths.iter().enumerate() {
        let Some(path) = path.as_deref() else {
            paths.push(None);
            continue;
        };
        let root = roots
            .and_then(|roots| roots.get(at)?.as_deref())
            .filter(|root| *root != "/" && is_within(path, root));
        let named = cgroup_path::innermost(path).filter(|_| name);
        let (container, found) = match (root, named) {
            (Some(root), Some(named)) if named.path.len() > root.len() => {
                (named.path, Some(Rule::RuntimeName(named.runtime)))
            }
            (Some(root), _) => (root, Some(Rule::CgroupNamespace)),
            (None, Some(named)) => (named.path, Some(Rule::RuntimeName(named.runtime))),
            // This hierarchy does not tell; what governs the caller here is its own
            // cgroup.
            (None, None) => (path, None),
        };
        // The most telling hierarchy gives the rule.
        rule = match (rule, found) {
            (Some(Rule::CgroupNamespace) | None, Some(found)) => Some(found),
            (rule, _) => rule,
        };
        paths.push(Some(container.into()));
    }
    Some(Boundary { rule: rule?, paths })
}

/// Rule 3.
fn by_init(caller: &CallerFacts) -> Option<Boundary> {
    let init = caller.pidns_init.as_ref()?;
    let paths = init
        .iter()
        .map(|path| {
            let path = path.as_deref()?;
            Some(cgroup_path::without_init_leaf(path).into())
        })
        .collect();
    Some(Boundary {
        rule: Rule::PidNamespace,
        paths,
    })
}

/// Whether `path` is `ancestor` or below it.
#[must_use]
pub fn is_within(path: &str, ancestor: &str) -> bool {
    ancestor == "/"
        || path
            .strip_prefix(ancestor)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::layout::namespace_root;
    use proptest::prelude::*;

    const ID: &str = "4c01db0b339c8a1d5c2d2b1f7bb9b5d3a0b7f7f0c3d1e2f4a5b6c7d8e9f0a1b2";

    fn paths(paths: &[&str]) -> Paths {
        paths.iter().map(|path| Some((*path).into())).collect()
    }

    fn caller(own: &[&str], root: Option<&[&str]>, init: Option<&[&str]>) -> CallerFacts {
        CallerFacts {
            paths: paths(own),
            cgroupns_root: root.map(paths),
            pidns_init: init.map(paths),
        }
    }

    fn auto(facts: &CallerFacts) -> Option<(Rule, Paths)> {
        decide(facts, BoundaryPolicy::Auto).map(|found| (found.rule, found.paths))
    }

    #[test]
    fn a_service_of_a_nested_systemd_belongs_to_its_container() {
        let facts = caller(
            &["/lxc.payload.c/system.slice/cron.service"],
            Some(&["/lxc.payload.c"]),
            Some(&["/lxc.payload.c/init.scope"]),
        );
        let expected = (Rule::CgroupNamespace, paths(&["/lxc.payload.c"]));
        assert_eq!(auto(&facts), Some(expected));
    }

    #[test]
    fn an_unnamed_container_is_found_by_its_cgroup_namespace() {
        let facts = caller(&["/mine/sub"], Some(&["/mine"]), None);
        assert_eq!(
            auto(&facts),
            Some((Rule::CgroupNamespace, paths(&["/mine"])))
        );
    }

    #[test]
    fn a_host_pid_pod_is_found_by_its_name() {
        // F28: hostPID and host cgroup namespace: only the name tells.
        let own = format!("/kubepods/burstable/pod1/{ID}/sub");
        let facts = caller(&[&own], None, None);
        let expected = format!("/kubepods/burstable/pod1/{ID}");
        assert_eq!(
            auto(&facts),
            Some((
                Rule::RuntimeName(Runtime::CgroupfsDriver),
                paths(&[&expected])
            ))
        );
    }

    #[test]
    fn a_container_in_the_cgroup_namespace_of_another_is_itself() {
        let outer = "/lxc.payload.c";
        let inner = format!("{outer}/docker/{ID}");
        let facts = caller(&[&inner], Some(&[outer]), None);
        assert_eq!(
            auto(&facts),
            Some((Rule::RuntimeName(Runtime::CgroupfsDriver), paths(&[&inner])))
        );
    }

    #[test]
    fn docker_in_docker_means_the_whole_container_and_not_its_init() {
        // F27.
        let facts = caller(&["/dind/init"], None, Some(&["/dind/init"]));
        assert_eq!(auto(&facts), Some((Rule::PidNamespace, paths(&["/dind"]))));
    }

    #[test]
    fn a_sandbox_inside_a_container_belongs_to_the_container() {
        let own = format!("/docker/{ID}/app");
        let container = format!("/docker/{ID}");
        let facts = caller(&[&own], None, Some(&[&own]));
        assert_eq!(
            auto(&facts).map(|(_, paths)| paths),
            Some(paths(&[&container]))
        );
    }

    #[test]
    fn services_and_users_of_the_host_see_the_host() {
        for own in ["/", "/system.slice/ssh.service", "/user.slice/user-0.slice"] {
            assert_eq!(auto(&caller(&[own], None, None)), None, "{own}");
        }
        // unshare -C at the root: a namespace, but nothing private about it.
        assert_eq!(auto(&caller(&["/"], Some(&["/"]), None)), None);
    }

    #[test]
    fn hierarchies_that_do_not_tell_keep_the_callers_own_cgroup() {
        let memory = format!("/docker/{ID}/sub");
        let container = format!("/docker/{ID}");
        let facts = caller(&[&memory, "/", "/shared"], None, None);
        assert_eq!(
            auto(&facts),
            Some((
                Rule::RuntimeName(Runtime::CgroupfsDriver),
                paths(&[&container, "/", "/shared"])
            ))
        );
    }

    #[test]
    fn the_operator_chooses_the_rule() {
        let own = format!("/docker/{ID}/sub");
        let container = format!("/docker/{ID}");
        let facts = caller(&[&own], Some(&["/docker"]), Some(&[&container]));
        let by = |policy| decide(&facts, policy).map(|found| found.paths);
        assert_eq!(by(BoundaryPolicy::Cgroupns), Some(paths(&["/docker"])));
        assert_eq!(by(BoundaryPolicy::Runtime), Some(paths(&[&container])));
        assert_eq!(by(BoundaryPolicy::Pidns), Some(paths(&[&container])));
        assert_eq!(by(BoundaryPolicy::Caller), Some(paths(&[&own])));
        let host = caller(&["/system.slice"], None, None);
        assert_eq!(decide(&host, BoundaryPolicy::Caller), None);
    }

    #[test]
    fn a_process_inside_tells_the_root_of_its_namespace() {
        assert_eq!(namespace_root("/a/b/c", "/c"), Some("/a/b"));
        assert_eq!(namespace_root("/a/b", "/"), Some("/a/b"));
        assert_eq!(namespace_root("/a", "/a"), Some("/"));
        assert_eq!(namespace_root("/a/b", "/../x"), None);
        assert_eq!(namespace_root("/a/b", "/c"), None);
    }

    proptest! {
        #[test]
        fn the_container_is_always_around_the_caller(
            own in "(/[a-c]{1,2}){0,5}", up in 0usize..5
        ) {
            let own = if own.is_empty() { "/".to_owned() } else { own };
            let mut root = own.as_str();
            for _ in 0..up {
                root = root.rsplit_once('/').map_or("/", |(parent, _)| parent);
            }
            let root = if root.is_empty() { "/" } else { root };
            let facts = caller(&[&own], Some(&[root]), None);
            if let Some((_, paths)) = auto(&facts) {
                prop_assert!(is_within(&own, paths[0].as_deref().unwrap()));
            }
        }

        #[test]
        fn a_namespace_root_and_the_rest_make_the_path(root in "(/[a-c]{1,2}){1,3}", rest in "(/[a-c]{1,2}){1,3}") {
            let path = format!("{root}{rest}");
            prop_assert_eq!(namespace_root(&path, &rest), Some(root.as_str()));
        }
    }
}
