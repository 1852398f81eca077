//! The commands of a grid: a thin client of `cprd`, which decides everything.

mod checkpoints;
mod events;
mod jobs;
mod nodes;
mod target;

use std::sync::Arc;

use cpr_api::tls::{self, ClientTls, Files};
use cpr_api::{Client, Endpoint};
use cpr_types::{Context, Error, ErrorKind, Result};

use crate::grid_args::{ALLOW_PLAIN_HTTP, CA, CERTIFICATE, KEY, REVOKED, TOKEN_FILE, file};

pub use checkpoints::checkpoints;
pub use events::events;
pub use jobs::{cancel, jobs, recover, submit};
pub use nodes::{drain, nodes};
pub use target::{checkpoint, grid_job, migrate, require_plain, resume, suspend, wait};

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

/// The grid that `GRIDCPR_GRID` names, or that of this machine.
fn client() -> Result<Client> {
    let endpoint = match std::env::var("GRIDCPR_GRID") {
        Ok(text) if !text.is_empty() => text.parse()?,
        _ => default_endpoint()?,
    };
    if endpoint.can_be_overheard() && std::env::var_os(ALLOW_PLAIN_HTTP).is_none_or(|value| value != "1") {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("what is said to {endpoint} can be read on the network"),
        )
        .with_hint(format!(
            "use https://, or set {ALLOW_PLAIN_HTTP}=1 on a network that can be trusted"
        )));
    }
    let read = |path: std::path::PathBuf| -> Result<String> {
        let text = std::fs::read_to_string(&path).context(|| format!("read {TOKEN_FILE} {}", path.display()))?;
        Ok(text.trim().to_string())
    };
    let token = file(TOKEN_FILE).map(read).transpose()?;
    Ok(Client::new(endpoint, token).with_tls(client_tls()?.map(Arc::new)))
}

/// Whom we believe and who we are, by the environment.
fn client_tls() -> Result<Option<ClientTls>> {
    let own = match (file(CERTIFICATE), file(KEY)) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => {
            let what = format!("of {CERTIFICATE} and {KEY} one is not set");
            return Err(Error::new(ErrorKind::Usage, what).with_hint("both are needed, or none"));
        }
    };
    let files = file(CA).map(|ca| Files {
        ca,
        own,
        revoked: file(REVOKED),
    });
    files.map(|files| tls::client(files, |_| {})).transpose()
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
        let page: cpr_api::model::Page<T> = client.get(&format!("{path}{}", query(&pairs)))?;
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
