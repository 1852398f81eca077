//! UNIX sockets from outside: sock_diag, peeking at queues with the descriptors in them, names as raw bytes.

use std::collections::HashMap;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::netlink::Netlink;

/// TCP_ESTABLISHED, which the kernel uses for connected UNIX sockets, too.
pub const STATE_CONNECTED: u8 = 1;
/// TCP_LISTEN.
pub const STATE_LISTENING: u8 = 10;

pub(crate) const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Most descriptors a message can carry (SCM_MAX_FD).
const MAX_RIGHTS: usize = 253;
/// SO_PASSPIDFD's message, SCM_PIDFD.
const SCM_PIDFD: libc::c_int = 4;
/// Bytes of a name in `struct sockaddr_un`.
const NAME_MAX: usize = 108;

/// What sock_diag(7) says of a UNIX socket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SocketInfo {
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    pub kind: i32,
    /// TCP_* state: [`STATE_CONNECTED`], [`STATE_LISTENING`] or 7 (closed).
    pub state: u8,
    /// Inode number.
    pub inode: u32,
    /// Name bound to, as in sun_path without the final zero of a path.
    pub name: Vec<u8>,
    /// Inode number of the socket's file, 0 if it has none. Only the low 32 bits.
    pub file_inode: u32,
    /// The device that its file is on, by major and minor number.
    pub file_device: (u32, u32),
    /// Inode number of the peer: none without one, 0 for one that is closed or not yet accepted.
    pub peer: Option<u32>,
    /// For a listening socket: the client ends that wait to be accepted, 0 for those closed again.
    pub pending: Vec<u32>,
    /// Bytes to read, or, for a listening socket, connections that wait.
    pub receive_queue: u32,
    /// Bytes (with overhead) sent and not yet received, or, for a listening socket, the backlog.
    pub send_queue: u32,
    /// shutdown(2): bit 0 receive side, bit 1 send side.
    pub shutdown: u8,
}

/// MINORBITS of the kernel's own device numbers.
const MINOR_BITS: u32 = 20;

/// Asks about the socket with this inode number in the caller's network namespace; none if there is no such.
pub fn info(inode: u32) -> io::Result<Option<SocketInfo>> {
    diagnose(&question(inode))?.as_deref().map(parse_info).transpose()
}

/// All sockets of the caller's network namespace by their inode numbers.
pub fn infos() -> io::Result<HashMap<u32, SocketInfo>> {
    let netlink = Netlink::open(libc::NETLINK_SOCK_DIAG)?;
    let all = netlink.list(SOCK_DIAG_BY_FAMILY, &question(0))?;
    let infos = all.iter().map(|body| parse_info(body).map(|info| (info.inode, info)));
    infos.collect()
}

fn question(inode: u32) -> Vec<u8> {
    const SHOW: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10; // name, file, peer, pending connections, queue lengths
    let mut body = vec![libc::AF_UNIX as u8, 0, 0, 0]; // unix_diag_req
    body.extend_from_slice(&u32::MAX.to_ne_bytes()); // states
    body.extend_from_slice(&inode.to_ne_bytes());
    body.extend_from_slice(&SHOW.to_ne_bytes());
    body.extend_from_slice(&[0xff; 8]); // any cookie
    body
}

/// Asks sock_diag(7) about one socket; gives the body of the answer, or nothing where there is no such socket.
pub(crate) fn diagnose(body: &[u8]) -> io::Result<Option<Vec<u8>>> {
    const NLM_F_REQUEST: u16 = 1;
    const NLMSG_ERROR: usize = 2;
    let netlink = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        rustix::net::Protocol::from_raw(core::num::NonZeroU32::new(libc::NETLINK_SOCK_DIAG as u32).ok_or(INVALID)?)
            .into(),
    )?;
    let mut request = Vec::with_capacity(16 + body.len());
    request.extend_from_slice(&(16 + body.len() as u32).to_ne_bytes()); // nlmsghdr
    request.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(body);
    rustix::net::send(&netlink, &request, rustix::net::SendFlags::empty())?;
    let mut reply = vec![0u8; 64 << 10];
    let (_, length) = rustix::net::recv(&netlink, reply.as_mut_slice(), rustix::net::RecvFlags::TRUNC)?;
    let reply = reply.get(..length).ok_or(io::ErrorKind::OutOfMemory)?;
    if u16_at(reply, 4)? == NLMSG_ERROR {
        let error = u32_at(reply, 16)? as i32;
        return match -error {
            libc::ENOENT => Ok(None),
            0 => Err(INVALID.into()),
            error => Err(io::Error::from_raw_os_error(error)),
        };
    }
    let length = u32_at(reply, 0)? as usize;
    Ok(Some(reply.get(16..length).ok_or(INVALID)?.to_vec()))
}

pub(crate) const INVALID: io::ErrorKind = io::ErrorKind::InvalidData;

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    let word = bytes.get(at..at + 4).ok_or(INVALID)?;
    Ok(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
}

fn u16_at(bytes: &[u8], at: usize) -> io::Result<usize> {
    let word = bytes.get(at..at + 2).ok_or(INVALID)?;
    Ok(usize::from(u16::from_ne_bytes([word[0], word[1]])))
}

fn parse_info(body: &[u8]) -> io::Result<SocketInfo> {
    let mut info = SocketInfo {
        kind: i32::from(*body.get(1).ok_or(INVALID)?),
        state: *body.get(2).ok_or(INVALID)?,
        inode: u32_at(body, 4)?,
        ..SocketInfo::default()
    };
    let mut at = 16;
    while at + 4 <= body.len() {
        let (length, kind) = (u16_at(body, at)?, u16_at(body, at + 2)?);
        let value = body.get(at + 4..at + length.max(4)).ok_or(INVALID)?;
        match kind {
            0 => info.name = without_final_zero(value).to_vec(),
            1 => {
                info.file_inode = u32_at(value, 0)?;
                let device = u32_at(value, 4)?;
                info.file_device = (device >> MINOR_BITS, device & ((1 << MINOR_BITS) - 1));
            }
            2 => info.peer = Some(u32_at(value, 0)?),
            3 => {
                info.pending = (0..value.len() / 4)
                    .map(|i| u32_at(value, i * 4))
                    .collect::<io::Result<_>>()?
            }
            4 => (info.receive_queue, info.send_queue) = (u32_at(value, 0)?, u32_at(value, 4)?),
            6 => info.shutdown = *value.first().ok_or(INVALID)?,
            _ => {}
        }
        at += length.max(4).next_multiple_of(4);
    }
    Ok(info)
}

/// A path without the zero that ends it; other names, in which zeros count, as they are.
fn without_final_zero(name: &[u8]) -> &[u8] {
    match name {
        [0, ..] | [] => name,
        path => path.split(|&b| b == 0).next().unwrap_or_default(),
    }
}

pub(crate) fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn kind_of(kind: i32) -> io::Result<SocketType> {
    match kind {
        libc::SOCK_STREAM => Ok(SocketType::STREAM),
        libc::SOCK_DGRAM => Ok(SocketType::DGRAM),
        libc::SOCK_SEQPACKET => Ok(SocketType::SEQPACKET),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// A UNIX socket, non-blocking and close-on-exec.
pub fn create(kind: i32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        kind_of(kind)?,
        flags,
        None,
    )?)
}

/// Two connected UNIX sockets, non-blocking and close-on-exec.
pub fn pair(kind: i32) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        kind_of(kind)?,
        flags,
        None,
    )?)
}

/// `name` as a socket address, with its length.
fn address(name: &[u8]) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    if name.len() > NAME_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: sockaddr_un is plain numbers, for which all zeros is a valid value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (slot, byte) in address.sun_path.iter_mut().zip(name) {
        *slot = *byte as libc::c_char;
    }
    let zero = usize::from(matches!(name.first(), Some(byte) if *byte != 0) && name.len() < NAME_MAX);
    let length = offset_of!(libc::sockaddr_un, sun_path) + name.len() + zero;
    Ok((address, length as libc::socklen_t))
}

/// bind(2) to a name as in sun_path.
pub fn bind(socket: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let (address, length) = address(name)?;
    // SAFETY: `address` is a sockaddr_un of at least `length` bytes that lives through the call.
    checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) }).map(drop)
}

/// [`bind`] to a relative path as if the working directory were `directory`; other threads do not notice.
pub fn bind_in(socket: BorrowedFd<'_>, name: &[u8], directory: &Path) -> io::Result<()> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            // SAFETY: CLONE_FS gives this thread, which ends below, a working directory of its own; no memory or
            // descriptor table is affected.
            checked(unsafe { libc::unshare(libc::CLONE_FS) })?;
            std::env::set_current_dir(directory)?;
            bind(socket, name)
        })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that binds a socket ended early")))
    })
}

/// [`bind`] to a path as if the root directory were `root`, and the working directory, for a relative one, `directory`
/// in that; other threads do not notice. It takes CAP_SYS_CHROOT.
pub fn bind_below(socket: BorrowedFd<'_>, name: &[u8], root: BorrowedFd<'_>, directory: &Path) -> io::Result<()> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            // SAFETY: CLONE_FS gives this thread, which ends below, directories of its own; no memory or descriptor
            // table is affected.
            checked(unsafe { libc::unshare(libc::CLONE_FS) })?;
            rustix::process::fchdir(root)?;
            rustix::process::chroot(".")?;
            std::env::set_current_dir(directory)?;
            bind(socket, name)
        })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that binds a socket ended early")))
    })
}

/// connect(2) to a name as in sun_path.
pub fn connect(socket: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let (address, length) = address(name)?;
    // SAFETY: `address` is a sockaddr_un of at least `length` bytes that lives through the call.
    checked(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) }).map(drop)
}

/// Dissolves the connection of a datagram socket: connect(2) to AF_UNSPEC.
pub fn disconnect(socket: BorrowedFd<'_>) -> io::Result<()> {
    let (mut address, _) = address(&[])?;
    address.sun_family = libc::AF_UNSPEC as libc::sa_family_t;
    let length = size_of::<libc::sa_family_t>() as libc::socklen_t;
    // SAFETY: `address` is larger than `length` bytes and lives through the call.
    checked(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) }).map(drop)
}

/// listen(2).
pub fn listen(socket: BorrowedFd<'_>, backlog: u32) -> io::Result<()> {
    Ok(rustix::net::listen(socket, i32::try_from(backlog).unwrap_or(i32::MAX))?)
}

/// accept4(2): the new socket is non-blocking and close-on-exec.
pub fn accept(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(
        socket,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
    )?)
}

/// shutdown(2) of the sides in `mask`: bit 0 receive, bit 1 send.
pub fn shutdown(socket: BorrowedFd<'_>, mask: u32) -> io::Result<()> {
    let how = match mask & 3 {
        0 => return Ok(()),
        1 => rustix::net::Shutdown::Read,
        2 => rustix::net::Shutdown::Write,
        _ => rustix::net::Shutdown::Both,
    };
    Ok(rustix::net::shutdown(socket, how)?)
}

/// The name a socket is bound to, as in sun_path.
pub fn name(socket: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let (mut address, _) = address(&[])?;
    let mut length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the kernel stores at most `length` bytes, the size of `address`.
    checked(unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &mut length) })?;
    Ok(name_of(&address, length))
}

fn name_of(address: &libc::sockaddr_un, length: libc::socklen_t) -> Vec<u8> {
    let length = (length as usize).saturating_sub(offset_of!(libc::sockaddr_un, sun_path));
    let name: Vec<u8> = address.sun_path.iter().take(length).map(|&c| c as u8).collect();
    without_final_zero(&name).to_vec()
}

/// An integer option of level SOL_SOCKET.
pub fn option(socket: BorrowedFd<'_>, option: i32) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel stores at most `length` bytes, the size of `value`.
    checked(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &mut length,
        )
    })?;
    Ok(value)
}

/// Sets an integer option of level SOL_SOCKET.
pub fn set_option(socket: BorrowedFd<'_>, option: i32, value: i32) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes, the size of `value`.
    checked(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            length,
        )
    })
    .map(drop)
}

/// SO_RCVTIMEO or SO_SNDTIMEO in microseconds; zero is none.
pub fn timeout(socket: BorrowedFd<'_>, option: i32) -> io::Result<i64> {
    let mut value = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let mut length = size_of::<libc::timeval>() as libc::socklen_t;
    // SAFETY: the kernel stores at most `length` bytes, the size of `value`.
    checked(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &mut length,
        )
    })?;
    Ok(value.tv_sec.saturating_mul(1_000_000).saturating_add(value.tv_usec))
}

/// Sets SO_RCVTIMEO or SO_SNDTIMEO in microseconds.
pub fn set_timeout(socket: BorrowedFd<'_>, option: i32, microseconds: i64) -> io::Result<()> {
    let value = libc::timeval {
        tv_sec: microseconds / 1_000_000,
        tv_usec: microseconds % 1_000_000,
    };
    let length = size_of::<libc::timeval>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes, the size of `value`.
    checked(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            length,
        )
    })
    .map(drop)
}

/// A message in a receive queue.
#[derive(Debug, Default)]
pub struct Message {
    /// Contents, at most as many bytes as asked for.
    pub data: Vec<u8>,
    /// Length of the whole message, for datagrams.
    pub length: usize,
    /// Descriptors it carries: new ones for the same open file descriptions.
    pub rights: Vec<OwnedFd>,
    /// Name of the sender.
    pub sender: Vec<u8>,
}

/// Space for control messages, aligned for `struct cmsghdr`.
struct Control(Vec<u64>);

impl Control {
    fn new() -> Self {
        // Descriptors, credentials, a pidfd and a security label, each with its header.
        Control(vec![0; (MAX_RIGHTS * 4 + 16 + 4096).div_ceil(8)])
    }

    fn bytes(&self) -> usize {
        self.0.len() * 8
    }
}

/// Looks at the next message without taking it (MSG_PEEK), from the socket's SO_PEEK_OFF on; none if the queue is
/// empty. At the end of a stream, or of a shut SOCK_SEQPACKET socket, gives an empty message.
pub fn peek(socket: BorrowedFd<'_>, size: usize) -> io::Result<Option<Message>> {
    let mut data = vec![0u8; size];
    let mut control = Control::new();
    let (mut sender, _) = address(&[])?;
    let mut slice = libc::iovec {
        iov_base: data.as_mut_ptr().cast(),
        iov_len: size,
    };
    // SAFETY: msghdr is plain numbers and pointers, for which all zeros is a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw mut sender).cast();
    header.msg_namelen = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    header.msg_iov = &mut slice;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.bytes() as _;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: name, data and control buffers are ours, as long as the header says, and live through the call.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, flags) };
    if received < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock {
            Ok(None)
        } else {
            Err(error)
        };
    }
    let mut rights = Vec::new();
    // SAFETY: the kernel filled the control buffer and set its length, as CMSG_FIRSTHDR expects.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&header) };
    while !next.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give only headers that lie within the buffer, which is aligned for
        // them.
        let (level, kind, length) = unsafe { ((*next).cmsg_level, (*next).cmsg_type, (*next).cmsg_len as usize) };
        if level == libc::SOL_SOCKET && (kind == libc::SCM_RIGHTS || kind == SCM_PIDFD) {
            // SAFETY: CMSG_DATA and CMSG_LEN only compute with the header's address; the kernel put descriptors there,
            // as many as `length` says. They may be unaligned for int, so they are copied.
            let (start, count) = unsafe {
                let start = libc::CMSG_DATA(next).cast::<libc::c_int>();
                (start, (length - libc::CMSG_LEN(0) as usize) / size_of::<libc::c_int>())
            };
            for index in 0..count {
                // SAFETY: `index` is within the message, see above.
                let fd = unsafe { start.add(index).read_unaligned() };
                if fd < 0 {
                    continue; // SCM_PIDFD carries an error number where the kernel could make no pidfd
                }
                // SAFETY: the kernel just made this descriptor for us, so nobody else owns it.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                if kind == libc::SCM_RIGHTS {
                    rights.push(fd);
                }
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR; `next` came from it or from here.
        next = unsafe { libc::CMSG_NXTHDR(&header, next) };
    }
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::other(
            "a message carries more descriptors than can be received",
        ));
    }
    let received = received as usize;
    data.truncate(received);
    Ok(Some(Message {
        data,
        length: received,
        rights,
        sender: if header.msg_namelen == 0 {
            Vec::new()
        } else {
            name_of(&sender, header.msg_namelen)
        },
    }))
}

/// How many of the next `length` bytes of a stream, from SO_PEEK_OFF on, lie in pieces (as written by one call) that
/// end within them. Takes nothing.
///
/// The kernel says nothing of pieces, but it copies each as a whole: into a buffer whose end cannot be written it
/// copies those that fit.
pub fn peek_whole_pieces(socket: BorrowedFd<'_>, length: usize) -> io::Result<usize> {
    use rustix::mm::{MapFlags, ProtFlags};
    const PAGE: usize = 4096;
    // SAFETY: a new private mapping at an address of the kernel's choice affects no other memory.
    let wall =
        unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), PAGE, ProtFlags::empty(), MapFlags::PRIVATE) }?;
    let mut data = vec![0u8; length];
    let mut slices = [
        libc::iovec {
            iov_base: data.as_mut_ptr().cast(),
            iov_len: length,
        },
        libc::iovec {
            iov_base: wall,
            iov_len: PAGE,
        },
    ];
    // SAFETY: msghdr is plain numbers and pointers, for which all zeros is a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = slices.as_mut_ptr();
    header.msg_iovlen = slices.len() as _;
    // SAFETY: the first buffer is ours and as long as it says; the second is a mapping of ours nobody can access, so
    // the kernel fails to write there. There is no room for descriptors, so none are made.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    let error = io::Error::last_os_error();
    // SAFETY: the mapping was made above, and no reference to it exists.
    unsafe { rustix::mm::munmap(wall, PAGE) }?;
    match received {
        0.. => Ok(received as usize),
        _ if error.raw_os_error() == Some(libc::EFAULT) => Ok(0),
        _ => Err(error),
    }
}

/// Sends without blocking; to `name` if there is one. Gives the number of bytes taken.
pub fn send(socket: BorrowedFd<'_>, data: &[u8], rights: &[BorrowedFd<'_>], name: Option<&[u8]>) -> io::Result<usize> {
    if rights.len() > MAX_RIGHTS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut control = Control::new();
    let (mut to, to_length) = address(name.unwrap_or_default())?;
    let mut slice = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: msghdr is plain numbers and pointers, for which all zeros is a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    if name.is_some() {
        header.msg_name = (&raw mut to).cast();
        header.msg_namelen = to_length;
    }
    header.msg_iov = &mut slice;
    header.msg_iovlen = 1;
    if !rights.is_empty() {
        let bytes = (rights.len() * size_of::<libc::c_int>()) as libc::c_uint;
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE only computes.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(bytes) } as _;
        // SAFETY: the control buffer is aligned for cmsghdr and, by the check of `rights`, larger than
        // CMSG_SPACE(bytes), so header and all descriptors lie within it.
        unsafe {
            let message = libc::CMSG_FIRSTHDR(&header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(bytes) as _;
            let start = libc::CMSG_DATA(message).cast::<libc::c_int>();
            for (index, fd) in rights.iter().enumerate() {
                start.add(index).write_unaligned(fd.as_raw_fd());
            }
        }
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: name, data and control buffers are as long as the header says and live through the call, which only reads
    // them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &header, flags) };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(sent as usize)
    }
}

/// SIOCINQ: bytes to read; of a SOCK_DGRAM socket those of the first message.
pub fn queued(socket: BorrowedFd<'_>) -> io::Result<usize> {
    Ok(rustix::io::ioctl_fionread(socket).map(|n| n as usize)?)
}

/// Whether somebody can be reached at the socket file `name`. Tried with a socket of another kind than `kind`, so that
/// nobody gets a connection.
pub fn in_use(name: &[u8], kind: i32) -> io::Result<bool> {
    let other = if kind == libc::SOCK_DGRAM {
        libc::SOCK_STREAM
    } else {
        libc::SOCK_DGRAM
    };
    let probe = create(other)?;
    match connect(probe.as_fd(), name) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ECONNREFUSED | libc::ENOENT)) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => Ok(true),
        Err(error) => Err(error),
        Ok(()) => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(fd: &OwnedFd) -> u32 {
        rustix::fs::fstat(fd).unwrap().st_ino as u32
    }

    #[test]
    fn diag_knows_peers_names_and_waiting_clients() {
        let name = format!("\0cpr-diag-{}", std::process::id()).into_bytes();
        let listener = create(libc::SOCK_STREAM).unwrap();
        bind(listener.as_fd(), &name).unwrap();
        listen(listener.as_fd(), 7).unwrap();
        let client = create(libc::SOCK_STREAM).unwrap();
        connect(client.as_fd(), &name).unwrap();
        let found = info(inode(&listener)).unwrap().unwrap();
        assert_eq!(
            (found.state, found.send_queue, found.receive_queue),
            (STATE_LISTENING, 7, 1)
        );
        assert_eq!(found.name, name);
        assert_eq!(found.pending, [inode(&client)]);
        assert_eq!(info(inode(&client)).unwrap().unwrap().peer, Some(0));
        let server = accept(listener.as_fd()).unwrap();
        assert_eq!(info(inode(&client)).unwrap().unwrap().peer, Some(inode(&server)));
        assert_eq!(super::name(server.as_fd()).unwrap(), name);
        drop(client);
        let found = info(inode(&server)).unwrap().unwrap();
        assert_eq!((found.peer, found.shutdown), (Some(0), 3));
        assert_eq!(info(u32::MAX - 1).unwrap(), None);
    }

    #[test]
    fn peeking_takes_nothing() {
        let (a, b) = pair(libc::SOCK_DGRAM).unwrap();
        let file = std::io::pipe().unwrap().0;
        send(a.as_fd(), b"one", &[file.as_fd()], None).unwrap();
        send(a.as_fd(), b"three", &[], None).unwrap();
        set_option(b.as_fd(), libc::SO_PEEK_OFF, 0).unwrap();
        let first = peek(b.as_fd(), 2).unwrap().unwrap();
        assert_eq!(
            (first.data.as_slice(), first.length, first.rights.len()),
            (&b"on"[..], 3, 1)
        );
        set_option(b.as_fd(), libc::SO_PEEK_OFF, 3).unwrap();
        let second = peek(b.as_fd(), 100).unwrap().unwrap();
        assert_eq!((second.data.as_slice(), second.rights.len()), (&b"three"[..], 0));
        assert!(peek(b.as_fd(), 100).unwrap().is_none());
        let mut buffer = [0u8; 8];
        assert_eq!(rustix::io::read(&b, &mut buffer).unwrap(), 3);
    }

    #[test]
    fn pieces_of_a_stream_can_be_told_apart() {
        let (a, b) = pair(libc::SOCK_STREAM).unwrap();
        for piece in [&b"12345"[..], b"678", b"90"] {
            send(a.as_fd(), piece, &[], None).unwrap();
        }
        let whole: Vec<usize> = [0, 4, 5, 7, 8, 9, 10]
            .map(|n| peek_whole_pieces(b.as_fd(), n).unwrap())
            .into();
        assert_eq!(whole, [0, 0, 5, 5, 8, 8, 10]);
        assert_eq!(queued(b.as_fd()).unwrap(), 10);
    }

    #[test]
    fn timeouts_and_stale_files() {
        let directory = format!("/tmp/cpr-socket-{}", std::process::id());
        std::fs::create_dir_all(&directory).unwrap();
        let socket = create(libc::SOCK_STREAM).unwrap();
        set_timeout(socket.as_fd(), libc::SO_RCVTIMEO, 1_500_000).unwrap();
        assert_eq!(timeout(socket.as_fd(), libc::SO_RCVTIMEO).unwrap(), 1_500_000);
        bind_in(socket.as_fd(), b"s", Path::new(&directory)).unwrap();
        assert_eq!(name(socket.as_fd()).unwrap(), b"s");
        let path = format!("{directory}/s");
        assert!(in_use(path.as_bytes(), libc::SOCK_STREAM).unwrap());
        drop(socket);
        assert!(!in_use(path.as_bytes(), libc::SOCK_STREAM).unwrap());
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
