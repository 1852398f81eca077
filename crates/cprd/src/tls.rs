//! TLS of the daemons: who is at the other end of a connection, by its certificate.
//!
//! A certificate for a grid names who it is for as a URI, `gridcpr://ROLE/NAME`, among its alternative names. It is
//! looked at when a connection comes about and again with every request, so that one that expires or is revoked is good
//! for nothing from then on. Sessions are never resumed: that would leave the look out.

use std::sync::Arc;

use cpr_api::tls::{Cached, Files, provider};
use cpr_grid::Role;
use cpr_types::{Error, ErrorKind, Result};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use webpki::EndEntityCert;

use crate::{log, tokens};

/// Begins the name of whom a certificate is for.
pub const SCHEME: &str = "gridcpr://";

/// What a server makes of its files.
pub struct ServerSide {
    pub config: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
}

/// The same, made anew when the files change.
pub type ServerTls = Cached<ServerSide>;

fn complain(error: &cpr_types::Error) {
    log(format!("certificates are not read anew: {}", error.chain()));
}

/// For the service: callers without a certificate need a token.
pub fn service(files: Files) -> Result<ServerTls> {
    Cached::new(files, |files| server(files, false), complain)
}

/// For agents: callers have certificates.
pub fn agent(files: Files) -> Result<ServerTls> {
    Cached::new(files, |files| server(files, true), complain)
}

/// For calls of others.
pub fn client(files: Files) -> Result<cpr_api::tls::ClientTls> {
    cpr_api::tls::client(files, complain)
}

fn server(files: &Files, mandatory: bool) -> Result<ServerSide> {
    let unusable = |error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Usage, format!("the certificates cannot be used: {error}"))
    };
    let builder = WebPkiClientVerifier::builder_with_provider(files.roots()?, provider()).with_crls(files.crls()?);
    let builder = if mandatory {
        builder
    } else {
        builder.allow_unauthenticated()
    };
    let verifier = builder.build().map_err(|error| unusable(&error))?;
    let Some((chain, key)) = files.identity()? else {
        return Err(
            Error::new(ErrorKind::Usage, "a server needs a certificate").with_hint("set tls.certificate and tls.key")
        );
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable(&error))?
        .with_client_cert_verifier(verifier.clone())
        .with_single_cert(chain, key)
        .map_err(|error| unusable(&error))?;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(ServerSide {
        config: Arc::new(config),
        verifier,
    })
}

impl ServerSide {
    /// Whom a chain of certificates is for; none where it does not say. An error where it is not, or no longer, good.
    pub fn identify(&self, chain: &[CertificateDer<'_>]) -> Result<Option<(String, Role)>> {
        let denied = || Error::new(ErrorKind::Denied, "the certificate is not good, or not any more");
        let Some((own, others)) = chain.split_first() else {
            return Ok(None);
        };
        self.verifier
            .verify_client_cert(own, others, UnixTime::now())
            .map_err(|error| denied().with_source(error))?;
        named(own)
    }
}

/// Whom a certificate is for, by the name in it.
fn named(certificate: &CertificateDer<'_>) -> Result<Option<(String, Role)>> {
    let certificate = EndEntityCert::try_from(certificate)
        .map_err(|error| Error::new(ErrorKind::Denied, "the certificate is not understood").with_source(error))?;
    let mut names = certificate.valid_uri_names().filter_map(|uri| uri.strip_prefix(SCHEME));
    let Some(name) = names.next() else { return Ok(None) };
    match (name.split_once('/'), names.next()) {
        (Some((role, name)), None) if tokens::is_name(name) => Ok(Some((name.to_string(), tokens::parse_role(role)?))),
        _ => Err(Error::new(
            ErrorKind::Denied,
            format!("the certificate does not name one role and one name as {SCHEME}ROLE/NAME"),
        )),
    }
}
