//! Serves HTTP/1.1 at a socket, within limits: whoever is slow, silent, greedy or no speaker of HTTP loses the
//! connection, and keeps nobody else from having one.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as Task, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use cpr_types::Result;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::{Sleep, sleep};
use tokio_rustls::TlsAcceptor;
use tower_service::Service as _;

use crate::log;
use crate::tls::ServerTls;

/// Longest head of a request, bytes.
const LONGEST_HEAD: usize = 64 << 10;
/// The other side may refuse to take an answer for so long.
const STALL: Duration = Duration::from_secs(60);
/// Pause when no connection can be had from the kernel.
const PAUSE: Duration = Duration::from_millis(200);

/// What is granted.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Connections at once of one host, or of one user of this machine.
    pub connections_per_peer: usize,
    /// How long a handshake and the head of a request may take, and how long a connection may be idle.
    pub patience: Duration,
}

/// The other side of a connection; an extension of every request.
#[derive(Debug, Clone)]
pub enum Peer {
    /// A process of this user on this machine, by SO_PEERCRED (unix(7)).
    Local { uid: u32 },
    /// Somebody on the network, with the certificates they have shown.
    Remote {
        certificates: Arc<Vec<CertificateDer<'static>>>,
    },
}

/// Where connections come from.
pub enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener, Option<Arc<ServerTls>>),
}

/// Who has how many connections is counted by this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Origin {
    User(u32),
    Host(IpAddr),
}

type Counts = Arc<Mutex<HashMap<Origin, usize>>>;

/// A connection that counts.
struct Counted {
    counts: Counts,
    origin: Origin,
}

impl Counted {
    /// None where its origin has enough of them.
    fn new(counts: &Counts, origin: Origin, most: usize) -> Option<Counted> {
        let mut map = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = map.entry(origin).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Counted {
            counts: counts.clone(),
            origin,
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut map = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = map.get_mut(&self.origin) {
            *count -= 1;
            if *count == 0 {
                map.remove(&self.origin);
            }
        }
    }
}

/// Serves for ever.
pub async fn serve(listener: Listener, router: Router, limits: Limits) -> Result<()> {
    let all = Arc::new(Semaphore::new(limits.connections));
    let counts = Counts::default();
    loop {
        // Who comes when there are too many waits in the kernel's queue.
        let Ok(permit) = all.clone().acquire_owned().await else {
            return Ok(());
        };
        let (router, limits, counts) = (router.clone(), limits.clone(), counts.clone());
        let accepted = match &listener {
            Listener::Unix(socket) => socket.accept().await.map(|(stream, _)| {
                // One that has gone already needs no answer.
                let Ok(credentials) = stream.peer_cred() else { return };
                let uid = credentials.uid();
                let Some(counted) = Counted::new(&counts, Origin::User(uid), limits.connections_per_peer) else {
                    return;
                };
                tokio::spawn(async move {
                    let _held = (permit, counted);
                    answer(stream, Peer::Local { uid }, router, &limits).await;
                });
            }),
            Listener::Tcp(socket, tls) => socket.accept().await.map(|(stream, address)| {
                let host = Origin::Host(address.ip().to_canonical());
                let Some(counted) = Counted::new(&counts, host, limits.connections_per_peer) else {
                    return;
                };
                let tls = tls.clone();
                tokio::spawn(async move {
                    let _held = (permit, counted);
                    let _ = stream.set_nodelay(true);
                    match tls {
                        None => answer(stream, remote(None), router, &limits).await,
                        Some(tls) => {
                            let Ok(side) = tls.get() else { return };
                            let acceptor = TlsAcceptor::from(side.config.clone());
                            // Whoever is refused is told so by TLS.
                            if let Ok(Ok(stream)) = tokio::time::timeout(limits.patience, acceptor.accept(stream)).await
                            {
                                let peer = remote(stream.get_ref().1.peer_certificates());
                                answer(stream, peer, router, &limits).await;
                            }
                        }
                    }
                });
            }),
        };
        if let Err(error) = accepted {
            // Too many open files, or a connection that has gone.
            log(format!("accepting a connection: {error}"));
            sleep(PAUSE).await;
        }
    }
}

fn remote(certificates: Option<&[CertificateDer<'static>]>) -> Peer {
    Peer::Remote {
        certificates: Arc::new(certificates.unwrap_or_default().to_vec()),
    }
}

/// Answers the requests of one connection.
async fn answer(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: Peer,
    router: Router,
    limits: &Limits,
) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        router.clone().call(request)
    });
    let stream = Draining { stream, stalled: None };
    // How a connection ends says nothing about requests: each was answered, or its caller has gone.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.patience)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// A stream that fails when the other side takes nothing of what is written for too long.
struct Draining<S> {
    stream: S,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Draining<S> {
    /// Passes on how a write went.
    fn check<T>(&mut self, task: &mut Task<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALL)));
        ready!(stalled.as_mut().poll(task));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Draining<S> {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Task<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(task, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Draining<S> {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Task<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(task, bytes);
        self.check(task, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(task);
        self.check(task, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.stream).poll_shutdown(task);
        self.check(task, closed)
    }
}
