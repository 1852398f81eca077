//! A certificate authority for one grid, for sites that have none: a directory with its key, what it has issued, and
//! what it has revoked.
//!
//! ```text
//! ca.pem       certificate of the CA; everybody in the grid has a copy
//! ca.key       its key, which stays here
//! issued       a line for each certificate: serial number, role, name, end (seconds since the epoch)
//! revoked      a line for each that is revoked: serial number, time
//! revoked.pem  the same, signed; everybody in the grid has a copy
//! ```

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cpr_grid::Role;
use cpr_types::{Context, Error, ErrorKind, Result};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use time::OffsetDateTime;

use crate::durable::{append, write};
use crate::tls::SCHEME;
use crate::tokens;

/// How long the certificate of the CA is good.
const CA_VALID: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Clocks may differ by so much.
const CLOCK_ERROR: Duration = Duration::from_secs(300);

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The service of the grid, which calls nobody.
    Service,
    /// Somebody, or a node, by their role.
    Caller(Role),
}

/// A purpose by its name.
pub fn parse_purpose(text: &str) -> Result<Purpose> {
    match text {
        "service" => Ok(Purpose::Service),
        role => tokens::parse_role(role).map(Purpose::Caller).map_err(|error| {
            Error::new(error.kind(), error.chain()).with_hint("roles are service, node, user, operator and admin")
        }),
    }
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Purpose::Service => "service",
            Purpose::Caller(role) => tokens::role_name(role),
        }
    }
}

/// A certificate that is asked for.
pub struct Request {
    pub name: String,
    pub purpose: Purpose,
    /// Names and addresses at which its holder can be reached.
    pub hosts: Vec<String>,
    pub valid: Duration,
}

/// A CA in its directory.
pub struct Ca {
    directory: PathBuf,
}

fn failed(what: &'static str) -> impl FnOnce(rcgen::Error) -> Error {
    move |error| Error::new(ErrorKind::Internal, what).with_source(error)
}

/// What the certificate of a CA of ours says, apart from its time and number.
fn own_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "GridCPR CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn random_serial() -> Result<Vec<u8>> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(std::io::Error::from)
        .context(|| "get random bytes")?;
    // A positive number of a fixed length.
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(bytes.to_vec())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

impl Ca {
    /// The CA that is, or is to be, in this directory.
    pub fn at(directory: &Path) -> Ca {
        Ca {
            directory: directory.to_path_buf(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Makes the CA, and an empty list of what it has revoked.
    pub fn init(&self) -> Result<()> {
        crate::config::make_private(&self.directory)?;
        if self.path("ca.key").exists() {
            let what = format!("there is a CA in {} already", self.directory.display());
            return Err(Error::new(ErrorKind::AlreadyExists, what)
                .with_hint("another one in its place would make all its certificates worthless"));
        }
        let now = OffsetDateTime::now_utc();
        let mut params = own_params();
        params.not_before = now - CLOCK_ERROR;
        params.not_after = now + CA_VALID;
        params.serial_number = Some(SerialNumber::from(random_serial()?));
        let key = KeyPair::generate().map_err(failed("make a key"))?;
        let certificate = params
            .self_signed(&key)
            .map_err(failed("sign the certificate of the CA"))?;
        write(&self.path("ca.pem"), certificate.pem().as_bytes(), 0o644)?;
        // Last: without it there is no CA.
        write(&self.path("ca.key"), key.serialize_pem().as_bytes(), 0o600)?;
        self.write_revoked()
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>> {
        let path = self.path("ca.key");
        let text = fs::read_to_string(&path)
            .context(|| format!("read {}", path.display()))
            .map_err(|error| error.with_hint("`cprd ca init` makes a CA"))?;
        let key = KeyPair::from_pem(&text).map_err(failed("understand the key of the CA"))?;
        Ok(Issuer::new(own_params(), key))
    }

    /// Issues a certificate, as `NAME.pem` and `NAME.key` in the directory `to`.
    pub fn issue(&self, request: &Request, to: &Path) -> Result<(PathBuf, PathBuf)> {
        let (name, purpose) = (&request.name, request.purpose);
        if !tokens::is_name(name) || name.contains('/') {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("{name:?} cannot have a certificate"),
            ));
        }
        let serves = matches!(purpose, Purpose::Service | Purpose::Caller(Role::Node));
        if serves && request.hosts.is_empty() {
            return Err(
                Error::new(ErrorKind::Usage, format!("nothing says where {name} can be reached"))
                    .with_hint("`--host` names an address or a host; it may be given several times"),
            );
        }
        if !serves && !request.hosts.is_empty() {
            return Err(Error::new(
                ErrorKind::Usage,
                "only the service and nodes are reached at hosts",
            ));
        }
        let issuer = self.issuer()?;
        let now = OffsetDateTime::now_utc();
        let serial = random_serial()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.not_before = now - CLOCK_ERROR;
        params.not_after = now + request.valid;
        params.serial_number = Some(SerialNumber::from(serial.clone()));
        let text = |text: String| Ia5String::try_from(text).map_err(failed("write a name into the certificate"));
        if let Purpose::Caller(role) = purpose {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
            let uri = text(format!("{SCHEME}{}/{name}", tokens::role_name(role)))?;
            params.subject_alt_names.push(SanType::URI(uri));
        }
        if serves {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        for host in &request.hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(text(host.clone())?),
            });
        }
        let key = KeyPair::generate().map_err(failed("make a key"))?;
        let certificate = params
            .signed_by(&key, &issuer)
            .map_err(failed("sign the certificate"))?;
        // Known before it is out in the world, so that it can be revoked.
        let line = format!(
            "{} {} {name} {}\n",
            hexadecimal(&serial),
            purpose.name(),
            params.not_after.unix_timestamp()
        );
        append(&self.path("issued"), &line)?;
        let paths = (to.join(format!("{name}.pem")), to.join(format!("{name}.key")));
        write(&paths.1, key.serialize_pem().as_bytes(), 0o600)?;
        write(&paths.0, certificate.pem().as_bytes(), 0o644)?;
        Ok(paths)
    }

    /// Lines of a file, in words; none where there is no file.
    fn lines(&self, name: &str) -> Result<Vec<Vec<String>>> {
        let path = self.path(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text
                .lines()
                .map(|line| line.split_whitespace().map(String::from).collect())
                .collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).context(|| format!("read {}", path.display())),
        }
    }

    /// Revokes every certificate of a name that is good still; gives their number.
    pub fn revoke(&self, name: &str) -> Result<usize> {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let revoked: Vec<String> = self
            .lines("revoked")?
            .into_iter()
            .flat_map(|line| line.into_iter().next())
            .collect();
        let mut count = 0;
        for line in self.lines("issued")? {
            let [serial, _, holder, end] = line.as_slice() else {
                continue;
            };
            let over = end.parse::<i64>().is_ok_and(|end| end < now);
            if holder == name && !over && !revoked.contains(serial) {
                append(&self.path("revoked"), &format!("{serial} {now}\n"))?;
                count += 1;
            }
        }
        if count == 0 {
            let what = format!("no good certificate of {name:?} was issued here");
            return Err(Error::new(ErrorKind::NotFound, what));
        }
        self.write_revoked()?;
        Ok(count)
    }

    /// Signs the list of what is revoked. It has no end that matters: a new one comes when something is revoked.
    fn write_revoked(&self) -> Result<()> {
        let now = OffsetDateTime::now_utc();
        let lines = self.lines("revoked")?;
        let revoked_certs = lines
            .iter()
            .filter_map(|line| {
                let [serial, at] = line.as_slice() else { return None };
                Some(RevokedCertParams {
                    serial_number: SerialNumber::from(from_hexadecimal(serial)?),
                    revocation_time: OffsetDateTime::from_unix_timestamp(at.parse().ok()?).ok()?,
                    reason_code: None,
                    invalidity_date: None,
                })
            })
            .collect::<Vec<_>>();
        if revoked_certs.len() != lines.len() {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("{} is not understood", self.path("revoked").display()),
            ));
        }
        let params = CertificateRevocationListParams {
            this_update: now - CLOCK_ERROR,
            next_update: now + CA_VALID,
            crl_number: SerialNumber::from(revoked_certs.len() as u64 + 1),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params
            .signed_by(&self.issuer()?)
            .map_err(failed("sign the list of revoked certificates"))?;
        let text = list.pem().map_err(failed("write the list of revoked certificates"))?;
        write(&self.path("revoked.pem"), text.as_bytes(), 0o644)
    }
}
