//! Who calls, and what they may do.

use cpr_api::model::{Job, Owner};
use cpr_types::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Their own jobs.
    User,
    /// Everybody's jobs, and nodes.
    Operator,
    /// Everything.
    Admin,
    /// The reports of one node, whose name is the caller's; and images.
    Node,
}

/// Somebody whose identity has been established.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Name; with [`Role::Node`] that of the node.
    pub name: String,
    /// The user whose jobs they submit; none where they are nobody on this system.
    pub user: Option<Owner>,
    /// Role.
    pub role: Role,
}

impl Caller {
    /// Whose jobs they submit (GFD93-AUTH-3).
    pub fn owner(&self) -> Result<Owner> {
        match (&self.user, self.role) {
            (Some(user), Role::User | Role::Operator | Role::Admin) => Ok(user.clone()),
            _ => Err(denied(format!(
                "{} has no account here that jobs could run as",
                self.name
            ))),
        }
    }

    /// Whether they may see and change a job of `owner` (GFD93-AUTH-2).
    pub fn may_use(&self, owner: &Owner) -> bool {
        match self.role {
            Role::Operator | Role::Admin => true,
            Role::User => self.user.as_ref().is_some_and(|user| user.uid == owner.uid),
            Role::Node => false,
        }
    }

    /// A job they may see and change. One that is somebody else's does not exist for them.
    pub fn require_job(&self, id: i64, job: Option<Job>) -> Result<Job> {
        job.filter(|job| self.may_use(&job.owner)).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("the grid has no job {id} of yours"))
                .with_hint("`cpr jobs` lists them")
        })
    }

    /// Requires an operator.
    pub fn require_operator(&self) -> Result<()> {
        match self.role {
            Role::Operator | Role::Admin => Ok(()),
            _ => Err(denied(format!("{} is no operator of this grid", self.name))),
        }
    }

    /// Requires the node of that name, or an administrator, who may stand for any.
    pub fn require_node(&self, node: &str) -> Result<()> {
        match self.role {
            Role::Admin => Ok(()),
            Role::Node if self.name == node => Ok(()),
            _ => Err(denied(format!("{} is not node {node}", self.name))),
        }
    }

    /// Only jobs of this user are to be seen; none: all are.
    pub(crate) fn restriction(&self) -> Option<String> {
        match self.role {
            Role::Operator | Role::Admin => None,
            _ => Some(self.user.as_ref().map(|user| user.name.clone()).unwrap_or_default()),
        }
    }
}

fn denied(what: String) -> Error {
    Error::new(ErrorKind::Denied, what)
}
