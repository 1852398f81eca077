//! A client of the grid service, or of another node's agent: over a UNIX socket, or TCP with a certificate or a token.
//!
//! Calls block, and every wait for the other side has a deadline.

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cpr_types::{Context, Error, ErrorKind, Result};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::http::{self, Answer, Connection, Request};
use crate::model::Problem;
use crate::tls::{self, ClientTls};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the other side may keep silent.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest JSON answer that is taken, bytes.
const LONGEST_ANSWER: u64 = 256 << 20;

/// Where a service listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A UNIX socket; the service knows by it who calls.
    Unix(PathBuf),
    /// `HOST:PORT`, as it is; the service knows by a token who calls.
    Tcp(String),
    /// `HOST:PORT`, with TLS; the service knows by a certificate or a token who calls.
    Tls(String),
}

/// The host of `HOST:PORT`.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

impl Endpoint {
    /// What is said to it can be read on the network.
    pub fn can_be_overheard(&self) -> bool {
        match self {
            Endpoint::Unix(_) | Endpoint::Tls(_) => false,
            Endpoint::Tcp(address) => {
                let host = host(address);
                let loopback = host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
                !loopback && host != "localhost"
            }
        }
    }
}

impl std::str::FromStr for Endpoint {
    type Err = Error;

    /// `unix:/PATH`, `/PATH`, `https://HOST:PORT` or `http://HOST:PORT`.
    fn from_str(text: &str) -> Result<Self> {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        if path.starts_with('/') {
            return Ok(Endpoint::Unix(path.into()));
        }
        let address = |scheme: &str| {
            let address = text.strip_prefix(scheme)?.trim_end_matches('/');
            let (host, port) = address.rsplit_once(':')?;
            (!host.is_empty() && port.parse::<u16>().is_ok()).then(|| address.to_string())
        };
        let endpoint = address("https://").map(Endpoint::Tls);
        endpoint
            .or_else(|| address("http://").map(Endpoint::Tcp))
            .ok_or_else(|| {
                Error::new(ErrorKind::Usage, format!("{text:?} is not the address of a grid"))
                    .with_hint("write unix:/run/gridcpr/cprd.sock or https://HOST:PORT")
            })
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            Endpoint::Tcp(address) => write!(f, "http://{address}"),
            Endpoint::Tls(address) => write!(f, "https://{address}"),
        }
    }
}

/// Calls a service. Each call has a connection of its own, so that nothing is left of one that failed.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
    token: Option<String>,
    tls: Option<Arc<ClientTls>>,
    silence: Duration,
}

impl Client {
    /// A client that says `token` to a service on the network.
    pub fn new(endpoint: Endpoint, token: Option<String>) -> Client {
        Client {
            endpoint,
            token,
            tls: None,
            silence: SILENCE,
        }
    }

    /// The same, with what is needed for TLS.
    #[must_use]
    pub fn with_tls(mut self, tls: Option<Arc<ClientTls>>) -> Client {
        self.tls = tls;
        self
    }

    /// The same, with another limit to how long the other side may keep silent.
    #[must_use]
    pub fn with_silence(mut self, silence: Duration) -> Client {
        self.silence = silence;
        self
    }

    /// Reads what is at `path`.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call("GET", path, None, &[])
    }

    /// Asks for something to be done. With `key` a request that is repeated is done once only.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize, key: Option<&str>) -> Result<T> {
        let body = serde_json::to_vec(body)
            .map_err(|error| Error::new(ErrorKind::Internal, "encode the request").with_source(error))?;
        let headers: Vec<(&str, &str)> = key.map(|key| ("idempotency-key", key)).into_iter().collect();
        self.call("POST", path, Some(&body), &headers)
    }

    /// Calls `line` with the data of every server-sent event of `path`, until it says false or the service ends.
    pub fn follow(&self, path: &str, mut line: impl FnMut(Value) -> Result<bool>) -> Result<()> {
        let answer = self.answer("GET", path, None, &[])?;
        for text in BufReader::new(answer.body).lines() {
            let text = text.context(|| format!("listen to {}", self.endpoint))?;
            let Some(data) = text.strip_prefix("data:") else {
                continue;
            };
            let value = serde_json::from_str(data)
                .map_err(|error| Error::new(ErrorKind::Damaged, "an event is not understood").with_source(error))?;
            if !line(value)? {
                break;
            }
        }
        Ok(())
    }

    /// Opens what is at `path`, from its byte `offset` on.
    pub fn open(&self, path: &str, offset: u64) -> Result<impl Read + use<>> {
        let range = format!("bytes={offset}-");
        let answer = self.answer("GET", path, None, &[("range", &range)])?;
        if answer.status != 206 {
            let what = format!("{} sends {path} as a whole though a part was asked for", self.endpoint);
            return Err(Error::new(ErrorKind::Damaged, what));
        }
        Ok(answer.body)
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
        headers: &[(&str, &str)],
    ) -> Result<T> {
        let answer = self.answer(method, path, body, headers)?;
        let what = || format!("understand what {} answers to {method} {path}", self.endpoint);
        let bytes = read_all(answer)?;
        serde_json::from_slice(&bytes).map_err(|error| Error::new(ErrorKind::Damaged, what()).with_source(error))
    }

    /// The answer to one request, whatever its status; for services that are not ours.
    pub fn exchange(&self, method: &str, path: &str, body: Option<&[u8]>, headers: &[(&str, &str)]) -> Result<Answer> {
        let what = || format!("ask {}", self.endpoint);
        let bearer = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let mut headers = headers.to_vec();
        if let Some(bearer) = &bearer {
            headers.push(("authorization", bearer));
        }
        let host = match &self.endpoint {
            Endpoint::Unix(_) => "localhost",
            // Without the port that goes without saying: whoever signs requests leaves it out, too.
            Endpoint::Tcp(address) => address.strip_suffix(":80").unwrap_or(address),
            Endpoint::Tls(address) => address.strip_suffix(":443").unwrap_or(address),
        };
        let request = Request {
            method,
            path,
            host,
            headers: &headers,
            body,
        };
        self.connect()
            .and_then(|connection| http::exchange(connection, &request))
            .map_err(tls::explained)
            .context(what)
    }

    /// The answer, where it is one of success.
    fn answer(&self, method: &str, path: &str, body: Option<&[u8]>, headers: &[(&str, &str)]) -> Result<Answer> {
        let what = || format!("ask the grid at {}", self.endpoint);
        let answer = self.exchange(method, path, body, headers)?;
        if (200..300).contains(&answer.status) {
            return Ok(answer);
        }
        let status = answer.status;
        let bytes = read_all(answer).context(what)?;
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => Err(problem.into()),
            Err(_) => Err(Error::new(
                ErrorKind::Io,
                format!("{} answers {method} {path} with status {status}", self.endpoint),
            )),
        }
    }

    fn connect(&self) -> Result<Box<dyn Connection>> {
        match &self.endpoint {
            Endpoint::Unix(path) => {
                let what = || format!("connect to {}", path.display());
                let stream = UnixStream::connect(path).context(what)?;
                stream.set_read_timeout(Some(self.silence)).context(what)?;
                stream.set_write_timeout(Some(self.silence)).context(what)?;
                Ok(Box::new(stream))
            }
            Endpoint::Tcp(address) => Ok(Box::new(self.connect_tcp(address)?)),
            Endpoint::Tls(address) => {
                let Some(tls) = &self.tls else {
                    return Err(Error::new(
                        ErrorKind::Usage,
                        format!("nothing says which CA https://{address} goes by"),
                    )
                    .with_hint("name the file with its certificate: GRIDCPR_CA, or tls.ca of a daemon"));
                };
                let what = || format!("connect to {address}");
                let name = ServerName::try_from(host(address).to_string()).map_err(|error| {
                    Error::new(ErrorKind::Usage, format!("{address:?} has no name of a host")).with_source(error)
                })?;
                let connection = ClientConnection::new(tls.get()?, name)
                    .map_err(|error| Error::new(ErrorKind::Internal, what()).with_source(error))?;
                let mut stream = StreamOwned::new(connection, self.connect_tcp(address)?);
                stream.conn.complete_io(&mut stream.sock).context(what)?;
                Ok(Box::new(stream))
            }
        }
    }

    fn connect_tcp(&self, address: &str) -> Result<TcpStream> {
        let what = || format!("connect to {address}");
        let mut result = Err(std::io::Error::from(std::io::ErrorKind::NotFound));
        for target in address.to_socket_addrs().context(what)? {
            result = TcpStream::connect_timeout(&target, CONNECT.min(self.silence));
            if result.is_ok() {
                break;
            }
        }
        let stream = result.context(what)?;
        stream.set_nodelay(true).context(what)?;
        stream.set_read_timeout(Some(self.silence)).context(what)?;
        stream.set_write_timeout(Some(self.silence)).context(what)?;
        Ok(stream)
    }
}

fn read_all(answer: Answer) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let count = answer
        .body
        .take(LONGEST_ANSWER)
        .read_to_end(&mut bytes)
        .context(|| "read the answer")?;
    if count as u64 == LONGEST_ANSWER {
        return Err(Error::new(ErrorKind::Damaged, "the answer is too long"));
    }
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_say_how_a_service_is_reached_and_whether_others_can_listen() {
        for (text, overheard) in [
            ("/run/x", false),
            ("unix:/run/x", false),
            ("https://grid.example:7700", false),
            ("http://127.0.0.1:7700/", false),
            ("http://[::1]:7700", false),
            ("http://localhost:7700", false),
            ("http://localhost.example:7700", true),
            ("http://10.0.0.1:7700", true),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.can_be_overheard(), overheard, "{text}");
            assert_eq!(endpoint.to_string().parse::<Endpoint>().unwrap(), endpoint);
        }
        for bad in [
            "",
            "grid",
            "ftp://x:1",
            "https://x",
            "http://:80",
            "https://x:99999",
            "run/x",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }
}
