//! Why a container sees what it sees: what `lxcfs show --explain` prints.

use std::sync::Arc;

use lxcfs_common::catalogue::Node;

use crate::container::Container;
use crate::container::boundary::Rule;
use crate::container::resolve::{Caller, View};
use crate::engine::AnswerError;
use crate::snapshot::{Controller, Inputs, Snapshot};
use crate::view::{self, ExplainLine};

use super::live::LiveEngine;
use super::store::lock;

/// Whom to explain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom<'a> {
    /// The container of this process or thread, by its id on the host.
    Pid(u32),
    /// The container at this cgroup path, below a hierarchy's root or its mount point.
    Cgroup(&'a str),
}

/// The container and every line of one file.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// `None`: the caller belongs to the host, and sees the host's own text.
    pub container: Option<Arc<Container>>,
    /// In words, the boundary rule that matched.
    pub rule: String,
    /// The container's cgroup per controller.
    pub cgroups: Vec<(Controller, String)>,
    /// Every line with its origin; empty for the host.
    pub lines: Vec<ExplainLine>,
    /// The text as the container reads it.
    pub text: Vec<u8>,
    /// What the text was made from; `None` for the host.
    pub snapshot: Option<Snapshot>,
}

impl LiveEngine {
    /// Finds the container somebody means.
    ///
    /// # Errors
    /// [`AnswerError::Caller`] or [`AnswerError::Gone`] when there is none.
    pub fn whom(&self, whom: Whom<'_>) -> Result<View, AnswerError> {
        match whom {
            Whom::Pid(pid) => self.resolver().resolve(pid),
            Whom::Cgroup(path) => Ok(View::Container(Caller {
                container: self.resolver().container_at(path)?,
                timens_offset: 0,
            })),
        }
    }

    /// What `whom` reads in `node`, and why.
    ///
    /// # Errors
    /// As [`crate::engine::Engine::render`].
    pub fn explain(&self, whom: Whom<'_>, node: Node) -> Result<Explanation, AnswerError> {
        let mut text = Vec::new();
        let seen = match self.whom(whom)? {
            View::Host => {
                self.host_text(node, &mut text)?;
                return Ok(Explanation {
                    container: None,
                    rule: "no rule matched: the caller belongs to the host".to_owned(),
                    cgroups: Vec::new(),
                    lines: Vec::new(),
                    text,
                    snapshot: None,
                });
            }
            View::Container(seen) => seen,
        };
        let policy = self
            .collector()
            .state(&seen.container)
            .policy(self.policy());
        let cgroups = Controller::ALL
            .iter()
            .filter_map(|controller| {
                let path = seen.container.paths[*controller as usize].as_deref()?;
                Some((*controller, path.to_owned()))
            })
            .collect();
        let rule = match whom {
            Whom::Pid(_) => seen.container.rule,
            Whom::Cgroup(_) => Rule::Given,
        }
        .to_string();
        let container = Some(seen.container.clone());
        if view::shows_host(node, &policy) {
            self.host_text(node, &mut text)?;
            return Ok(Explanation {
                container,
                rule,
                cgroups,
                lines: Vec::new(),
                text,
                snapshot: None,
            });
        }
        let inputs = view::inputs(node, &policy);
        let snapshot = self.collector().snapshot(&seen, inputs, &policy)?;
        // What is explained here must not move on what the container itself is shown.
        let mut history = lock(&self.collector().state(&seen.container).cpu).clone();
        let lines = view::explain(node, &snapshot, &history, &policy)?;
        view::render(node, &snapshot, &mut history, &policy, &mut text)?;
        Ok(Explanation {
            container,
            rule,
            cgroups,
            lines,
            text,
            snapshot: Some(snapshot),
        })
    }

    /// Everything that can be gathered of a container.
    ///
    /// # Errors
    /// As [`crate::engine::Engine::render`].
    pub fn full_snapshot(&self, caller: &Caller) -> Result<Snapshot, AnswerError> {
        self.collector()
            .snapshot(caller, Inputs(u32::MAX), &self.policy())
    }
}
