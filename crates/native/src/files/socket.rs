//! Sockets of all families: which file saves and restores what.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use cpr_image::model::Object;
use cpr_kernel::inet::state;
use cpr_kernel::socket as kernel;
use cpr_types::{Context, Error, ErrorKind, Result};

use super::{Description, RestoreContext, SaveContext, inet, netlink, packet, unix};

const SO_TYPE: i32 = 3;
const SO_PROTOCOL: i32 = 38;
const SO_DOMAIN: i32 = 39;
pub(super) const IPPROTO_MPTCP: i32 = libc::IPPROTO_MPTCP;

/// What kind of socket a descriptor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Class {
    /// AF_UNIX: [`unix`].
    Unix,
    /// TCP, UDP, ping and raw IP sockets: [`inet`].
    Inet,
    /// [`netlink`].
    Netlink,
    /// [`packet`].
    Packet,
    /// Another one; what to call it in a refusal.
    Other(String),
}

/// Tells the families of sockets apart.
///
/// # Errors
/// Asking for the family fails, for example because `handle` is no socket.
pub fn classify(handle: BorrowedFd<'_>) -> std::io::Result<Class> {
    let domain = kernel::option(handle, SO_DOMAIN)?;
    let kind = kernel::option(handle, SO_TYPE)?;
    let protocol = kernel::option(handle, SO_PROTOCOL)?;
    Ok(match (domain, kind) {
        (libc::AF_UNIX, _) => Class::Unix,
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM) if protocol == IPPROTO_MPTCP => {
            // What a connection has agreed on with the other side shows nowhere. To a listening socket others connect
            // as well that know nothing of several paths, and get plain TCP.
            match cpr_kernel::inet::tcp_info(handle)?.state {
                state::CLOSE | state::LISTEN => Class::Inet,
                _ => Class::Other("a multipath TCP connection".into()),
            }
        }
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM) if protocol == libc::IPPROTO_TCP => Class::Inet,
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM | libc::SOCK_RAW) => Class::Inet,
        (libc::AF_INET | libc::AF_INET6, _) => Class::Other(format!("a socket of IP protocol {protocol}")),
        (libc::AF_NETLINK, _) => Class::Netlink,
        (libc::AF_PACKET, _) => Class::Packet,
        (libc::AF_ALG, _) => Class::Other("a kernel cryptography socket".into()),
        (libc::AF_VSOCK, _) => Class::Other("a vsock socket".into()),
        (domain, _) => Class::Other(format!("a socket of address family {domain}")),
    })
}

/// What to do about a socket that is refused.
pub(super) const HINT: &str = "close it before the checkpoint";

/// Refuses a socket of a kind that is not known.
pub(super) fn refuse(label: &str, name: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{label}: {name} is not supported")).with_hint(HINT)
}

/// Saves a socket, or notes it for [`finish`].
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a socket of another family, and what its own file gives.
pub fn save(description: &Description, context: &mut SaveContext<'_>) -> Result<Object> {
    use std::os::fd::AsFd;
    let label = || description.label();
    let class = classify(description.handle.as_fd()).context(|| format!("{}: ask for the family", label()))?;
    match class {
        Class::Unix => unix::save(description, context),
        Class::Inet => inet::save(description, context),
        Class::Netlink => netlink::save(description, context.networks),
        Class::Packet => packet::save(description, context),
        Class::Other(name) => Err(refuse(&label(), &name)),
    }
}

/// Saves all sockets noted. All processes must be stopped.
///
/// # Errors
/// What cannot be saved.
pub fn finish(context: &mut SaveContext<'_>) -> Result<()> {
    unix::finish(context)?;
    // Messages between UNIX sockets can carry any other.
    inet::finish(context)
}

/// Makes all sockets of the image that depend on each other.
///
/// # Errors
/// As [`unix::Sockets::create`] and [`inet::Sockets::create`].
pub fn create_all(context: &mut RestoreContext<'_>) -> Result<()> {
    context.sockets = Some(unix::Sockets::create(
        &context.manifest.sockets,
        context.networks,
        &context.views,
    )?);
    let meeting = context.meeting;
    let inet = inet::Sockets::create(&context.manifest.inet_sockets, context.networks, meeting)?;
    context.inet_sockets = Some(inet);
    Ok(())
}

/// Puts all messages back, when all open files of the image exist.
///
/// # Errors
/// As [`unix::Sockets::fill`] and [`inet::Sockets::fill`].
pub fn fill_queues(context: &mut RestoreContext<'_>, files: &[Arc<OwnedFd>]) -> Result<()> {
    if let Some(sockets) = context.sockets.take() {
        sockets.fill(&context.manifest.sockets, files, context.networks)?;
    }
    if let Some(sockets) = context.inet_sockets.take() {
        let notes = sockets.fill(&context.manifest.inet_sockets, context.networks)?;
        context.notes.extend(notes);
    }
    Ok(())
}
