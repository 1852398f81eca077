//! A guest for virtual machines: the kernel of the distribution, and an initramfs with busybox that counts on its console.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Cpr, note_skip};

/// A QEMU that runs it, in a directory that [`install`] has been to.
pub const MACHINE: [&str; 15] = [
    "qemu-system-x86_64",
    "-nodefaults",
    "-no-user-config",
    "-no-reboot",
    "-m",
    "96",
    "-display",
    "none",
    "-serial",
    "stdio",
    "-kernel",
    "kernel",
    "-initrd",
    "initrd",
    "-append",
];
/// The last of its arguments.
pub const APPEND: &str = "console=ttyS0 quiet loglevel=0 panic=-1";

const BUSYBOX: &str = "/bin/busybox";
/// The package that depends on the newest kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";

/// Runs the job that the kernel's command line has, or else counts.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
job=$(sed -n 's/.*job=\\([^ ]*\\).*/\\1/p' /proc/cmdline)
if [ -n \"$job\" ]; then
    echo \"$job\" | base64 -d >/job
    sh /job
    poweroff -f
fi
i=0
while :; do
    i=$((i + 1))
    echo $i
    /bin/busybox usleep 50000
done
";

/// Puts `kernel` and `initrd` into the test's directory; false, after saying so, where that cannot be.
pub fn install(cpr: &Cpr, test: &str) -> bool {
    match files() {
        Ok((kernel, initrd)) => {
            for (from, name) in [(kernel, "kernel"), (initrd, "initrd")] {
                let to = cpr.work.join(name);
                fs::copy(&from, &to).unwrap_or_else(|e| panic!("copy {}: {e}", from.display()));
                cpr.give(&to);
            }
            true
        }
        Err(reason) => {
            note_skip(test, &reason);
            false
        }
    }
}

fn files() -> Result<(PathBuf, PathBuf), String> {
    if !cfg!(target_arch = "x86_64") {
        return Err("the guest is for x86_64".to_string());
    }
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
    fs::create_dir_all(&place).map_err(|error| error.to_string())?;
    let _lock = super::Lock::take(&place.join("lock"));
    let (kernel, initrd) = (place.join("kernel"), place.join("initrd"));
    if !kernel.exists() {
        fetch_kernel(&place, &kernel)?;
    }
    if !Path::new(BUSYBOX).exists() {
        return Err("needs busybox-static".to_string());
    }
    let busybox = fs::read(BUSYBOX).map_err(|error| error.to_string())?;
    fs::write(&initrd, archive(&busybox)).map_err(|error| error.to_string())?;
    Ok((kernel, initrd))
}

/// That of /boot where there is one that we may read, or else out of the distribution's package, without installing it.
fn fetch_kernel(place: &Path, kernel: &Path) -> Result<(), String> {
    let script = format!(
        "set -e
        found=$(ls /boot/vmlinuz-*-cloud-amd64 2>/dev/null | tail -1)
        if [ -z \"$found\" ]; then
            package=$(apt-cache depends {KERNEL} | sed -n 's/^ *Depends: \\(linux-image-[^ ]*\\).*/\\1/p' | head -1)
            test -n \"$package\"
            apt-get download -q \"$package\" >&2
            dpkg-deb -x \"$package\"_*.deb unpacked
            rm -f \"$package\"_*.deb
            found=$(ls unpacked/boot/vmlinuz-*)
        fi
        cp \"$found\" kernel.new
        rm -rf unpacked
        mv kernel.new {}",
        kernel.display()
    );
    let output = Command::new("sh").args(["-c", &script]).current_dir(place).output();
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!(
        "needs the kernel of {KERNEL}: {}",
        said.lines().last().unwrap_or("none is there")
    ))
}

/// A cpio archive of the kind `newc` (Documentation/driver-api/early-userspace/buffer-format.rst).
fn archive(busybox: &[u8]) -> Vec<u8> {
    const DIRECTORY: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;
    const DEVICE: u32 = 0o020_600;
    let mut out = Vec::new();
    let mut put = |name: &str, mode: u32, device: (u32, u32), data: &[u8]| {
        let fields = [
            0,
            mode,
            0,
            0,
            1,
            0,
            data.len() as u32,
            0,
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0,
        ];
        out.extend_from_slice(b"070701");
        for field in fields {
            out.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        out.extend_from_slice(name.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(4), 0);
    };
    put("bin", DIRECTORY, (0, 0), b"");
    put("dev", DIRECTORY, (0, 0), b"");
    put("proc", DIRECTORY, (0, 0), b"");
    put("dev/console", DEVICE, (5, 1), b"");
    put("bin/busybox", PROGRAM, (0, 0), busybox);
    put("init", PROGRAM, (0, 0), INIT.as_bytes());
    put("TRAILER!!!", 0, (0, 0), b"");
    out
}
