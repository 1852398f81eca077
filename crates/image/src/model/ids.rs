//! Numbers of the entries of the tables of an image.

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl $name {
            /// As an index into the manifest's table of that name.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}

id!(
    /// Index into [`Manifest::files`](super::Manifest::files).
    FileId
);
id!(
    /// Index into [`Manifest::address_spaces`](super::Manifest::address_spaces).
    AddressSpaceId
);
id!(
    /// Index into [`Manifest::mapped_files`](super::Manifest::mapped_files).
    MappedFileId
);
id!(
    /// Index into [`Manifest::saved_files`](super::Manifest::saved_files).
    SavedFileId
);
id!(
    /// Index into [`Manifest::pipes`](super::Manifest::pipes).
    PipeId
);
id!(
    /// Index into [`Manifest::sockets`](super::Manifest::sockets).
    SocketId
);
id!(
    /// Index into [`Manifest::inet_sockets`](super::Manifest::inet_sockets).
    InetSocketId
);
id!(
    /// Index into [`Manifest::packet_sockets`](super::Manifest::packet_sockets).
    PacketSocketId
);
id!(
    /// Index into [`Manifest::io_urings`](super::Manifest::io_urings).
    IoUringId
);
id!(
    /// Index into [`Manifest::terminals`](super::Manifest::terminals).
    TerminalId
);
id!(
    /// Index into [`Manifest::host_names`](super::Manifest::host_names).
    HostNamesId
);
id!(
    /// Index into [`Manifest::time_namespaces`](super::Manifest::time_namespaces).
    TimeNamespaceId
);
id!(
    /// Index into [`Manifest::networks`](super::Manifest::networks).
    NetworkId
);
id!(
    /// Index into [`Manifest::ipc_namespaces`](super::Manifest::ipc_namespaces).
    IpcNamespaceId
);
id!(
    /// Which one of [`Manifest::cgroup_namespaces`](super::Manifest::cgroup_namespaces) it is.
    CgroupNamespaceId
);
id!(
    /// Index into [`Manifest::pid_namespaces`](super::Manifest::pid_namespaces).
    PidNamespaceId
);
id!(
    /// Index into [`Manifest::user_namespaces`](super::Manifest::user_namespaces).
    UserNamespaceId
);
id!(
    /// Index into [`Manifest::mount_namespaces`](super::Manifest::mount_namespaces).
    MountNamespaceId
);
id!(
    /// Index into [`Ipc::segments`].
    SegmentId
);
id!(
    /// Index into [`Ipc::posix_queues`].
    PosixQueueId
);
