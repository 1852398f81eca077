//! A client of the grid service, or of another node's agent: over a UNIX socket, or TCP with a token.
//!
//! Calls block, and every wait for the other side has a deadline.

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use cpr_types::{Context, Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::http::{self, Answer, Connection, Request};
use crate::model::Problem;

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
    /// `HOST:PORT`; the service knows by a token who calls.
    Tcp(String),
}

impl std::str::FromStr for Endpoint {
    type Err = Error;

    /// `unix:/PATH`, `/PATH` or `http://HOST:PORT`.
    fn from_str(text: &str) -> Result<Self> {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        if path.starts_with('/') {
            return Ok(Endpoint::Unix(path.into()));
        }
        match text.strip_prefix("http://").map(|rest| rest.trim_end_matches('/')) {
            Some(address)
                if address
                    .rsplit_once(':')
                    .is_some_and(|(_, port)| port.parse::<u16>().is_ok()) =>
            {
                Ok(Endpoint::Tcp(address.to_string()))
            }
            _ => Err(
                Error::new(ErrorKind::Usage, format!("{text:?} is not the address of a grid"))
                    .with_hint("write unix:/run/gridcpr/cprd.sock or http://HOST:PORT"),
            ),
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            Endpoint::Tcp(address) => write!(f, "http://{address}"),
        }
    }
}

/// Calls a service. Each call has a connection of its own, so that nothing is left of one that failed.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
    token: Option<String>,
    silence: Duration,
}

impl Client {
    /// A client that says `token` to a TCP service.
    pub fn new(endpoint: Endpoint, token: Option<String>) -> Client {
        Client {
            endpoint,
            token,
            silence: SILENCE,
        }
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

    /// The answer, where it is one of success.
    fn answer(&self, method: &str, path: &str, body: Option<&[u8]>, headers: &[(&str, &str)]) -> Result<Answer> {
        let what = || format!("ask the grid at {}", self.endpoint);
        let bearer = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let mut headers = headers.to_vec();
        if let Some(bearer) = &bearer {
            headers.push(("authorization", bearer));
        }
        let host = match &self.endpoint {
            Endpoint::Unix(_) => "localhost",
            Endpoint::Tcp(address) => address,
        };
        let request = Request {
            method,
            path,
            host,
            headers: &headers,
            body,
        };
        let answer = self
            .connect()
            .and_then(|connection| http::exchange(connection, &request))
            .context(what)?;
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
            Endpoint::Tcp(address) => {
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
                Ok(Box::new(stream))
            }
        }
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
