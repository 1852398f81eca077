//! Services that are not of the grid: how they are reached, and whom we believe there.

use std::path::Path;
use std::sync::Arc;

use cpr_api::tls::{self, Files};
use cpr_api::{Client, Endpoint};
use cpr_types::{Error, ErrorKind, Result};
use url::Url;

/// Where distributions keep the CAs that everybody believes.
const SYSTEM_CAS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// An address that begins with `https://` or `http://`.
pub fn url(text: &str) -> Result<Url> {
    let refuse = || Error::new(ErrorKind::Usage, format!("{text:?} is not the address of a service"));
    let url: Url = text.parse().map_err(|error| refuse().with_source(error))?;
    let good = matches!(url.scheme(), "https" | "http") && url.host_str().is_some() && url.username().is_empty();
    if good {
        Ok(url)
    } else {
        Err(refuse().with_hint("write https://HOST or https://HOST:PORT/PATH"))
    }
}

/// Where it is.
pub fn endpoint(url: &Url) -> Endpoint {
    let port = url.port_or_known_default().unwrap_or(0);
    let address = format!("{}:{port}", url.host_str().unwrap_or_default());
    match url.scheme() {
        "https" => Endpoint::Tls(address),
        _ => Endpoint::Tcp(address),
    }
}

/// A client that believes the CAs in a file, or those of the system.
pub fn client(url: &Url, ca: Option<&Path>) -> Result<Client> {
    let endpoint = endpoint(url);
    let tls = matches!(endpoint, Endpoint::Tls(_)).then(|| {
        let files = Files {
            ca: ca.unwrap_or(Path::new(SYSTEM_CAS)).to_path_buf(),
            own: None,
            revoked: None,
        };
        tls::client(files, |_| {})
    });
    Ok(Client::new(endpoint, None).with_tls(tls.transpose()?.map(Arc::new)))
}
