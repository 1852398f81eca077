//! Who may do what in the name space of checkpoints.
//!
//! Its root is what a sticky directory is (inode(7)): everybody may make an entry there and owns it then, and nobody
//! else may remove it, move it, or write into it unless they are listed. The name of a user is kept for that user, below
//! which checkpoints are where nothing else is said.

use cpr_api::model::{Name, Owner};
use cpr_types::{Error, ErrorKind, Result};

use crate::caller::{Caller, Role};
use crate::db::{self, Write};

/// To know that an entry is there, and what it is of.
pub(crate) const QUERY: u32 = 1;
/// To read what is in it.
pub(crate) const READ: u32 = 2;
/// To change it.
pub(crate) const WRITE: u32 = 4;
/// Whatever its owner may.
pub(crate) const OWNER: u32 = 16;
/// All of them.
pub(crate) const ALL: u32 = 31;
/// What a caller may do with an entry.
pub(crate) fn rights(caller: &Caller, name: &Name) -> u32 {
    if caller.may_use(&name.owner) {
        return ALL;
    }
    let Some(user) = caller.user.as_ref().filter(|_| caller.role != Role::Node) else {
        return 0;
    };
    let of = |key: &str| name.permissions.get(key).copied().unwrap_or(0);
    let all = of("*") | of(&format!("user:{}", user.name)) | of(&format!("group:{}", user.gid));
    if all & OWNER != 0 { ALL } else { all }
}

/// Refuses a caller who has none of these rights to an entry.
pub(crate) fn require(caller: &Caller, name: &Name, right: u32, what: &str) -> Result<()> {
    if rights(caller, name) & right != 0 {
        return Ok(());
    }
    let text = format!("{} may not {what} {:?}", caller.name, name.path);
    Err(Error::new(ErrorKind::Denied, text).with_hint("its owner can allow it: permissions_allow"))
}

/// As whom a job's checkpoints are written down.
pub(crate) fn as_owner(owner: &Owner) -> Caller {
    Caller {
        name: owner.name.clone(),
        user: Some(owner.clone()),
        role: Role::User,
    }
}

/// Refuses a new entry of the root (`path`) that has the name of another user: one who has ever used the grid, or whom
/// the machine of the service knows. Operators may make it.
pub(crate) async fn may_be_made(
    write: &mut Write<'_>,
    caller: &Caller,
    path: &str,
    is_user: fn(&str) -> bool,
) -> Result<()> {
    let name = path.trim_start_matches('/');
    let own = caller.user.as_ref().is_some_and(|user| user.name == name);
    if own || matches!(caller.role, Role::Operator | Role::Admin) {
        return Ok(());
    }
    let sql = "SELECT owner FROM accounts WHERE owner = $1";
    if db::rows(&mut write.tx, sql, &[name.into()]).await?.is_empty() && !is_user(name) {
        return Ok(());
    }
    let text = format!("{} may not make {path:?}, which is user {name}'s", caller.name);
    let hint = "use a directory of your own name, or an operator makes it and allows others to write into it";
    Err(Error::new(ErrorKind::Denied, text).with_hint(hint))
}
