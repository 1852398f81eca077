//! A guest for virtual machines: the kernel of the distribution, and an initramfs with busybox that counts on its
//! console, or runs what is on a disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::lock::Lock;

/// A QEMU that runs it, in a directory that has `kernel` and `initrd` in it.
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
///
/// An emulated timer on a busy host may fail the test that the kernel makes of it, which is a panic: it makes none. What
/// panics says so.
pub const APPEND: &str = "console=ttyS0 quiet loglevel=1 no_timer_check panic=-1";

pub const BUSYBOX: &str = "/bin/busybox";
/// The package that depends on the newest kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";

/// What guests need of the kernel, each after those that it needs itself.
const MODULES: [&str; 11] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_console",
    "virtio_blk",
    "unix_diag",
];

/// What CRIU needs of the kernel besides: they are no part of the initramfs, see [`module`].
pub const OF_CRIU: [&str; 12] = [
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "af_packet_diag",
    "netlink_diag",
    "tun",
    "veth",
    "nfnetlink",
    "libcrc32c",
    "nf_tables",
    "x_tables",
    "ip_tables",
];

/// With a disk runs the shell script `boot` on it, with that as its root directory. With a gate (see
/// `examples/machine/vm-run`) runs the jobs that come through it. Or else it counts.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
load() { for module in MODULES; do insmod /$module.ko; done; }
case $(sed -n 's/.*gate=\\([^ ]*\\).*/\\1/p' /proc/cmdline) in
disk)
    load
    mkdir /disk
    until [ -b /dev/vda ]; do usleep 10000; done
    mount -t ext4 /dev/vda /disk
    exec switch_root /disk /bin/busybox sh -c '/bin/busybox sh /boot 2>&1; /bin/busybox poweroff -f' ;;
serial)
    load
    until port=$(ls /dev/vport?p1 2>/dev/null); do usleep 10000; done
    exec 3<>$port 4>&3 ;;
network)
    load
    ip link set eth0 up
    ip addr add 10.0.2.15/24 dev eth0
    mkfifo /in /out
    nc 10.0.2.100 7000 </out >/in &
    exec 4>/out 3</in ;;
*)
    i=0
    while :; do
        i=$((i + 1))
        echo $i
        usleep 50000
    done ;;
esac
while :; do
    # At its end while nobody is there.
    read -r word rest <&3 || usleep 50000
    [ \"$word\" = job ] || continue
    echo \"$rest\" | base64 -d >/job
    echo started >&4
    sh /job 3<&- 4>&-
    code=$?
    # Nobody may hear it.
    echo ended $code >&4 &
    read -t 2 -r word rest <&3 && [ \"$word\" = again ] || break
done
poweroff -f
";

fn place() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-with-more")
}

/// A module of the kernel of [`files`]; none where the kernel has that itself.
pub fn module(name: &str) -> Option<PathBuf> {
    Some(place().join("modules").join(format!("{name}.ko"))).filter(|path| path.exists())
}

/// The kernel and the initramfs, or why they cannot be had.
pub fn files() -> Result<(PathBuf, PathBuf), String> {
    if !cfg!(target_arch = "x86_64") {
        return Err("the guest is for x86_64".to_string());
    }
    let place = place();
    fs::create_dir_all(&place).map_err(|error| error.to_string())?;
    let _lock = Lock::take(&place.join("lock"));
    let (kernel, initrd) = (place.join("kernel"), place.join("initrd"));
    let modules = place.join("modules");
    if !kernel.exists() || !modules.exists() {
        fetch_kernel(&place, &kernel)?;
    }
    if !Path::new(BUSYBOX).exists() {
        return Err("needs busybox-static".to_string());
    }
    let busybox = fs::read(BUSYBOX).map_err(|error| error.to_string())?;
    // Whoever has the lock no more copies what is there.
    let whole = place.join("initrd.new");
    fs::write(&whole, archive(&busybox, &modules)?).map_err(|error| error.to_string())?;
    fs::rename(&whole, &initrd).map_err(|error| error.to_string())?;
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
        rm -rf modules modules.new
        mkdir modules.new
        version=${{found##*/vmlinuz-}}
        for module in {}; do
            for file in $(find unpacked/lib/modules/$version /lib/modules/$version -name $module.ko 2>/dev/null | head -1); do
                cp \"$file\" modules.new
            done
        done
        rm -rf unpacked
        mv modules.new modules
        mv kernel.new {}",
        [&MODULES[..], &OF_CRIU[..]].concat().join(" "),
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
fn archive(busybox: &[u8], modules: &Path) -> Result<Vec<u8>, String> {
    const DIRECTORY: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;
    const DEVICE: u32 = 0o020_600;
    const DATA: u32 = 0o100_644;
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
    let mut names = Vec::new();
    for name in MODULES {
        // Where it is no module, the kernel has it, or has none at all.
        if let Ok(module) = fs::read(modules.join(format!("{name}.ko"))) {
            put(&format!("{name}.ko"), DATA, (0, 0), &module);
            names.push(name);
        }
    }
    let init = INIT.replace("MODULES", &names.join(" "));
    put("init", PROGRAM, (0, 0), init.as_bytes());
    put("TRAILER!!!", 0, (0, 0), b"");
    Ok(out)
}
