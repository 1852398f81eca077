//! Mounting everything in a mount namespace that is no copy of the job's own.
//!
//! It is built over the root directory of a copy, which then goes. Everything is mounted by descriptors: a path is
//! looked up once, from the directory it is of, and never leads out of that. Whoever builds is in the user namespace
//! that the mount namespace belongs to, so that the kernel allows what it allowed the job, and locks what was locked.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};

use cpr_image::model::{ByteString, MountNamespace, MountOption, MountPoint, Mounted, Propagation, UserNamespaceId};
use cpr_kernel::batch::{Arg, Batch, CallId};
use cpr_kernel::process::PidFd;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::process::PidfdGetfdFlags;

use super::stub::{self, Workshop};
use super::{memory_files, users};
use crate::cgroups;
use crate::outside::LOOKS;
use crate::sink::PageSource;

const OPEN_TREE_CLONE: i32 = 1;
/// MOVE_MOUNT_F_EMPTY_PATH and MOVE_MOUNT_T_EMPTY_PATH.
const BY_DESCRIPTORS: i32 = 4 | 0x40;
const FSCONFIG_SET_FLAG: i32 = 0;
const FSCONFIG_SET_STRING: i32 = 1;
const FSCONFIG_CMD_CREATE: i32 = 6;
const FSOPEN_CLOEXEC: i32 = 1;
const FSMOUNT_CLOEXEC: i32 = 1;
const ATTRIBUTE_READ_ONLY: u64 = 1;
/// MOUNT_ATTR__ATIME.
const TIMES: u64 = 0x70;
/// What is set again whatever it was: when times of access are noted (MOUNT_ATTR__ATIME and NODIRATIME). Nothing is
/// allowed that is not where a mount is taken from, but in the job's own file systems.
const CHOSEN: u64 = TIMES | 0x80;
/// MOUNT_ATTR_RDONLY, NOSUID, NODEV, NOEXEC and NOSYMFOLLOW.
const DENIED: u64 = 1 | 2 | 4 | 8 | 0x20_0000;
/// RESOLVE_NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS and IN_ROOT of openat2(2).
const NO_OTHER_MOUNT: u64 = 1;
const NO_MAGIC: u64 = 2;
const NO_LINKS: u64 = 4;
const IN_ROOT: u64 = 0x10;
/// Where memory for changes to layers is mounted while those are: no layer is below it.
const SCRATCH: &str = "/proc";
const STATX_ATTR_MOUNT_ROOT: u64 = 0x2000;

/// Makes a file system of terminals of a mount namespace, before there is one to mount it in: sessions need theirs when
/// they are made.
///
/// # Errors
/// The kernel refuses it.
pub fn make_terminals(
    workshop: &mut Workshop,
    namespace: &MountNamespace,
    index: usize,
    source: &dyn PageSource,
) -> Result<OwnedFd> {
    let missing = || Error::new(ErrorKind::Damaged, "there is no such file system of terminals");
    let point = namespace.tree.get(index).ok_or_else(missing)?;
    let Mounted::Terminals { options } = &point.mounted else {
        return Err(missing());
    };
    let maker = workshop.spare();
    workshop.spawn(maker)?;
    if let Some(owner) = namespace.owner {
        users::enter(workshop, maker, owner)?;
    }
    let none = HashMap::new();
    let work = Work {
        workshop,
        builder: maker,
        owner: namespace.owner,
        source,
        given: &none,
        home: 0,
        mounts: Vec::new(),
    };
    work.call(|batch| {
        let flags = [Arg::from(libc::CLONE_NEWNS)];
        batch.must(libc::SYS_unshare, &flags, "make a mount namespace")
    })?;
    let made = work.new_file_system(b"devpts", options, point.attributes)?;
    let system = work.fetch(made)?;
    workshop.end(maker, None)?;
    Ok(system)
}

/// What else of a mount namespace is needed when it has been built.
#[derive(Debug, Default)]
pub struct Wanted<'a> {
    /// Copies of parts of its mounts: each the place in the tree, and the path from there.
    pub copies: Vec<(u32, &'a ByteString)>,
}

/// What is left of building a mount namespace.
#[derive(Debug, Default)]
pub struct Built {
    /// The copies that were wanted; mounted nowhere.
    pub copies: Vec<OwnedFd>,
    /// Mounts that are in groups or follow such, with their places in the tree.
    pub members: Vec<(usize, OwnedFd)>,
}

/// Has `builder`, which must be in the right user and PID namespaces, go to a new mount namespace with everything in
/// it; `given` is what has been made already, by the place in the tree.
///
/// # Errors
/// [`ErrorKind::Incompatible`] where what it needs is missing; the kernel refuses a mount.
pub fn build(
    workshop: &Workshop,
    builder: i32,
    namespace: &MountNamespace,
    source: &dyn PageSource,
    given: &HashMap<usize, BorrowedFd<'_>>,
    wanted: &Wanted<'_>,
) -> Result<Built> {
    let mut work = Work {
        workshop,
        builder,
        owner: namespace.owner,
        source,
        given,
        home: 0,
        mounts: Vec::new(),
    };
    work.home = work.call(|batch| {
        let flags = [Arg::from(libc::CLONE_NEWNS)];
        batch.must(libc::SYS_unshare, &flags, "make a mount namespace");
        let (none, root) = (batch.string(b"none"), batch.string(b"/"));
        let flags = libc::MS_REC | libc::MS_SLAVE;
        let arguments = [none, root, Arg::from(0), flags.into(), Arg::from(0)];
        batch.must(libc::SYS_mount, &arguments, "keep mounts from showing elsewhere");
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let arguments = [Arg::from(libc::AT_FDCWD), root, flags.into(), Arg::from(0)];
        batch.must(libc::SYS_openat, &arguments, "open the root directory")
    })?;
    let tree = &namespace.tree;
    for (index, point) in tree.iter().enumerate() {
        let mount = work
            .mount(point, tree)
            .context(|| format!("mount {} again", describe(point, index)))?;
        work.mounts.push(mount);
    }
    let mut built = Built::default();
    for (of, path) in &wanted.copies {
        let what = || format!("copy mount {of} for another mount namespace");
        let whole = work.mounts.get(*of as usize).copied().flatten();
        let whole = whole.ok_or_else(|| Error::new(ErrorKind::Incompatible, "it is not mounted here"));
        let copy = work.part(whole.context(what)?, path).context(what)?;
        built.copies.push(work.fetch(copy)?);
        work.close(copy)?;
    }
    for (index, (point, mount)) in tree.iter().zip(&work.mounts).enumerate() {
        let Some(mount) = mount else { continue };
        match point.propagation {
            Propagation::Shared => work.set(*mount, 0, 0, libc::MS_SHARED)?,
            Propagation::Unbindable => work.set(*mount, 0, 0, libc::MS_UNBINDABLE)?,
            Propagation::Private | Propagation::Follows => {}
        }
        if point.peers.or(point.follows).is_some() {
            built.members.push((index, work.fetch(*mount)?));
        }
    }
    let missing = || Error::new(ErrorKind::Damaged, "nothing is mounted at its root");
    let root = work.mounts.first().copied().flatten().ok_or_else(missing)?;
    let mut batch = Batch::new();
    batch.must(libc::SYS_fchdir, &[root.into()], "go to the new root directory");
    let here = batch.string(b".");
    batch.must(libc::SYS_pivot_root, &[here, here], "change the root");
    batch.must(libc::SYS_fchdir, &[work.home.into()], "go to the old root directory");
    batch.must(
        libc::SYS_umount2,
        &[here, libc::MNT_DETACH.into()],
        "unmount the old root",
    );
    let top = batch.string(b"/");
    batch.must(libc::SYS_chdir, &[top], "go to the root directory");
    workshop.run(builder, &batch)?;
    Ok(built)
}

fn describe(point: &MountPoint, index: usize) -> String {
    match &point.mounted {
        Mounted::Bind { path, .. } => format!("{path} (mount {index}, at {})", point.at),
        _ => format!("mount {index} (at {})", point.at),
    }
}

struct Work<'a> {
    workshop: &'a Workshop,
    builder: i32,
    owner: Option<UserNamespaceId>,
    source: &'a dyn PageSource,
    /// What has been made already, by the place in the tree.
    given: &'a HashMap<usize, BorrowedFd<'a>>,
    /// The root directory of the copy of the job's own namespace.
    home: i32,
    /// Descriptors of what is mounted, by index; none for what is missing of what came along.
    mounts: Vec<Option<i32>>,
}

impl Work<'_> {
    /// Has the builder make calls, of which one gives a number.
    fn call(&self, make: impl FnOnce(&mut Batch) -> CallId) -> Result<i32> {
        let mut batch = Batch::new();
        let call = make(&mut batch);
        let outcome = self.workshop.run(self.builder, &batch)?;
        outcome
            .result(call)
            .map(|number| number as i32)
            .context(|| "make a call")
    }

    /// Opens a path from a directory with O_PATH. Nothing in it leads out.
    fn open(&self, from: i32, path: &ByteString, resolve: u64) -> Result<i32> {
        let what = format!("open {path}");
        self.call(|batch| {
            let flags = (libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC) as u64;
            let how: Vec<u8> = [flags, 0, IN_ROOT | NO_MAGIC | resolve]
                .iter()
                .flat_map(|word| word.to_ne_bytes())
                .collect();
            let (path, how) = (batch.string(&path.0), batch.data(&how));
            batch.must(libc::SYS_openat2, &[from.into(), path, how, Arg::from(24)], what)
        })
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => error.with_kind(ErrorKind::Incompatible),
            _ => error,
        })
    }

    /// Hands the builder a descriptor.
    fn take(&self, descriptor: BorrowedFd<'_>) -> Result<i32> {
        self.workshop.send(descriptor)?;
        let mut batch = Batch::new();
        let channel = stub::number(&self.workshop.channel_stub);
        let out = self.workshop.receive(&mut batch, channel, true);
        let outcome = self.workshop.run(self.builder, &batch)?;
        Ok(stub::received(&outcome, out))
    }

    /// Gets a descriptor of the builder's.
    fn fetch(&self, fd: i32) -> Result<OwnedFd> {
        let what = || "get what was mounted";
        let process = PidFd::open(self.builder).context(what)?;
        rustix::process::pidfd_getfd(process.fd(), fd, PidfdGetfdFlags::empty())
            .map_err(std::io::Error::from)
            .context(what)
    }

    fn close(&self, fd: i32) -> Result<()> {
        self.call(|batch| batch.call(libc::SYS_close, &[fd.into()])).map(drop)
    }

    /// A copy of the mount that something open lies on, with that as its root.
    fn copy(&self, of: i32, recursive: bool) -> Result<i32> {
        let below = if recursive { libc::AT_RECURSIVE } else { 0 };
        let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC | libc::AT_EMPTY_PATH | below;
        self.call(|batch| {
            let empty = batch.string(b"");
            batch.must(libc::SYS_open_tree, &[of.into(), empty, flags.into()], "copy a mount")
        })
    }

    /// A copy of a mount, or of a part of it.
    fn part(&self, whole: i32, path: &ByteString) -> Result<i32> {
        if path.0.is_empty() {
            return self.copy(whole, false);
        }
        // Something may be mounted over it, but not over a copy.
        let bare = match self.open(whole, path, NO_OTHER_MOUNT | NO_LINKS) {
            Ok(from) => {
                let mount = self.copy(from, false)?;
                self.close(from)?;
                return Ok(mount);
            }
            Err(error) => self.copy(whole, false).map_err(|_| error)?,
        };
        let from = self.open(bare, path, NO_OTHER_MOUNT | NO_LINKS)?;
        let mount = self.copy(from, false)?;
        self.close(from)?;
        self.close(bare)?;
        Ok(mount)
    }

    /// A part of what has just been made, which is mounted nowhere else.
    fn only(&self, whole: i32, path: &ByteString) -> Result<i32> {
        if path.0.is_empty() {
            return Ok(whole);
        }
        let mount = self.part(whole, path)?;
        self.close(whole)?;
        Ok(mount)
    }

    /// Has the builder enter the namespace that this mount shows, where one was given.
    fn enter_given(&self, kind: libc::c_int) -> Result<()> {
        let Some(namespace) = self.given.get(&self.mounts.len()) else {
            return Ok(());
        };
        let namespace = self.take(*namespace)?;
        self.call(|batch| {
            let arguments = [namespace.into(), kind.into()];
            batch.must(libc::SYS_setns, &arguments, "enter a namespace that a mount shows")
        })?;
        self.close(namespace)
    }

    fn parent(&self, point: &MountPoint) -> Result<Option<i32>> {
        let Some(parent) = point.parent else { return Ok(None) };
        let missing = || Error::new(ErrorKind::Damaged, "what it is mounted on was not mounted");
        self.mounts.get(parent as usize).copied().ok_or_else(missing)
    }

    fn mount(&self, point: &MountPoint, tree: &[MountPoint]) -> Result<Option<i32>> {
        let parent = self.parent(point)?;
        let mount = match &point.mounted {
            Mounted::Along => return self.along(parent, point, tree),
            Mounted::Bind { path, recursive } => {
                let from = self.open(self.home, path, 0)?;
                let mount = self.copy(from, *recursive)?;
                self.close(from)?;
                mount
            }
            Mounted::Part { of, path } => {
                let missing = || Error::new(ErrorKind::Damaged, "what it is a part of was not mounted");
                let whole = self.mounts.get(*of as usize).copied().flatten().ok_or_else(missing)?;
                self.part(whole, path)?
            }
            Mounted::Elsewhere { .. } => {
                let missing = || Error::new(ErrorKind::Damaged, "what it is a part of was not mounted");
                let copy = self.given.get(&self.mounts.len()).ok_or_else(missing)?;
                self.take(*copy)?
            }
            Mounted::System { .. } => {
                self.enter_given(libc::CLONE_NEWNET)?;
                self.new_file_system(b"sysfs", &[], point.attributes)?
            }
            Mounted::Groups { path, hierarchy } => {
                let from = match self.open(self.home, path, 0) {
                    // The group has gone, and processes that were in it are in that of who restarts them.
                    Err(error) if error.kind() == ErrorKind::Incompatible => {
                        let here = cgroups::here(&hierarchy.0)?.ok_or(error)?;
                        self.open(self.home, &here, 0)?
                    }
                    other => other?,
                };
                let mount = self.copy(from, false)?;
                self.close(from)?;
                mount
            }
            Mounted::Hierarchy { hierarchy, options } => {
                let (kind, options) = cgroups::mounting(hierarchy, options);
                self.new_file_system(kind.to_bytes(), &options, point.attributes)?
            }
            Mounted::Layers { path, .. } => {
                let whole = self.new_layers(&point.mounted, point.attributes)?;
                self.only(whole, path)?
            }
            Mounted::Processes { options, .. } => self.new_file_system(b"proc", options, point.attributes)?,
            Mounted::Queues { .. } => {
                self.enter_given(libc::CLONE_NEWIPC)?;
                self.new_file_system(b"mqueue", &[], point.attributes)?
            }
            Mounted::Terminals { options } => match self.given.get(&self.mounts.len()) {
                Some(system) => self.take(*system)?,
                None => self.new_file_system(b"devpts", options, point.attributes)?,
            },
            Mounted::Memory { path, options, files } => {
                let attributes = point.attributes & !ATTRIBUTE_READ_ONLY;
                let whole = self.new_file_system(b"tmpfs", options, attributes)?;
                let top = format!("/proc/{}/fd/{whole}/.", self.builder);
                let top = File::open(&top).context(|| "open the new file system")?;
                let inner = memory_files::descend(&top, path)?;
                memory_files::fill(&inner, files, self.source)?;
                if options.iter().any(|(key, _)| key == "ro") {
                    self.close_for_writing(whole)?;
                }
                self.only(whole, path)?
            }
        };
        let missing = || {
            let text = "what it was mounted on is not mounted here";
            Error::new(ErrorKind::Incompatible, text).with_hint("mount on this machine what was mounted on the other")
        };
        let (target, opened) = match point.parent {
            None => (self.home, false),
            Some(_) if point.at.0.is_empty() => (parent.ok_or_else(missing)?, false),
            Some(_) => {
                let below = point.parent.and_then(|parent| tree.get(parent as usize));
                let of_machine = below.is_some_and(|below| {
                    matches!(below.mounted, Mounted::Along | Mounted::Bind { recursive: true, .. })
                });
                // What lies there of the machine may be mounted otherwise here, as it is in a sandbox.
                let resolve = if of_machine {
                    NO_LINKS
                } else {
                    NO_OTHER_MOUNT | NO_LINKS
                };
                (self.open(parent.ok_or_else(missing)?, &point.at, resolve)?, true)
            }
        };
        self.call(|batch| {
            let empty = batch.string(b"");
            let arguments = [mount.into(), empty, target.into(), empty, BY_DESCRIPTORS.into()];
            batch.must(libc::SYS_move_mount, &arguments, "put the mount in its place")
        })?;
        if opened {
            self.close(target)?;
        }
        self.set_attributes(mount, point)?;
        Ok(Some(mount))
    }

    /// Finds what came along with another mount, and gives it its attributes.
    fn along(&self, parent: Option<i32>, point: &MountPoint, tree: &[MountPoint]) -> Result<Option<i32>> {
        let index = self.mounts.len() as u32;
        let over = |other: &MountPoint| {
            other.parent == Some(index) && other.at.0.is_empty() && other.mounted == Mounted::Along
        };
        let mut looks = LOOKS;
        loop {
            let Some(mount) = self.find(parent, &point.at)? else {
                // It is the machine's, and need not be there.
                return Ok(None);
            };
            if tree.iter().any(over) {
                return Ok(Some(mount));
            }
            looks -= 1;
            match self.set_attributes(mount, point) {
                Ok(()) => return Ok(Some(mount)),
                Err(error) if looks == 0 => return Err(error),
                // Unmounted there, it goes here too, in the middle of this.
                Err(_) if !point.at.0.is_empty() => self.close(mount)?,
                Err(error) => return Err(error),
            }
        }
    }

    /// What came along with a mount and lies at a place of it, if it is there.
    fn find(&self, parent: Option<i32>, at: &ByteString) -> Result<Option<i32>> {
        let Some(parent) = parent else { return Ok(None) };
        if at.0.is_empty() {
            // What lies over all of it was found with it.
            return Ok(Some(parent));
        }
        let found = match self.open(parent, at, NO_LINKS) {
            Err(error) if error.kind() == ErrorKind::Incompatible => return Ok(None),
            // It lies in a directory that is closed to the job: whatever it is, nobody there can reach it.
            Err(error) if error.kind() == ErrorKind::Denied => return Ok(None),
            other => other?,
        };
        let mut batch = Batch::new();
        let empty = batch.string(b"");
        // struct statx; its attributes are the second word.
        let (place, out) = batch.out(256);
        let arguments = [found.into(), empty, libc::AT_EMPTY_PATH.into(), Arg::from(0), place];
        batch.must(libc::SYS_statx, &arguments, "look at a mount");
        let outcome = self.workshop.run(self.builder, &batch)?;
        if outcome.word(out, 8) & STATX_ATTR_MOUNT_ROOT != 0 {
            return Ok(Some(found));
        }
        self.close(found)?;
        Ok(None)
    }

    /// Mounts directories on top of each other.
    fn new_layers(&self, layers: &Mounted, attributes: u64) -> Result<i32> {
        let Mounted::Layers {
            lower,
            data,
            upper,
            options,
            ..
        } = layers
        else {
            return Err(Error::new(ErrorKind::Internal, "these are no layers"));
        };
        let text = |path: &ByteString| {
            let odd = || {
                Error::new(
                    ErrorKind::Unsupported,
                    format!("{path}: a directory whose name is no text"),
                )
            };
            String::from_utf8(path.0.clone()).map_err(|_| odd())
        };
        let mut all = Vec::new();
        let spared = upper.as_ref().filter(|_| self.workshop.in_sandbox);
        if let Some((upper, _)) = spared {
            all.push(("lowerdir+".to_owned(), text(upper)?));
        }
        let lists = [("lowerdir+", lower), ("datadir+", data)];
        for (key, path) in lists
            .into_iter()
            .flat_map(|(key, paths)| paths.iter().map(move |path| (key, path)))
        {
            all.push((key.to_owned(), text(path)?));
        }
        if let Some((upper, _)) = spared {
            all.extend([
                ("upperdir".to_owned(), format!("{SCRATCH}/upper")),
                ("workdir".to_owned(), format!("{SCRATCH}/work")),
            ]);
            // They are about one upper directory that stays the same, and is used once.
            let others = options
                .iter()
                .filter(|(key, _)| !["index", "nfs_export"].contains(&key.as_str()));
            all.extend(others.cloned());
            let memory = self.mount_scratch(upper)?;
            let layers = self.new_file_system(b"overlay", &all, attributes)?;
            let mut batch = Batch::new();
            let place = batch.string(SCRATCH.as_bytes());
            let flags = [place, libc::MNT_DETACH.into()];
            batch.must(libc::SYS_umount2, &flags, "hide the memory for changes");
            self.workshop.run(self.builder, &batch)?;
            self.close(memory)?;
            return Ok(layers);
        }
        if let Some((upper, work)) = upper {
            all.extend([
                ("upperdir".to_owned(), text(upper)?),
                ("workdir".to_owned(), text(work)?),
            ]);
            if options
                .iter()
                .any(|(key, value)| key == "volatile" || key == "fsync" && value == "volatile")
            {
                self.forget_volatile(work)?;
            }
        }
        all.extend_from_slice(options);
        self.new_file_system(b"overlay", &all, attributes)
    }

    /// Mounts memory for the changes to layers where no layer is, with a directory like `upper`.
    fn mount_scratch(&self, upper: &ByteString) -> Result<i32> {
        let memory = self.new_file_system(b"tmpfs", &[("mode".to_owned(), "755".to_owned())], 0)?;
        let place = self.open(self.home, &ByteString(SCRATCH.as_bytes().to_vec()), 0)?;
        let like = self.open(self.home, upper, 0)?;
        let mut batch = Batch::new();
        let (empty, name, work) = (batch.string(b""), batch.string(b"upper"), batch.string(b"work"));
        let arguments = [memory.into(), empty, place.into(), empty, BY_DESCRIPTORS.into()];
        batch.must(libc::SYS_move_mount, &arguments, "mount memory for changes");
        for directory in [name, work] {
            let arguments = [memory.into(), directory, Arg::from(0o700)];
            batch.must(libc::SYS_mkdirat, &arguments, "make a directory for changes");
        }
        let (found, out) = batch.out(256);
        let arguments = [like.into(), empty, libc::AT_EMPTY_PATH.into(), Arg::from(0), found];
        batch.must(libc::SYS_statx, &arguments, "look at the directory of changes");
        let outcome = self.workshop.run(self.builder, &batch)?;
        // struct statx: stx_uid, stx_gid and stx_mode.
        let (owner, group, mode) = (
            outcome.word32(out, 20),
            outcome.word32(out, 24),
            outcome.word32(out, 28) & 0o7777,
        );
        let mut batch = Batch::new();
        let name = batch.string(b"upper");
        // Who it cannot be given to may do less in it.
        let _ = batch.call(
            libc::SYS_fchownat,
            &[memory.into(), name, owner.into(), group.into(), Arg::from(0)],
        );
        batch.must(
            libc::SYS_fchmodat,
            &[memory.into(), name, mode.into()],
            "set the mode of a directory",
        );
        self.workshop.run(self.builder, &batch)?;
        self.close(place)?;
        self.close(like)?;
        Ok(memory)
    }

    /// Where changes are not written to disk at once, the kernel leaves a mark that they may be incomplete, and mounts
    /// them no more. They are what the job had, as with all other files.
    fn forget_volatile(&self, work: &ByteString) -> Result<()> {
        let marks = [
            (&b"/work/incompat/volatile"[..], &b"dirty"[..], 0),
            (b"/work/incompat", b"volatile", libc::AT_REMOVEDIR),
        ];
        for (place, name, flags) in marks {
            let place = ByteString([&work.0[..], place].concat());
            let directory = match self.open(self.home, &place, NO_LINKS) {
                Err(error) if error.kind() == ErrorKind::Incompatible => return Ok(()),
                other => other?,
            };
            let removed = self.call(|batch| {
                let name = batch.string(name);
                batch.call(libc::SYS_unlinkat, &[directory.into(), name, flags.into()])
            });
            removed.map(drop).or_else(|error| match error.kind() {
                ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
            self.close(directory)?;
        }
        Ok(())
    }

    fn new_file_system(&self, kind: &[u8], options: &[MountOption], attributes: u64) -> Result<i32> {
        let name = String::from_utf8_lossy(kind);
        let context = self.call(|batch| {
            let kind = batch.string(kind);
            batch.must(
                libc::SYS_fsopen,
                &[kind, FSOPEN_CLOEXEC.into()],
                format!("make a file system ({name})"),
            )
        })?;
        let mut all = vec![("source".to_owned(), name.clone().into_owned())];
        // It is filled before it is for reading only.
        for (key, value) in options.iter().filter(|(key, _)| key != "ro") {
            let value = match (key.as_str(), value.parse()) {
                // Groups of an image are numbered as in the job's own user namespace.
                ("gid", Ok(group)) => self.workshop.users.group_inside(self.owner, group)?.to_string(),
                _ => value.clone(),
            };
            all.push((key.clone(), value));
        }
        let mount = self.call(|batch| {
            for (key, value) in &all {
                let what = format!("set option {key}={value}");
                let key = batch.string(key.as_bytes());
                let (command, value) = match value.is_empty() {
                    true => (FSCONFIG_SET_FLAG, Arg::from(0)),
                    false => (FSCONFIG_SET_STRING, batch.string(value.as_bytes())),
                };
                batch.must(
                    libc::SYS_fsconfig,
                    &[context.into(), command.into(), key, value, Arg::from(0)],
                    what,
                );
            }
            let create = [
                context.into(),
                FSCONFIG_CMD_CREATE.into(),
                Arg::from(0),
                Arg::from(0),
                Arg::from(0),
            ];
            batch.must(libc::SYS_fsconfig, &create, format!("make a file system ({name})"));
            let arguments = [context.into(), FSMOUNT_CLOEXEC.into(), attributes.into()];
            batch.must(libc::SYS_fsmount, &arguments, format!("mount a file system ({name})"))
        })?;
        self.close(context)?;
        Ok(mount)
    }

    /// Has a new file system take no more changes, wherever it is mounted.
    fn close_for_writing(&self, mount: i32) -> Result<()> {
        const FSPICK_EMPTY_PATH: i32 = 8;
        const FSPICK_CLOEXEC: i32 = 1;
        const FSCONFIG_CMD_RECONFIGURE: i32 = 7;
        let what = "make a file system read-only";
        let context = self.call(|batch| {
            let empty = batch.string(b"");
            let flags = FSPICK_EMPTY_PATH | FSPICK_CLOEXEC;
            batch.must(libc::SYS_fspick, &[mount.into(), empty, flags.into()], what)
        })?;
        self.call(|batch| {
            let key = batch.string(b"ro");
            let flag = [
                context.into(),
                FSCONFIG_SET_FLAG.into(),
                key,
                Arg::from(0),
                Arg::from(0),
            ];
            batch.must(libc::SYS_fsconfig, &flag, what);
            let change = [
                context.into(),
                FSCONFIG_CMD_RECONFIGURE.into(),
                Arg::from(0),
                Arg::from(0),
                Arg::from(0),
            ];
            batch.must(libc::SYS_fsconfig, &change, what)
        })?;
        self.close(context)
    }

    /// Gives a mount its attributes. When times of access are noted may be locked by who owns the machine, and stays
    /// then.
    fn set_attributes(&self, mount: i32, point: &MountPoint) -> Result<()> {
        let propagation = match point.propagation {
            Propagation::Private | Propagation::Unbindable => libc::MS_PRIVATE,
            Propagation::Follows | Propagation::Shared => 0,
        };
        let clear = match point.mounted {
            Mounted::Part { .. } | Mounted::Elsewhere { .. } => CHOSEN | DENIED,
            _ => CHOSEN,
        };
        match self.set(mount, point.attributes, clear, propagation) {
            Err(error) if error.kind() == ErrorKind::Denied => {
                self.set(mount, point.attributes & !TIMES, 0, propagation)
            }
            other => other,
        }
    }

    fn set(&self, mount: i32, attributes: u64, clear: u64, propagation: libc::c_ulong) -> Result<()> {
        self.call(|batch| {
            let words = [attributes, clear & (!attributes | TIMES), propagation, 0];
            let words: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let (empty, words) = (batch.string(b""), batch.data(&words));
            let arguments = [mount.into(), empty, libc::AT_EMPTY_PATH.into(), words, Arg::from(32)];
            batch.must(libc::SYS_mount_setattr, &arguments, "set the attributes of a mount")
        })
        .map(drop)
    }
}
