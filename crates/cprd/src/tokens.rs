//! Tokens: who may reach the service over TCP. The file holds hashes only, one line for each token: name, role, BLAKE3.
//!
//! It is read anew with every request, so that taking a line out takes effect at once.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use cpr_grid::Role;
use cpr_types::{Context, Error, ErrorKind, Result};

use crate::durable::append;

/// Longest file of tokens, bytes.
const LONGEST: u64 = 16 << 20;

/// A role by its name.
pub fn parse_role(text: &str) -> Result<Role> {
    match text {
        "user" => Ok(Role::User),
        "operator" => Ok(Role::Operator),
        "admin" => Ok(Role::Admin),
        "node" => Ok(Role::Node),
        _ => Err(Error::new(ErrorKind::Usage, format!("there is no role {text:?}"))
            .with_hint("roles are user, operator, admin and node")),
    }
}

/// The name of a role.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::User => "user",
        Role::Operator => "operator",
        Role::Admin => "admin",
        Role::Node => "node",
    }
}

/// Whether something can be the name of somebody.
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '#')
}

/// Makes a token, and writes down its hash.
pub fn issue(path: &Path, name: &str, role: Role) -> Result<String> {
    if !is_name(name) {
        return Err(Error::new(ErrorKind::Usage, format!("{name:?} cannot have a token")));
    }
    let mut random = [0; 32];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(std::io::Error::from)
        .context(|| "get random bytes")?;
    let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    if let Some(directory) = path.parent() {
        crate::config::make_private(directory)?;
    }
    let line = format!(
        "{name} {} {}\n",
        role_name(role),
        blake3::hash(token.as_bytes()).to_hex()
    );
    append(path, &line)?;
    Ok(token)
}

/// Whose token this is: name and role.
pub fn identify(path: &Path, token: &str) -> Result<Option<(String, Role)>> {
    let hash = blake3::hash(token.as_bytes());
    let mut text = String::new();
    match File::open(path) {
        Ok(file) => file.take(LONGEST).read_to_string(&mut text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => Err(error),
    }
    .context(|| format!("read {}", path.display()))?;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(role), Some(known)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        // Hashes compare in constant time.
        if blake3::Hash::from_hex(known).is_ok_and(|known| known == hash) {
            return parse_role(role).map(|role| Some((name.to_string(), role)));
        }
    }
    Ok(None)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_until_its_line_is_taken_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("etc/tokens");
        assert_eq!(identify(&path, "").unwrap(), None);
        let ada = issue(&path, "ada", Role::User).unwrap();
        let node = issue(&path, "n1", Role::Node).unwrap();
        assert_eq!(identify(&path, &ada).unwrap(), Some(("ada".into(), Role::User)));
        assert_eq!(identify(&path, &node).unwrap(), Some(("n1".into(), Role::Node)));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&ada), "only hashes are kept");
        for stranger in ["", "x", &ada[1..], text.split_whitespace().nth(2).unwrap()] {
            assert_eq!(identify(&path, stranger).unwrap(), None);
        }
        std::fs::write(&path, text.lines().next().unwrap()).unwrap();
        assert_eq!(identify(&path, &node).unwrap(), None);
        assert!(issue(&path, "a b", Role::User).is_err());
    }
}
