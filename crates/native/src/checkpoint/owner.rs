//! Whose an image is.

use cpr_image::model::{Manifest, Object, Thread};
use cpr_kernel::process::FileIdentity;
use rustix::fs::{Access, AtFlags};

/// The first thread of the root process, or of the first process that lives.
pub(super) fn leading_thread(manifest: &Manifest) -> Option<&Thread> {
    let root = manifest.checkpoint.root_pid;
    let mut living = manifest.processes.iter().filter(|p| !p.threads.is_empty());
    let saved = living.clone().find(|p| p.pid == root).or_else(|| living.next());
    saved.and_then(|process| process.threads.first())
}

/// The user and group the job belongs to.
pub(super) fn owner_of(manifest: &Manifest) -> Option<(u32, u32)> {
    let credentials = &leading_thread(manifest)?.credentials;
    Some((credentials.uids[0], credentials.gids[0]))
}

/// The user and group the image's file is to belong to: those of the job. It stays with root, who makes it, where they
/// could do nothing with it and root would not believe it once it was theirs: processes are of several users, or have
/// files open that its user could not open again, as a daemon has that gave root's rights up.
pub(super) fn owner_of_image(manifest: &Manifest) -> (u32, u32) {
    let owner = (manifest.checkpoint.owner_uid, manifest.checkpoint.owner_gid);
    let credentials = manifest.processes.iter().flat_map(|process| process.credentials());
    let mut users = credentials.flat_map(|credentials| credentials.uids);
    // That of a session is its leader's in any case (LBNL-3.6.2.7).
    if manifest.checkpoint.session != 0 || !rustix::process::geteuid().is_root() {
        return owner;
    }
    let roots = users.any(|user| user != owner.0) || !can_reopen(manifest, owner);
    if roots { (0, 0) } else { owner }
}

/// Whether this user could open the job's files again.
pub(super) fn can_reopen(manifest: &Manifest, (uid, gid): (u32, u32)) -> bool {
    let _identity = FileIdentity::assume(uid, gid);
    manifest.files.iter().all(|file| {
        let path = match &file.object {
            Object::Regular(regular) if regular.path != manifest.checkpoint.log => &regular.path,
            Object::Directory { path } => path,
            _ => return true,
        };
        let wanted = match file.flags & libc::O_ACCMODE {
            libc::O_RDONLY => Access::READ_OK,
            libc::O_WRONLY => Access::WRITE_OK,
            _ => Access::READ_OK | Access::WRITE_OK,
        };
        let asked = rustix::fs::accessat(rustix::fs::CWD, path.as_path(), wanted, AtFlags::EACCESS);
        // Whatever else is wrong is told by the restart, whose ever it is.
        file.flags & libc::O_PATH != 0 || asked != Err(rustix::io::Errno::ACCESS)
    })
}
