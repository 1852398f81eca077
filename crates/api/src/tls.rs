//! TLS of the grid: which files say who we are and whom we believe, and what a client makes of them.
//!
//! Files are looked at again before every connection, so that certificates, and lists of those that are revoked, are
//! exchanged without a restart. Where new files are no good, what was read before stays valid.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cpr_types::{Context, Error, ErrorKind, Result};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::{AlertDescription, ClientConfig, RootCertStore};

pub use rustls;

/// Files in PEM format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Certificates of those who sign the certificates that are believed.
    pub ca: PathBuf,
    /// Our own certificate, with those between it and the CA, and its key.
    pub own: Option<(PathBuf, PathBuf)>,
    /// Lists of revoked certificates; with them, every certificate has to be of a CA that has a list here.
    pub revoked: Option<PathBuf>,
}

/// What tells whether a file is another one than before: device, inode, size and time.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let data = std::fs::metadata(path).ok()?;
    Some((data.dev(), data.ino(), data.size(), data.mtime(), data.mtime_nsec()))
}

fn bad(path: &Path, what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Usage, format!("{} is no good {what}", path.display())).with_source(error)
}

/// All objects of one kind in a file; at least one.
fn read_all<T: PemObject>(path: &Path, what: &str) -> Result<Vec<T>> {
    let bytes = std::fs::read(path).context(|| format!("read {what} {}", path.display()))?;
    let all: std::result::Result<Vec<T>, _> = T::pem_slice_iter(&bytes).collect();
    let all = all.map_err(|error| bad(path, what, error))?;
    if all.is_empty() {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("there is no {what} in {}", path.display()),
        ));
    }
    Ok(all)
}

impl Files {
    fn stamps(&self) -> Vec<Stamp> {
        let own = self.own.iter().flat_map(|(certificate, key)| [certificate, key]);
        [&self.ca]
            .into_iter()
            .chain(own)
            .chain(&self.revoked)
            .map(|path| stamp(path))
            .collect()
    }

    /// Whom we believe.
    pub fn roots(&self) -> Result<Arc<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        for certificate in read_all::<CertificateDer>(&self.ca, "CA certificate")? {
            roots
                .add(certificate)
                .map_err(|error| bad(&self.ca, "CA certificate", error))?;
        }
        Ok(Arc::new(roots))
    }

    /// Lists of revoked certificates.
    pub fn crls(&self) -> Result<Vec<CertificateRevocationListDer<'static>>> {
        match &self.revoked {
            Some(path) => read_all(path, "list of revoked certificates"),
            None => Ok(Vec::new()),
        }
    }

    /// Our certificate and its key, where we have one.
    pub fn identity(&self) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>> {
        let Some((certificate, key)) = &self.own else {
            return Ok(None);
        };
        let chain = read_all(certificate, "certificate")?;
        let mut keys = read_all::<PrivateKeyDer>(key, "private key")?;
        let key = keys.pop().filter(|_| keys.is_empty()).ok_or_else(|| {
            let what = format!("there is more than one private key in {}", key.display());
            Error::new(ErrorKind::Usage, what)
        })?;
        Ok(Some((chain, key)))
    }

    fn client(&self) -> Result<ClientConfig> {
        let provider = provider();
        let verifier = WebPkiServerVerifier::builder_with_provider(self.roots()?, provider.clone())
            .with_crls(self.crls()?)
            .build()
            .map_err(|error| bad(&self.ca, "CA certificate, or its list of revoked ones is not", error))?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| Error::new(ErrorKind::Internal, "set up TLS").with_source(error))?
            .with_webpki_verifier(verifier);
        let mut config = match self.identity()? {
            None => config.with_no_client_auth(),
            Some((chain, key)) => config.with_client_auth_cert(chain, key).map_err(|error| {
                Error::new(ErrorKind::Usage, "certificate and private key do not go together").with_source(error)
            })?,
        };
        // Every connection shows its certificate anew.
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// The cryptography that is used.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Something that is made of [`Files`], and made anew when they have changed.
pub struct Cached<T> {
    files: Files,
    make: fn(&Files) -> Result<T>,
    /// Hears once of new files that are no good.
    complain: fn(&Error),
    last: Mutex<Last<T>>,
}

struct Last<T> {
    made: Option<(Vec<Stamp>, Arc<T>)>,
    complaint: String,
}

impl<T> std::fmt::Debug for Cached<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cached")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl<T> Cached<T> {
    /// Makes it for the first time.
    pub fn new(files: Files, make: fn(&Files) -> Result<T>, complain: fn(&Error)) -> Result<Cached<T>> {
        let stamps = files.stamps();
        let made = Some((stamps, Arc::new(make(&files)?)));
        Ok(Cached {
            files,
            make,
            complain,
            last: Mutex::new(Last {
                made,
                complaint: String::new(),
            }),
        })
    }

    /// What the files say now; what they said before, where they are no good now.
    pub fn get(&self) -> Result<Arc<T>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // Before they are read: what is changed meanwhile is read again.
        let stamps = self.files.stamps();
        if let Some((known, made)) = &last.made
            && *known == stamps
        {
            return Ok(made.clone());
        }
        match (self.make)(&self.files) {
            Ok(made) => {
                let made = Arc::new(made);
                last.made = Some((stamps, made.clone()));
                last.complaint.clear();
                Ok(made)
            }
            Err(error) => {
                let text = error.chain();
                if last.complaint != text {
                    (self.complain)(&error);
                    last.complaint = text;
                }
                match &last.made {
                    Some((_, made)) => Ok(made.clone()),
                    None => Err(error),
                }
            }
        }
    }
}

/// How a client does TLS.
pub type ClientTls = Cached<ClientConfig>;

/// What a client makes of its files.
pub fn client(files: Files, complain: fn(&Error)) -> Result<ClientTls> {
    Cached::new(files, Files::client, complain)
}

/// The failure of TLS that an error comes from, as an error that says whose certificate is not believed.
pub fn explained(error: Error) -> Error {
    let failure = {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        loop {
            let Some(now) = cause else { break None };
            // An error of input or output hides what it is made of from `source`.
            let inner = now
                .downcast_ref::<std::io::Error>()
                .and_then(std::io::Error::get_ref)
                .and_then(|inner| inner.downcast_ref::<rustls::Error>());
            if let Some(failure) = inner.or_else(|| now.downcast_ref::<rustls::Error>()) {
                break Some(failure.clone());
            }
            cause = now.source();
        }
    };
    let (text, hint) = match &failure {
        Some(rustls::Error::InvalidCertificate(_)) => (
            "the certificate of the other side is not believed",
            "the CA has to be the one that has signed it, and the address one that it names",
        ),
        Some(rustls::Error::AlertReceived(alert)) if is_about_certificate(*alert) => (
            "the other side does not believe our certificate",
            "it may have expired or been revoked: `cprd ca issue` makes another one",
        ),
        _ => return error,
    };
    Error::new(ErrorKind::Denied, text).with_source(error).with_hint(hint)
}

fn is_about_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::CertificateRequired
            | A::UnknownCA
            | A::AccessDenied
            | A::DecryptError
    )
}
