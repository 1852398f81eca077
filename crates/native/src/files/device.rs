//! Devices that a plug-in knows, and nodes of devices that have been deleted while they were open.
//!
//! Those nodes are made again for the moment of opening, by root and in the directory where they were. What they lead
//! to is a device that keeps no state: for others there is no restart.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cpr_image::model::{ByteString, DevicePlugin, Object, OpenFile};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::{Description, RestoreContext, SaveContext, kind, regular};
use crate::devices::DevicePlugins;

/// What to do about a device that nobody knows.
pub(super) const HINT: &str = "close it before the checkpoint, or describe it in devices.d (see cpr devices)";

fn io(error: Errno) -> std::io::Error {
    error.into()
}

/// The plug-in that knows the device that was opened by a path.
pub(super) fn plugin(path: &[u8], plugins: Option<&dyn DevicePlugins>) -> Option<String> {
    plugins?.find(Path::new(OsStr::from_bytes(path)))
}

/// Saves a device that only a plug-in can know; `reason` says what it is.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where none does; those of the plug-in.
pub(super) fn save_other(description: &Description, reason: &str, context: &mut SaveContext<'_>) -> Result<Object> {
    let plugins = context.devices.as_deref();
    let (Some(name), Some(plugins)) = (plugin(&description.link, plugins), plugins) else {
        let error = Error::new(ErrorKind::Unsupported, format!("{}: {reason}", description.label()));
        return Err(error.with_hint(HINT));
    };
    let path = Path::new(OsStr::from_bytes(&description.link));
    let state = plugins
        .save(&name, path, description.handle.as_fd())
        .context(|| format!("{}: save it with the device plug-in {name}", description.label()))?;
    regular::save_device(description, Some(DevicePlugin { name, state }), context)
}

/// Opens a device, and has a plug-in give it its state. Only for images of whoever restarts them: the state is his
/// word, and the plug-in may have more rights than he had.
///
/// # Errors
/// [`ErrorKind::Incompatible`] where there is no such device or plug-in, [`ErrorKind::Denied`] where the image is
/// somebody else's; those of the plug-in.
pub(super) fn restore_with_plugin(
    file: &OpenFile,
    path: &ByteString,
    rdev: u64,
    plugin: &DevicePlugin,
    context: &mut RestoreContext<'_>,
) -> Result<OwnedFd> {
    let what = || format!("restore {path} with the device plug-in {}", plugin.name);
    let owner = context.manifest.checkpoint.owner_uid;
    if owner != rustix::process::getuid().as_raw() {
        let error = Error::new(ErrorKind::Denied, format!("the image belongs to user {owner}"));
        return Err(error.with_hint("its owner can restart it")).context(what);
    }
    let plugins = context
        .devices
        .ok_or_else(|| Error::new(ErrorKind::Incompatible, "device plug-ins are not used here"));
    let plugins = plugins.context(what)?;
    let device = regular::restore_device(file, path, rdev, context)?;
    plugins
        .restore(&plugin.name, path.as_path(), device.as_fd(), &plugin.state)
        .context(what)?;
    Ok(device)
}

/// The image of a node whose name is gone, where root can make it again.
pub(super) fn save_deleted(description: &Description) -> Option<Object> {
    let stat = &description.stat;
    let path = description.link.strip_suffix(b" (deleted)")?;
    let can_be_made = cpr_kernel::namespace::is_admin_of_machine() && kind::is_stateless(stat.st_rdev);
    (stat.st_nlink == 0 && can_be_made).then(|| Object::Device {
        path: ByteString(path.to_vec()),
        rdev: stat.st_rdev,
        node: Some((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)),
        plugin: None,
    })
}

/// A node that is removed again when this is dropped.
struct Passing(PathBuf);

impl Drop for Passing {
    fn drop(&mut self) {
        // What cannot be removed stays behind as a node like any other; there is nobody left to tell.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Makes a node that nobody may use yet: at `path` or, where that is taken, beside it.
fn make(path: &Path, rdev: u64) -> std::result::Result<Passing, Errno> {
    let make = |path: &Path| {
        rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), rdev)?;
        Ok(Passing(path.to_owned()))
    };
    match make(path) {
        Err(Errno::EXIST) => make(&path.with_file_name(format!(".cpr-{}-device", std::process::id()))),
        made => made,
    }
}

/// Opens a node like one that had no name any more.
///
/// # Errors
/// [`ErrorKind::Denied`] for whoever may not make device nodes, [`ErrorKind::Damaged`] for one that is never saved so.
pub(super) fn restore_deleted(
    file: &OpenFile,
    path: &ByteString,
    rdev: u64,
    (mode, uid, gid): (u32, u32, u32),
) -> Result<OwnedFd> {
    let what = || format!("make device node {path} again");
    if !kind::is_stateless(rdev) {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!("the image has a deleted node of a device that keeps state ({path})"),
        ));
    }
    let passing = make(path.as_path(), rdev).map_err(io).context(what)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::open(&passing.0, flags, Mode::empty())
        .map_err(io)
        .context(what)?;
    let stat = rustix::fs::fstat(&node).map_err(io).context(what)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || stat.st_rdev != rdev {
        return Err(Error::new(
            ErrorKind::Incompatible,
            format!("somebody has replaced device node {path} while it was made"),
        ));
    }
    let place = format!("/proc/self/fd/{}", node.as_raw_fd());
    rustix::fs::chownat(
        CWD,
        place.as_str(),
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::empty(),
    )
    .map_err(io)
    .context(what)?;
    rustix::fs::chmod(place.as_str(), Mode::from_raw_mode(mode))
        .map_err(io)
        .context(what)?;
    let opened_at = ByteString(passing.0.as_os_str().as_encoded_bytes().to_vec());
    regular::open_node(node.as_fd(), &opened_at, file.flags)
}
