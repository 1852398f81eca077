//! A machine that is started anew, with the kernel of the distribution: what was saved before goes on.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::victim::compile;
use support::{As, Cpr, finish, install_guest, note_skip};

const QEMU: &str = "qemu-system-x86_64";
/// How long the machine may take, whose processor is emulated.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is saved: processes, threads and their registers, signals, timers with numbers, files, pipes and sockets.
const VICTIMS: [&str; 6] = ["tree", "vectors", "signals", "timers", "files", "sockets"];

/// Saves everything when the machine is started first, and has it go on when it is started again.
const BOOT: &str = "export PATH=/bin GRIDCPR_STATE_DIR=/state
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
ip link set lo up
echo started $(cat /proc/sys/kernel/random/boot_id)
if [ ! -e /saved ]; then
    for victim in VICTIMS; do
        mkdir -p /work/$victim
        cd /work/$victim
        cpr run -d --name $victim -- /bin/$victim /work/$victim/go >/dev/null || exit
        cd /
    done
    for victim in VICTIMS; do
        until cpr logs $victim | grep -q READY; do usleep 100000; done
        cpr checkpoint $victim >/dev/null 2>&1 || echo $victim: not saved
        cpr checkpoint --stop $victim >/work/$victim/said 2>&1 && echo $victim: saved || cat /work/$victim/said
    done
    touch /saved
    sync
    exit
fi
for victim in VICTIMS; do
    cpr restart -d $victim >/dev/null || continue
    touch /work/$victim/go
    cpr wait $victim
    echo $victim: $(cpr logs $victim | grep -v READY)
done
";

/// Puts a file where it is here, with the libraries that it needs, below `root`.
fn put_program(root: &Path, program: &Path, name: &str) {
    let libraries = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8_lossy(&libraries.stdout).into_owned();
    for path in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(&path[1..]);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(path, to).unwrap();
    }
    fs::copy(program, root.join("bin").join(name)).unwrap();
}

/// Makes the machine's disk, or says why it cannot be made.
fn make_disk(cpr: &Cpr) -> Result<PathBuf, String> {
    let root = cpr.work.join("root");
    for directory in ["bin", "dev", "proc", "sys", "tmp", "state", "work", "etc"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    put_program(&root, cpr.binary(), "cpr");
    for victim in VICTIMS {
        put_program(&root, &compile(cpr, victim), victim);
    }
    fs::write(root.join("boot"), BOOT.replace("VICTIMS", &VICTIMS.join(" "))).unwrap();
    let disk = cpr.work.join("disk");
    fs::File::create(&disk).unwrap().set_len(512 << 20).unwrap();
    let made = Command::new("/sbin/mkfs.ext4")
        .arg("-q")
        .arg("-d")
        .args([&root, &disk])
        .output();
    match made {
        Ok(made) if made.status.success() => Ok(disk),
        Ok(made) => Err(format!("mkfs.ext4: {}", String::from_utf8_lossy(&made.stderr).trim())),
        Err(error) => Err(format!("run mkfs.ext4: {error}")),
    }
}

/// Starts the machine, and gives what it has said when it is off again.
fn boot(cpr: &Cpr, disk: &Path) -> String {
    let mut machine = Command::new(QEMU);
    machine.current_dir(&cpr.work);
    machine.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    machine.args(["-serial", "stdio"]);
    // The processor has to have what programs here may use.
    machine.args([
        "-accel", "tcg", "-cpu", "max", "-m", "512", "-kernel", "kernel", "-initrd", "initrd",
    ]);
    let append = format!("{} gate=disk", support::guest::APPEND);
    machine.args(["-append", &append, "-drive"]);
    machine.arg(format!("file={},format=raw,if=virtio", disk.display()));
    finish(&cpr.work, machine, PATIENCE).good().text().replace('\r', "")
}

fn word_after<'a>(said: &'a str, start: &str) -> &'a str {
    said.lines()
        .find_map(|line| line.strip_prefix(start))
        .unwrap_or_else(|| panic!("no {start}: {said}"))
}

/// Without anything of the host's kernel: that of the distribution comes without patches and modules of ours.
// LBNL-3.8.2, LBNL-3.2.1
#[test]
fn jobs_go_on_after_their_machine_was_started_anew() {
    let test = "jobs_go_on_after_their_machine_was_started_anew";
    let Some(cpr) = Cpr::new(test, As::Root) else { return };
    if Command::new(QEMU).arg("--version").output().is_err() {
        note_skip(test, "there is no qemu-system-x86_64");
        return;
    }
    if !install_guest(&cpr, test) {
        return;
    }
    let disk = match make_disk(&cpr) {
        Ok(disk) => disk,
        Err(reason) => {
            note_skip(test, &reason);
            return;
        }
    };
    let first = boot(&cpr, &disk);
    let lines: BTreeSet<&str> = first.lines().collect();
    for victim in VICTIMS {
        assert!(lines.contains(format!("{victim}: saved").as_str()), "{first}");
        assert!(!lines.contains(format!("{victim}: not saved").as_str()), "{first}");
    }
    let second = boot(&cpr, &disk);
    assert_ne!(word_after(&first, "started "), word_after(&second, "started "));
    for victim in VICTIMS {
        assert_eq!(word_after(&second, &format!("{victim}: ")), "OK", "{second}");
    }
}
