//! The webhook's certificates: either self-managed, in a Secret, with the authority's
//! certificate kept in the webhook configuration ([`keeper`]), or files that somebody
//! else renews, such as cert-manager ([`files`]).
//!
//! What to do at a given moment is decided in [`rotation`], purely; keys and
//! certificates are made in [`authority`].

pub mod authority;
pub mod files;
pub mod keeper;
pub mod rotation;
