//! The commands of a grid: a thin client of `cprd`, which decides everything.

mod checkpoints;
mod context;
mod events;
mod jobs;
mod nodes;
mod target;
mod usage;

use std::path::PathBuf;
use std::sync::Arc;

use cpr_types::{Context, Error, ErrorKind, Result};
use gridcpr::grid::tls::{self, ClientTls, Files};
use gridcpr::grid::{Client, Endpoint};

use crate::args::grid::{ALLOW_PLAIN_HTTP, CA, CERTIFICATE, KEY, REVOKED, TOKEN_FILE, file};

pub use checkpoints::{checkpoints, free, transfer};
pub use context::context;
pub use events::events;
pub use jobs::{cancel, jobs, policy, queue, recover, submit};
pub use nodes::{drain, fault, nodes};
pub use target::{checkpoint, grid_job, migrate, require_plain, resume, signal, suspend, wait};
pub use usage::usage;

/// Where the grid is, unless the environment says so: the service of the machine, or one of the user's own.
fn default_endpoint() -> Result<Endpoint> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(std::path::PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let system = Some("/run/gridcpr/cprd.sock".into());
    let runtime = absolute("XDG_RUNTIME_DIR").map(|path| path.join("gridcpr/cprd.sock"));
    let home = absolute("HOME").map(|path| path.join(".local/state/gridcpr/cprd.sock"));
    let found = [system, runtime, home].into_iter().flatten().find(|path| path.exists());
    found.map(Endpoint::Unix).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "no grid is running on this machine")
            .with_hint("start one with `cprd all`, or set GRIDCPR_GRID to where one is")
    })
}

/// How a grid is reached.
struct Access {
    endpoint: Endpoint,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    revoked: Option<PathBuf>,
    token_file: Option<PathBuf>,
    allow_plain_http: bool,
}

impl Access {
    /// As the environment says.
    fn of_environment(endpoint: Endpoint) -> Access {
        Access {
            endpoint,
            ca: file(CA),
            certificate: file(CERTIFICATE),
            key: file(KEY),
            revoked: file(REVOKED),
            token_file: file(TOKEN_FILE),
            allow_plain_http: std::env::var_os(ALLOW_PLAIN_HTTP).is_some_and(|value| value == "1"),
        }
    }

    /// As `GRIDCPR_GRID` and its kin say; or as was chosen with `cpr context`; or the grid of this machine.
    fn find() -> Result<Access> {
        match std::env::var("GRIDCPR_GRID") {
            Ok(text) if !text.is_empty() => Ok(Access::of_environment(text.parse()?)),
            _ => match context::chosen()? {
                Some(access) => Ok(access),
                None => default_endpoint().map(Access::of_environment),
            },
        }
    }

    /// Whom we believe and who we are.
    fn tls(&self) -> Result<Option<ClientTls>> {
        let own = match (self.certificate.clone(), self.key.clone()) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                let what = format!("of {CERTIFICATE} and {KEY} one is not set");
                return Err(Error::new(ErrorKind::Usage, what).with_hint("both are needed, or none"));
            }
        };
        let files = self.ca.clone().map(|ca| Files {
            ca,
            own,
            revoked: self.revoked.clone(),
        });
        files.map(|files| tls::client(files, |_| {})).transpose()
    }
}

/// A client of the grid that is meant.
fn client() -> Result<Client> {
    let access = Access::find()?;
    let endpoint = &access.endpoint;
    if endpoint.can_be_overheard() && !access.allow_plain_http {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("what is said to {endpoint} can be read on the network"),
        )
        .with_hint(format!(
            "use https://, or set {ALLOW_PLAIN_HTTP}=1 on a network that can be trusted"
        )));
    }
    let read = |path: &PathBuf| -> Result<String> {
        let text = std::fs::read_to_string(path).context(|| format!("read {TOKEN_FILE} {}", path.display()))?;
        Ok(text.trim().to_string())
    };
    let token = access.token_file.as_ref().map(read).transpose()?;
    let tls = access.tls()?.map(Arc::new);
    Ok(Client::new(access.endpoint, token).with_tls(tls))
}

/// A query string of those that are given.
fn query(pairs: &[(&str, Option<String>)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        let Some(value) = value else { continue };
        text.push(if text.is_empty() { '?' } else { '&' });
        text.push_str(name);
        text.push('=');
        text.push_str(&escape(value));
    }
    text
}

/// A part of a path or query (RFC 3986 section 2.1).
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(byte as char),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// All items of a list, page by page.
fn all<T: serde::de::DeserializeOwned>(
    client: &Client,
    path: &str,
    pairs: &[(&str, Option<String>)],
) -> Result<Vec<T>> {
    let mut items = Vec::new();
    let mut after = None;
    loop {
        let mut pairs = pairs.to_vec();
        pairs.push(("after", after));
        pairs.push(("limit", Some("1000".to_string())));
        let page: gridcpr::grid::model::Page<T> = client.get(&format!("{path}{}", query(&pairs)))?;
        items.extend(page.items);
        after = page.next;
        if after.is_none() {
            return Ok(items);
        }
    }
}

/// A word that nobody else has.
fn unique() -> String {
    use std::hash::{BuildHasher, Hasher};
    // Keys of hash maps are random, so that nobody can foresee them.
    let random = || std::collections::hash_map::RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped() {
        assert_eq!(query(&[("a", None), ("b", None)]), "");
        assert_eq!(
            query(&[("a", Some("x y&z".into())), ("c", Some("ä".into()))]),
            "?a=x%20y%26z&c=%C3%A4"
        );
    }
}
