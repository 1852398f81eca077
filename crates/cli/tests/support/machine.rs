//! Machines with a disk of their own, which QEMU emulates: what is put on it, and what it says.

#![allow(dead_code, reason = "each test program uses its own part of this module")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Cpr, finish, guest};

/// The directories of a disk with `busybox` and `cpr`, below `root`, as the distribution has them here.
pub fn lay_out(cpr: &Cpr, root: &Path) {
    for directory in [
        "dev",
        "proc",
        "sys",
        "tmp",
        "state",
        "work",
        "etc",
        "run",
        "usr/bin",
        "usr/lib",
        "usr/lib64",
    ] {
        fs::create_dir_all(root.join(directory)).expect("a directory can be made");
    }
    for name in ["bin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name)).expect("a link can be made");
    }
    fs::copy(guest::BUSYBOX, root.join("bin/busybox")).expect("busybox can be copied");
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").expect("a file can be written");
    put_program(root, cpr.binary(), Path::new("/bin/cpr"));
}

/// Puts a program to a path below `root`, and the libraries that it needs where they are here.
pub fn put_program(root: &Path, program: &Path, to: &Path) {
    let libraries = Command::new("ldd").arg(program).output().expect("ldd can be run");
    let text = String::from_utf8_lossy(&libraries.stdout).into_owned();
    let libraries = text
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(Path::new);
    // Where a name is a link, the file has to be where that leads, too: programs have it mapped from there.
    let places = libraries.flat_map(|path| [path.to_path_buf(), fs::canonicalize(path).expect("it is there")]);
    let all = places.map(|place| (place.clone(), place));
    for (from, to) in all.chain([(program.to_path_buf(), to.to_path_buf())]) {
        let to = root.join(to.strip_prefix("/").expect("it is absolute"));
        fs::create_dir_all(to.parent().expect("it is below the root")).expect("a directory can be made");
        fs::copy(&from, &to).unwrap_or_else(|error| panic!("copy {} to {}: {error}", from.display(), to.display()));
    }
}

/// Makes a disk of what is below `root`, or says why it cannot be made.
pub fn make_disk(cpr: &Cpr, root: &Path) -> Result<PathBuf, String> {
    let disk = cpr.work.join("disk");
    let sized = fs::File::create(&disk).and_then(|file| file.set_len(512 << 20));
    sized.map_err(|error| error.to_string())?;
    let made = Command::new("/sbin/mkfs.ext4")
        .arg("-q")
        .arg("-d")
        .args([root, &disk])
        .output();
    match made {
        Ok(made) if made.status.success() => Ok(disk),
        Ok(made) => Err(format!("mkfs.ext4: {}", String::from_utf8_lossy(&made.stderr).trim())),
        Err(error) => Err(format!("run mkfs.ext4: {error}")),
    }
}

/// Takes a file from the disk of a machine that is off.
pub fn take_from_disk(cpr: &Cpr, disk: &Path, path: &str, to: &Path) {
    let mut debugfs = Command::new("/sbin/debugfs");
    debugfs.arg("-R").arg(format!("dump {path} {}", to.display())).arg(disk);
    finish(&cpr.work, debugfs, PATIENCE).good();
    assert!(to.exists(), "{path} is on the disk");
}

/// How long a machine may take, whose processor is emulated.
const PATIENCE: Duration = Duration::from_secs(600);

/// Starts the machine with a disk, which runs `boot` on it, and gives what it has said when it is off again. `kernel`
/// and `initrd` are in the test's directory.
pub fn boot(cpr: &Cpr, disk: &Path) -> String {
    let mut machine = Command::new(guest::MACHINE[0]);
    machine.current_dir(&cpr.work);
    machine.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    machine.args(["-serial", "stdio"]);
    // The processor has to have what programs here may use.
    machine.args([
        "-accel", "tcg", "-cpu", "max", "-m", "512", "-kernel", "kernel", "-initrd", "initrd",
    ]);
    machine.args(["-append", &format!("{} gate=disk", guest::APPEND), "-drive"]);
    machine.arg(format!("file={},format=raw,if=virtio", disk.display()));
    finish(&cpr.work, machine, PATIENCE).good().text().replace('\r', "")
}
